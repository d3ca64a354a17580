package guest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/hostnet"
)

// The files are: a comment, the source's command line one argument a line, the Launch, and what comes of it.
func TestIncomingArgs(t *testing.T) {
	files, err := filepath.Glob("testdata/launch/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no command lines: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var args []string
			var l guest.Launch
			var want string
			keep := a.Files[:0]
			for _, f := range a.Files {
				switch f.Name {
				case "source":
					args = strings.Split(strings.TrimSuffix(string(f.Data), "\n"), "\n")
				case "launch.json":
					if err := json.Unmarshal(f.Data, &l); err != nil {
						t.Fatal(err)
					}
				case "want":
					want = string(f.Data)
					continue
				}
				keep = append(keep, f)
			}
			out, changes, err := guest.IncomingArgs(args, l)
			var b strings.Builder
			if err != nil {
				if out != nil || changes != nil {
					t.Errorf("%q %v with an error", out, changes)
				}
				fmt.Fprintf(&b, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nerror: "))
			} else {
				fmt.Fprintf(&b, "%s\n\n", strings.Join(out, "\n"))
				for _, c := range changes {
					fmt.Fprintf(&b, "# %s\n", c)
				}
			}
			if *update {
				a.Files = append(keep, txtar.File{Name: "want", Data: []byte(b.String())})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if b.String() != want {
				t.Errorf("got\n%s\nwant\n%s", b.String(), want)
			}
		})
	}
}

// A destination can be the source of the next migration.
func FuzzIncomingArgs(f *testing.F) {
	for _, s := range []string{"q\n-S", "q\n-qmp\nunix:/a,server", "q\n-chardev\nsocket,id=a,path=/b,,c,server=on", "q\n-vnc\n:1,password=on\n-M\nq35,a=b", "q\n-netdev\n{\"type\":\"tap\"}", "q\n-serial\nmon:tcp::1,server=on\n-incoming\nfd:1",
		"q\n-spice\nport=1\n-drive\nfile=/a", "q\n-monitor\nunix:,server", "q\n-D\n", "q\n-chardev\nfile,path=../..,id=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l := guest.Launch{Dir: "/run/b", Machine: "pc-q35-7.2"}
		out, changes, err := guest.IncomingArgs(strings.Split(s, "\n"), l)
		if err != nil {
			if out != nil || changes != nil {
				t.Errorf("%q %v with %v", out, changes, err)
			}
			return
		}
		count := func(a string) (n int) {
			for _, o := range out {
				if o == a {
					n++
				}
			}
			return n
		}
		if count("-incoming") < 1 || count("-S") < 1 {
			t.Errorf("does not wait: %q", out)
		}
		again, _, err := guest.IncomingArgs(out, l)
		if err != nil || !slices.Equal(again, out) {
			t.Errorf("of %q\ncame %q\nand of that %q, %v", s, out, again, err)
		}
	})
}

// A guest that a user started moves to the destination that its own command line describes.
func TestStartIncoming(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		base := guesttest.Dir(t)
		src, err := guest.StartIncoming(limited(t), hostnet.Local(), []string{bin, "-nodefaults", "-display", "none", "-machine", "q35", "-m", "63",
			"-chardev", "socket,id=control,path=" + base + "/src/control.qmp,server=on,wait=off", "-mon", "chardev=control,mode=control",
			"-serial", "file:" + base + "/src/serial.log", "-pidfile", base + "/src/pid", "-device", "virtio-rng-pci"}, nil, base+"/src")
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", src.Process().PID()))
		if err != nil {
			t.Fatal(err)
		}
		// The program is QEMU itself by now: the wrapper's folder of data is on its command line, that of libraries in its environment.
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", src.Process().PID()))
		if err != nil {
			t.Fatal(err)
		}
		c := monitor(t, src)
		machine, err := c.MachineType(limited(t))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		args, changes, err := guest.IncomingArgs(guest.Cmdline(cmdline), guest.Launch{Dir: base + "/dst", Machine: machine})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			t.Log(c)
		}
		dst, err := guest.StartIncoming(limited(t), hostnet.Local(), args, guest.Cmdline(environ), base+"/dst")
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		c = monitor(t, dst)
		if s, err := c.QueryStatus(limited(t)); err != nil || s.Status != "inmigrate" {
			t.Errorf("%+v %v", s, err)
		}
		c.Close()
		migrate(t, src, dst, filepath.Join(base, "m.sock"))
		if _, err := guest.StartIncoming(limited(t), hostnet.Local(), args, nil, base+"/dst"); err == nil || !strings.Contains(err.Error(), "exists") {
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
