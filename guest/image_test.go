package guest_test

import (
	"bytes"
	"os"
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
	image, err := guest.BuildImage(within.Context(t), guest.ImageSpec{Agent: agent})
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(image.Initrd)
	names, content := readBack(t, image.Initrd)
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
	again, err := guest.BuildImage(within.Context(t), guest.ImageSpec{Agent: agent})
	if err != nil || again != image {
		t.Errorf("%+v %v, before %+v", again, err, image)
	}
	other, err := guest.BuildImage(within.Context(t), guest.ImageSpec{Agent: []byte("another")})
	if err != nil || other.Initrd == image.Initrd || other.Kernel != image.Kernel {
		t.Errorf("%+v %v, before %+v", other, err, image)
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
		image, err := guest.BuildImage(within.Context(t), guest.ImageSpec{Kernel: kernel, CacheDir: cache, Agent: []byte("a")})
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
				if images[i], err = guest.BuildImage(within.Context(t), guest.ImageSpec{Kernel: kernel, Modules: modules, CacheDir: cache, Agent: []byte("b")}); err != nil {
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
		spec guest.ImageSpec
		want string
	}{
		"modules alone":  {guest.ImageSpec{Modules: modules}, "--kernel"},
		"no kernel":      {guest.ImageSpec{Kernel: "/no/kernel"}, "/no/kernel"},
		"not a kernel":   {guest.ImageSpec{Kernel: "/bin/true", Modules: "/no"}, "/no"}, // an ELF file may be one: the modules are what is wrong first
		"text":           {guest.ImageSpec{Kernel: "/etc/passwd"}, "neither"},
		"no modules":     {guest.ImageSpec{Kernel: kernel, Modules: guesttest.Dir(t)}, "no kernel modules"},
		"another kernel": {guest.ImageSpec{Kernel: other, Modules: modules}, "9" + release[1:]},
	} {
		t.Run(name, func(t *testing.T) {
			c.spec.CacheDir, c.spec.Agent = cache, []byte("a")
			image, err := guest.BuildImage(within.Context(t), c.spec)
			if err == nil || image != (guest.Image{}) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v; want an error with %q", image, err, c.want)
			}
		})
	}
}
