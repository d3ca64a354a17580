package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mount gives the agent its /dev, /proc and /sys, and a console even where the initramfs has no device for it.
func mount() error {
	var errs []error
	for _, m := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.dir, err))
		}
	}
	if fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0); err == nil {
		for i := range 3 {
			if i != fd {
				_ = unix.Dup3(fd, i, 0)
			}
		}
		if fd > 2 {
			_ = unix.Close(fd)
		}
	}
	return errors.Join(errs...)
}

// loadModules loads what list names, one a line with its parameters behind it, in its order; a bare name lies beside
// the list's folder "modules".
func loadModules(list string) error {
	text, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil // all is built in
	}
	if err != nil {
		return fmt.Errorf("read the list of modules: %w", err)
	}
	var errs []error
	for l := range strings.Lines(string(text)) {
		name, params, _ := strings.Cut(strings.TrimSpace(l), " ")
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(list), "modules", filepath.Base(name))
		}
		if err := loadModule(name, params); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func loadModule(name, params string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), params, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	return nil
}

// linkLimit is how long eth0 may take to appear behind its driver.
const linkLimit = 10 * time.Second

// configure brings the network up: lo, eth0 with its address, the default route. Without ip only lo.
func configure(c clock, ip netip.Prefix, gateway netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("configure network: %w", err)
	}
	defer unix.Close(fd)
	// The wire is to be quiet but for us: no router solicitations, no duplicate address detection.
	for _, which := range []string{"all", "default"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0) // no IPv6 is as good
	}
	if err := linkUp(fd, "lo"); err != nil || !ip.IsValid() {
		return err
	}
	for start := c.now(); ; c.sleep(time.Millisecond) {
		if _, err := os.Stat("/sys/class/net/eth0"); err == nil {
			break
		}
		if c.now()-start > linkLimit {
			return fmt.Errorf("configure eth0: there is none after %v: has the guest a network card, and its module in the initramfs?", linkLimit)
		}
	}
	mask := [4]byte{}
	for i := range ip.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	if err := setAddress(fd, unix.SIOCSIFADDR, ip.Addr().As4()); err != nil {
		return fmt.Errorf("set address %v of eth0: %w", ip.Addr(), err)
	}
	if err := setAddress(fd, unix.SIOCSIFNETMASK, mask); err != nil {
		return fmt.Errorf("set netmask of eth0: %w", err)
	}
	if err := linkUp(fd, "eth0"); err != nil || !gateway.IsValid() {
		return err
	}
	if err := addDefaultRoute(fd, gateway); err != nil {
		return fmt.Errorf("set default route by %v: %w", gateway, err)
	}
	return nil
}

func linkUp(fd int, name string) error {
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func setAddress(fd int, request uint, addr [4]byte) error {
	r, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	if err := r.SetInet4Addr(addr[:]); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, request, r)
}

// addDefaultRoute is SIOCADDRT with struct rtentry of linux/route.h, as it lies on a 64-bit machine.
func addDefaultRoute(fd int, gateway netip.Addr) error {
	route := struct {
		_                  uint64
		dst, gateway, mask unix.RawSockaddrInet4
		flags              uint16
		_                  int16
		_, _               uint64
		_                  [8]byte // tos, class and padding
		metric             int16
		_                  [6]byte
		dev                *byte
		mtu, window        uint64
		irtt               uint16
		_                  [6]byte
	}{flags: unix.RTF_UP | unix.RTF_GATEWAY}
	route.dst.Family, route.mask.Family, route.gateway.Family = unix.AF_INET, unix.AF_INET, unix.AF_INET
	route.gateway.Addr = gateway.As4()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT,
		uintptr(unsafe.Pointer(&route))); errno != 0 && errno != unix.EEXIST {
		return errno
	}
	return nil
}

// buildID is the content part of a Go binary's build id: of the ELF note of type 4 and name "Go" near the start of the
// file.
func buildID(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	head := make([]byte, 16<<10)
	n, _ := f.ReadAt(head, 0) // what was read is what there is
	head = head[:n]
	mark := []byte("\x04\x00\x00\x00Go\x00\x00")
	i := bytes.Index(head, mark)
	if i < 4 {
		return "unknown"
	}
	id := head[i+len(mark):]
	id = id[:min(uint64(len(id)), uint64(binary.LittleEndian.Uint32(head[i-4:])))]
	return string(id[bytes.LastIndexByte(id, '/')+1:])
}

// word is a file's content without its newline; empty if there is no such file.
func word(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// ram is what the kernel has in all and what is free now, in bytes.
func ram() (total, free int64) {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return 0, 0
	}
	return int64(s.Totalram) * int64(s.Unit), int64(s.Freeram) * int64(s.Unit)
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // it returns only if it could not
}
