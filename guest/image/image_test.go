package image_test

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/image"
)

// readBack is an initramfs: names in order, and contents.
func readBack(t *testing.T, file string) (names []string, content map[string]string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	content = map[string]string{}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		names = append(names, r.Name)
		if r.ReaderAt == nil {
			continue
		}
		buf := make([]byte, r.FileSize)
		if _, err := r.ReadAt(buf, 0); err != nil && len(buf) > 0 {
			t.Fatal(err)
		}
		content[r.Name] = string(buf)
	}
	return names, content
}

func TestImage(t *testing.T) {
	guesttest.Image(t) // there is a kernel, or the test is skipped
	agent := []byte("the agent")
	made, err := image.Build(within.Context(t), image.Spec{Agent: agent})
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(made.Initrd)
	names, content := readBack(t, made.Initrd)
	if content["init"] != string(agent) {
		t.Errorf("init is %q", content["init"])
	}
	list := strings.Fields(content["modules.list"])
	at := func(module string) int {
		return slices.IndexFunc(list, func(l string) bool { return strings.HasSuffix(l, "-"+module+".ko") })
	}
	for _, c := range [][2]string{ // each loads before the other
		{"virtio_ring", "virtio"}, {"virtio", "virtio_pci"}, {"virtio_pci_modern_dev", "virtio_pci"}, {"virtio_pci_legacy_dev", "virtio_pci"},
		{"failover", "net_failover"}, {"net_failover", "virtio_net"}, {"virtio_ring", "virtio_console"}, {"virtio", "virtio_blk"},
	} {
		if a, b := at(c[0]), at(c[1]); a < 0 || b < 0 || a > b {
			t.Errorf("%s is at %d, %s at %d of %q", c[0], a, c[1], b, list)
		}
	}
	for _, l := range list {
		if !strings.HasPrefix(content[strings.TrimPrefix(l, "/")], "\x7fELF") {
			t.Errorf("%s is no module", l)
		}
	}
	if !slices.IsSorted(list) {
		t.Errorf("names do not sort in load order: %q", list)
	}
	for _, n := range []string{"dev/console", "dev/null", "proc", "sys"} {
		if !slices.Contains(names, n) {
			t.Errorf("no %s in %q", n, names)
		}
	}
	// The same parts, the same files; another agent, another initramfs and the same kernel.
	again, err := image.Build(within.Context(t), image.Spec{Agent: agent})
	if err != nil || again != made {
		t.Errorf("%+v %v, before %+v", again, err, made)
	}
	other, err := image.Build(within.Context(t), image.Spec{Agent: []byte("another")})
	if err != nil || other.Initrd == made.Initrd || other.Kernel != made.Kernel {
		t.Errorf("%+v %v, before %+v", other, err, made)
	}
	os.Remove(other.Initrd)
}

func debianKernel(t *testing.T) (kernel, modules string) {
	t.Helper()
	guesttest.Image(t)
	dir, err := debian.Find(debian.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	k, _ := filepath.Glob(dir + "/boot/vmlinuz-*")
	m, _ := filepath.Glob(dir + "/lib/modules/*")
	if len(k) != 1 || len(m) != 1 {
		t.Fatalf("%q %q", k, m)
	}
	return k[0], m[0]
}

func TestOwnKernel(t *testing.T) {
	kernel, modules := debianKernel(t)
	cache := guesttest.Dir(t)
	t.Run("built in", func(t *testing.T) {
		image, err := image.Build(within.Context(t), image.Spec{Kernel: kernel, CacheDir: cache, Agent: []byte("a")})
		if err != nil {
			t.Fatal(err)
		}
		if _, content := readBack(t, image.Initrd); content["modules.list"] != "" {
			t.Errorf("modules: %q", content["modules.list"])
		}
	})
	t.Run("at once", func(t *testing.T) {
		var wg sync.WaitGroup
		images := make([]guest.Image, 8)
		for i := range images {
			wg.Go(func() {
				var err error
				if images[i], err = image.Build(within.Context(t), image.Spec{Kernel: kernel, Modules: modules, CacheDir: cache, Agent: []byte("b")}); err != nil {
					t.Error(err)
				}
			})
		}
		within.Wait(t, "the images", &wg)
		for _, i := range images {
			if i != images[0] {
				t.Errorf("%+v and %+v", i, images[0])
			}
		}
		if half, _ := filepath.Glob(cache + "/images/.tmp*"); len(half) > 0 {
			t.Errorf("left: %q", half)
		}
		readBack(t, images[0].Initrd)
	})
	other := filepath.Join(guesttest.Dir(t), "vmlinuz")
	b, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatal(err)
	}
	release := filepath.Base(modules)
	if err := os.WriteFile(other, bytes.Replace(b, []byte(release), []byte("9"+release[1:]), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spec image.Spec
		want string
	}{
		"modules alone":  {image.Spec{Modules: modules}, "give kernel too"},
		"no kernel":      {image.Spec{Kernel: "/no/kernel"}, "/no/kernel"},
		"not a kernel":   {image.Spec{Kernel: "/bin/true", Modules: "/no"}, "/no"}, // an ELF file may be one: the modules are what is wrong first
		"text":           {image.Spec{Kernel: "/etc/passwd"}, "neither"},
		"no modules":     {image.Spec{Kernel: kernel, Modules: guesttest.Dir(t)}, "no kernel modules"},
		"another kernel": {image.Spec{Kernel: other, Modules: modules}, "9" + release[1:]},
	} {
		t.Run(name, func(t *testing.T) {
			c.spec.CacheDir, c.spec.Agent = cache, []byte("a")
			image, err := image.Build(within.Context(t), c.spec)
			if err == nil || image != (guest.Image{}) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v; want an error with %q", image, err, c.want)
			}
		})
	}
}

// The image holds the modules of the hardware asked for and no others: the usual guest's boot pays for nothing else.
func TestImageHardware(t *testing.T) {
	guesttest.Image(t)
	usual := []string{"virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "failover", "net_failover", "virtio_net", "virtio_console", "virtio_blk"}
	for _, c := range []struct {
		spec          image.Spec
		kernel        debian.What
		with, without []string
	}{
		{image.Spec{}, debian.Kernel, usual, []string{"e1000", "sd_mod", "virtio_scsi", "libata"}},
		{image.Spec{NIC: "virtio-net", DiskBus: "virtio-blk"}, debian.Kernel, usual, []string{"e1000", "sd_mod"}},
		{image.Spec{NIC: "vmxnet3", DiskBus: "virtio-scsi"}, debian.Kernel, []string{"vmxnet3", "virtio_scsi", "sd_mod", "scsi_mod", "virtio_console"}, []string{"virtio_net", "virtio_blk"}},
		{image.Spec{NIC: "e1000"}, debian.Generic, []string{"e1000", "virtio_pci", "virtio_console", "virtio_blk"}, []string{"virtio_net", "sd_mod"}},
		{image.Spec{NIC: "e1000e", DiskBus: "ahci"}, debian.Generic, []string{"e1000e", "libata", "libahci", "ahci", "sd_mod"}, []string{"virtio_blk", "virtio_scsi"}},
	} {
		if _, err := debian.Find(c.kernel); err != nil {
			guesttest.Unable(t, err, ": `make deps` gets it")
		}
		image, err := image.Build(t.Context(), c.spec)
		if err != nil {
			t.Fatal(err)
		}
		_, content := readBack(t, image.Initrd)
		var have []string
		for _, l := range strings.Fields(content["modules.list"]) {
			_, name, _ := strings.Cut(strings.TrimSuffix(path.Base(l), ".ko"), "-")
			have = append(have, name)
		}
		for _, name := range c.with {
			if !slices.Contains(have, name) {
				t.Errorf("%+v: no %s in %q", c.spec, name, have)
			}
		}
		for _, name := range c.without {
			if slices.Contains(have, name) {
				t.Errorf("%+v: %s in %q", c.spec, name, have)
			}
		}
		if c.kernel == debian.Kernel && c.spec.NIC != "vmxnet3" && len(have) != len(usual) {
			t.Errorf("%+v: the usual guest loads %q", c.spec, have)
		}
	}
	// A kernel of the user's without the module.
	kernel, modules := debianKernel(t)
	_, err := image.Build(t.Context(), image.Spec{Kernel: kernel, Modules: modules, NIC: "e1000", CacheDir: guesttest.Dir(t)})
	if err == nil || !strings.Contains(err.Error(), "module e1000, needed by the guest, is neither in") {
		t.Errorf("e1000 without its module: %v", err)
	}
}
