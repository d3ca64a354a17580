package guest

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Spec describes one guest and the QEMU process that runs it. Both sides of a migration use the same Spec but for QEMU,
// NIC.TAP, Dir, Incoming and Paused, so that everything the guest can see is identical on both.
type Spec struct {
	Name        string // -name is "qmig-" + Name, so that the process is known as ours
	QEMU        string // path of the binary on the host
	Machine     string // default pc-q35-7.2: every QEMU from 7.2 has it
	Accelerator string // tcg or kvm; default tcg
	Memory      int64  // bytes, a multiple of 4096; default 256 MiB. See SafeMemory
	VCPUs       int    // default 1
	// default qemu64,+rdrand: one fixed set of features in every version; without rdrand a guest waits 1 s for randomness
	CPU      string
	Image    Image    // what is booted
	NIC      NIC      // none if NIC.TAP is empty
	Disks    []Disk   // the same nodes, in the same order, on both sides; at most MaxDisks
	DiskBus  string   // how the guest has them: one of DiskBuses; default virtio-blk
	Dir      string   // private folder on the host: Start makes it 0700, Close removes it
	Incoming bool     // wait for migrate-incoming (-incoming defer)
	Paused   bool     // do not run before `cont` (-S)
	KeepLogs bool     // Close leaves console.log, qemu.log and trace.log
	Extra    []string // further arguments of QEMU's, last
}

// Image is what a guest boots: files on the host.
type Image struct {
	Kernel string // ELF vmlinux with a PVH entry, or bzImage
	Initrd string // initramfs (newc)
	Root   string // squashfs that becomes the guest's root, read-only; empty: the initramfs is all
	// words of the kernel command line, added to KernelCommandLine; of two that disagree Linux takes the later
	Append string
}

// NIC is the guest's network card.
type NIC struct {
	Model string // one of NICs; default virtio-net. Another name is handed to -device as it stands
	TAP   string // the TAP interface on the host; empty means no card
	MAC   string // default 52:54:00:71:6d:01, the same on both sides
}

// The roles of the sockets and files in Spec.Dir.
const (
	Control = "control" // QMP: commands
	Events  = "events"  // QMP: events only
	Sampler = "sampler" // QMP: the hot path
	AgentIO = "agent"   // the virtio-serial port of the guest's agent

	TraceLog = "trace" // the lines of trace events, with time stamps; empty until one is switched on
)

// KernelCommandLine begins every guest's command line. A panic resets the machine, which -no-reboot turns into the end
// of QEMU, its text left in console.log. The rest is left out work, seen under TCG: the self-tests of ciphers 0.25 s of
// a boot of 2 s, timer checks 0.1 s. IPv6 is off for a quiet wire.
const KernelCommandLine = "console=ttyS0 panic=-1 quiet loglevel=4 cryptomgr.notests tsc=reliable no_timer_check " +
	"nokaslr mitigations=off ipv6.disable=1 random.trust_cpu=on"

func (s Spec) withDefaults() Spec {
	def := func(v *string, d string) {
		if *v == "" {
			*v = d
		}
	}
	def(&s.Machine, "pc-q35-7.2")
	def(&s.Accelerator, "tcg")
	def(&s.CPU, "qemu64,+rdrand")
	def(&s.NIC.MAC, "52:54:00:71:6d:01")
	if nic, err := pick("", s.NIC.Model, nics()); err == nil {
		s.NIC.Model = nic.device
	}
	def(&s.DiskBus, VirtioBlk)
	if s.Memory == 0 {
		s.Memory = 256 << 20
	}
	if s.VCPUs == 0 {
		s.VCPUs = 1
	}
	return s
}

// Socket is the path on the host of the socket or file of a role: one of Control, Events, Sampler (QMP), AgentIO, or
// "console", "log" (what QEMU says), "trace" (its trace lines), "pid".
func (s Spec) Socket(role string) string {
	switch role {
	case Control, Events, Sampler:
		return path.Join(s.Dir, role+".qmp")
	case AgentIO:
		return path.Join(s.Dir, "agent.sock")
	case "console":
		return path.Join(s.Dir, "console.log")
	case "log":
		return path.Join(s.Dir, "qemu.log")
	case TraceLog:
		return path.Join(s.Dir, "trace.log")
	case "pid":
		return path.Join(s.Dir, "qemu.pid")
	}
	return path.Join(s.Dir, role)
}

// SafeMemory is the RAM size, in bytes, that a lab guest of the wanted size gets. Before 9.0 QEMU under TCG loses dirty
// bits in its fast path, which takes RAM that is a multiple of 256 KiB (64 pages of 4 KiB): such a guest gets 8 KiB
// more, and the slow path. Source: QEMU commit 03bfc2188f; seen on 7.2.22, 262152 KiB 30 of 30 runs clean, 256 MiB 9 of
// 11 corrupted.
func SafeMemory(version, accelerator string, bytes int64) int64 {
	if major, _, _ := strings.Cut(version, "."); accelerator != "kvm" && bytes%(256<<10) == 0 {
		if n, err := strconv.Atoi(major); err == nil && n < 9 {
			return bytes + 8<<10
		}
	}
	return bytes
}

// Args are the arguments of QEMU's for this guest, without the program's name. They depend on nothing but s.
func (s Spec) Args() []string {
	s = s.withDefaults()
	accel := s.Accelerator
	a := []string{
		"-name", "qmig-" + comma(s.Name) + ",debug-threads=on",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", s.Machine,
		"-accel", accel,
		"-cpu", s.CPU,
		"-smp", strconv.Itoa(s.VCPUs),
		"-m", "size=" + memory(s.Memory),
		"-rtc", "base=utc,clock=vm",
		"-pidfile", s.Socket("pid"),
		"-D", s.Socket(TraceLog), "-msg", "timestamp=on",
	}
	for _, role := range []string{Control, Events, Sampler} {
		a = append(a,
			"-chardev", "socket,id="+role+",server=on,wait=off,path="+comma(s.Socket(role)),
			"-mon", "chardev="+role+",mode=control")
	}
	a = append(a,
		"-chardev", "file,id=console,path="+comma(s.Socket("console")),
		"-device", "isa-serial,chardev=console",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+comma(s.Socket(AgentIO)),
		"-device", "virtio-serial-pci,id=serial,addr=0x2",
		"-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=qmigrate.agent")
	if s.NIC.TAP != "" {
		a = append(a,
			"-netdev", "tap,id=net,ifname="+comma(s.NIC.TAP)+",script=no,downscript=no,vhost=off",
			"-device", s.NIC.Model+",id=nic,netdev=net,mac="+s.NIC.MAC+",addr=0x3,romfile=")
	}
	a = append(append(a, s.Image.rootArgs()...), s.diskArgs()...)
	if s.Image.Kernel != "" {
		a = append(a, "-kernel", s.Image.Kernel, "-append", strings.TrimSpace(KernelCommandLine+" "+s.Image.Append))
	}
	if s.Image.Initrd != "" {
		a = append(a, "-initrd", s.Image.Initrd)
	}
	if s.Incoming {
		a = append(a, "-incoming", "defer")
	}
	if s.Paused {
		a = append(a, "-S")
	}
	return append(a, s.Extra...)
}

// memory is a size for -m, in the largest unit that is exact.
func memory(bytes int64) string {
	switch {
	case bytes%(1<<20) == 0:
		return fmt.Sprintf("%dM", bytes>>20)
	case bytes%(1<<10) == 0:
		return fmt.Sprintf("%dK", bytes>>10)
	}
	return fmt.Sprintf("%dB", bytes)
}

// comma doubles the commas of a value, as QEMU's option syntax wants them.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }
