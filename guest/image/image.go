// Package image makes what the lab's guests boot: a kernel, and an initramfs of our agent and the modules that the
// guest's hardware needs. What it has made stays in the cache under the hash of its parts.
//
// It starts no guest and knows no QEMU but the names of hardware that package guest has. Labs and commands may import
// it; guest and engine do not.
package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"qmigrate/guest"
	"qmigrate/guest/agentbin"
	"qmigrate/guest/debian"
	"qmigrate/guest/wire"
	"qmigrate/internal/atomicfile"
)

// ErrNoAgent is a binary that was built without the guest's agent in it.
var ErrNoAgent = errors.New("built without the guest agent: build with make build")

// imageFormat is part of each image's hash: raise it when the same parts make another initramfs.
const imageFormat = "1"

// imageAge is how long an image that no guest boots stays in the cache.
const imageAge = 30 * 24 * time.Hour

// Spec says what the lab's guests boot. The zero value is Debian's kernel and our agent.
type Spec struct {
	Kernel   string    // a kernel of the user's; default Debian's, fetched if it is not in the cache
	Modules  string    // with Kernel: folder of its modules (/lib/modules/VERSION); empty: everything needed is built in
	NIC      string    // one of NICs whose module is loaded; default virtio-net
	DiskBus  string    // one of DiskBuses, likewise; default virtio-blk
	CacheDir string    // default CacheDir()
	Agent    []byte    // PID 1, a static executable; default the embedded guest agent
	Log      io.Writer // one line a step; nil is silent
	Guest    string    // one of wire.Guests(); default tiny
}

// Build makes the image, or finds it in the cache: its name is the hash of what it is made from, and its files are
// written whole or not at all.
func Build(ctx context.Context, s Spec) (guest.Image, error) {
	img, err := s.build(ctx)
	if err != nil {
		return guest.Image{}, fmt.Errorf("build guest image: %w", err)
	}
	return img, nil
}

func (s Spec) build(ctx context.Context) (guest.Image, error) {
	if s.Guest != "" && !slices.Contains(wire.Guests(), s.Guest) {
		return guest.Image{}, fmt.Errorf("no guest %q: there are %s", s.Guest, strings.Join(wire.Guests(), ", "))
	}
	if s.Agent == nil {
		var err error
		if s.Agent, err = agentbin.Agent(); err != nil {
			return guest.Image{}, ErrNoAgent
		}
	}
	if s.CacheDir == "" {
		var err error
		if s.CacheDir, err = guest.CacheDir(); err != nil {
			return guest.Image{}, err
		}
	}
	if s.Kernel == "" {
		if s.Modules != "" {
			return guest.Image{}, fmt.Errorf("modules %s without a kernel: give kernel too", s.Modules)
		}
		what, err := s.debianKernel()
		if err != nil {
			return guest.Image{}, err
		}
		if s.Kernel, s.Modules, err = debianKernel(ctx, what, s.CacheDir, s.Log); err != nil {
			return guest.Image{}, err
		}
	}
	kernel, err := os.ReadFile(s.Kernel)
	if err != nil {
		return guest.Image{}, err
	}
	release, err := kernelRelease(kernel)
	if err != nil {
		return guest.Image{}, fmt.Errorf("kernel %s: %w", s.Kernel, err)
	}
	var modules []module
	if s.Modules != "" {
		nic, bus, err := s.drivers()
		if err != nil {
			return guest.Image{}, err
		}
		wanted := slices.Concat([]string{"virtio_pci"}, nic.modules, []string{"virtio_console"}, bus.modules)
		if s.Guest == wire.DebianGuest {
			wanted = append(wanted, "virtio_blk", "squashfs", "overlay") // for its root, whatever the bus of its disks
		}
		if modules, err = moduleOrder(s.Modules, wanted); err != nil {
			return guest.Image{}, err
		}
	}
	for _, m := range modules {
		if v, _, _ := strings.Cut(m.info.vermagic, " "); release != "" && v != "" && v != release {
			return guest.Image{}, fmt.Errorf("modules %s are for kernel %s, but %s is %s", s.Modules, v, s.Kernel, release)
		}
	}
	dir := filepath.Join(s.CacheDir, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return guest.Image{}, err
	}
	prune(dir)
	img := guest.Image{Kernel: filepath.Join(dir, "kernel-"+hash([]byte(imageFormat), kernel)),
		Initrd: filepath.Join(dir, "initrd-"+imageHash(s.Agent, modules))}
	err = cached(img.Kernel, func(w io.Writer) error {
		b := vmlinux(kernel)
		if b == nil {
			b = kernel
		}
		_, err := w.Write(b)
		return err
	})
	if err != nil {
		return guest.Image{}, err
	}
	if s.Guest == wire.DebianGuest {
		folder, err := debian.Store{Dir: s.CacheDir, Log: s.Log}.Ensure(ctx, debian.Guest)
		if err != nil {
			return guest.Image{}, err
		}
		img.Root, img.Append = filepath.Join(folder, debian.Squashfs),
			strings.Join(wire.Boot{Root: guest.RootSerial}.Words(), " ")
	}
	return img, cached(img.Initrd, func(w io.Writer) error { return writeInitramfs(w, s.Agent, modules) })
}

// debianKernel is the kernel and the folder of modules of a package of Debian's.
func debianKernel(ctx context.Context, what debian.What, cache string, log io.Writer) (kernel, modules string,
	err error) {
	dir, err := debian.Store{Dir: cache, Log: log}.Ensure(ctx, what)
	if err != nil {
		return "", "", err
	}
	one := func(pattern string) string {
		m, globErr := filepath.Glob(filepath.Join(dir, pattern))
		if globErr != nil || len(m) != 1 {
			err = fmt.Errorf("%s has %d of %s, want 1: remove the folder and try again", dir, len(m), pattern)
			return ""
		}
		return m[0]
	}
	kernel, modules = one("boot/vmlinuz-*"), one("lib/modules/*")
	return kernel, modules, err
}

// writeInitramfs writes what the kernel unpacks into its root: the agent as /init and the modules in the order in which
// it must load them, by name and in /modules.list.
func writeInitramfs(w io.Writer, agent []byte, modules []module) error {
	rw := cpio.Newc.Writer(w)
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.Directory("proc", 0o755),
		cpio.Directory("sys", 0o755),
		cpio.Directory("tmp", 0o755),
		cpio.Directory("modules", 0o755),
	}
	var list strings.Builder
	for i, m := range modules {
		name := fmt.Sprintf("modules/%02d-%s.ko", i, m.name)
		fmt.Fprintf(&list, "/%s\n", name)
		records = append(records, cpio.StaticFile(name, string(m.data), 0o644))
	}
	records = append(records,
		cpio.StaticFile("modules.list", list.String(), 0o644),
		cpio.StaticFile("init", string(agent), 0o755))
	if err := cpio.WriteRecords(rw, records); err != nil {
		return err
	}
	return cpio.WriteTrailer(rw)
}

func imageHash(agent []byte, modules []module) string {
	parts := [][]byte{[]byte(imageFormat), agent}
	for _, m := range modules {
		parts = append(parts, []byte(m.name), m.data)
	}
	return hash(parts...)
}

// hash is 16 hexadecimal digits that tell contents apart, lengths included.
func hash(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// cached makes the file name unless it is there, and marks it as used.
func cached(name string, write func(io.Writer) error) error {
	now := time.Now()
	if os.Chtimes(name, now, now) == nil {
		return nil
	}
	if _, err := os.Stat(name); err == nil { // another user's cache: whole all the same
		return nil
	}
	return atomicfile.WriteFunc(name, 0o644, write)
}

// prune removes images that were not used for imageAge, and what a killed run left half written. Errors do not matter:
// it is tidying.
func prune(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if i, err := e.Info(); err == nil && time.Since(i.ModTime()) > imageAge {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// HasAgent tells whether this program was built with the guest's agent in it.
func HasAgent() bool {
	b, err := agentbin.Agent()
	return err == nil && len(b) > 0
}
