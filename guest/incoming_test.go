package guest_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// A guest that a user started moves to the destination that its own command line describes.
func TestStartIncoming(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		base := guesttest.Dir(t)
		src, err := guest.StartIncoming(limited(t), host.Local(),
			host.Command{Args: []string{bin, "-nodefaults", "-display", "none", "-machine", "q35", "-m", "63",
				"-chardev", "socket,id=control,path=" + base +
					"/src/control.qmp,server=on,wait=off", "-mon", "chardev=control,mode=control",
				"-serial", "file:" + base + "/src/serial.log", "-pidfile", base + "/src/pid", "-device", "virtio-rng-pci"}},
			base+"/src")
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		// The program is QEMU itself by now: the wrapper's folder of data is on its command line, that of libraries in its
		// environment.
		p, err := launch.ReadProcess(src.Process().PID())
		if err != nil {
			t.Fatal(err)
		}
		c := monitor(t, src)
		machine, err := c.MachineType(limited(t))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		line, err := launch.Destination(p.Args, launch.Options{Dir: base + "/dst", Machine: machine})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range line.Changes {
			t.Log(c)
		}
		// One that was started by hand does not say where its modules are.
		const modules = "QEMU_MODULE_DIR="
		env := slices.DeleteFunc(slices.Clone(p.Env), func(v string) bool { return strings.HasPrefix(v, modules) })
		again := host.Command{Args: line.Args, Env: env, Only: true, Dir: p.Dir}
		dst, err := guest.StartIncoming(limited(t), host.Local(), again, base+"/dst")
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		started, err := launch.ReadProcess(dst.Process().PID())
		if err != nil {
			t.Fatal(err)
		}
		if own := debian.OwnModules(bin); own != "" && !slices.Contains(started.Env, modules+own) {
			t.Errorf("environment %q: no %s", started.Env, modules+own)
		}
		c = monitor(t, dst)
		if s, err := c.QueryStatus(limited(t)); err != nil || s.Status != "inmigrate" {
			t.Errorf("%+v %v", s, err)
		}
		c.Close()
		migrate(t, src, dst, filepath.Join(base, "m.sock"))
		if _, err := guest.StartIncoming(limited(t), host.Local(), again, base+"/dst"); err == nil || !strings.Contains(err.Error(), "exists") {
			t.Error(err)
		}
		for range 2 {
			if err := errors.Join(dst.Close(), src.Close()); err != nil {
				t.Error(err)
			}
		}
		gone(t, base+"/dst")
	})
}
