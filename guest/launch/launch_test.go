package launch_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/launch"
)

var update = flag.Bool("update", false, "write the golden files and docs/launch.md")

func TestMain(m *testing.M) { guesttest.Main(m) }

// The files are: a comment, the source's command line one argument a line, the Options, and what comes of it.
func TestIncomingArgs(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
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
			var l launch.Options
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
			line, err := launch.Destination(args, l)
			var b strings.Builder
			if err != nil {
				if line != nil {
					t.Errorf("%v with an error", line)
				}
				fmt.Fprintf(&b, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nerror: "))
			} else {
				fmt.Fprintf(&b, "%s\n\n", strings.Join(line.Args, "\n"))
				for _, c := range line.Changes {
					fmt.Fprintf(&b, "# %s\n", c)
				}
				for _, f := range line.Forwards {
					fmt.Fprintf(&b, "later: hostfwd_remove %s; hostfwd_add %s\n", strings.TrimSpace(f.Netdev+" "+f.Address()),
						strings.TrimSpace(f.Netdev+" "+f.Rule))
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
	for _, s := range []string{"q\n-S", "q\n-qmp\nunix:/a,server", "q\n-chardev\nsocket,id=a,path=/b,,c,server=on",
		"q\n-vnc\n:1,password=on\n-M\nq35,a=b", "q\n-netdev\n{\"type\":\"tap\"}", "q\n-serial\nmon:tcp::1,server=on\n-incoming\nfd:1",
		"q\n-spice\nport=1\n-drive\nfile=/a", "q\n-monitor\nunix:,server", "q\n-D\n", "q\n-chardev\nfile,path=../..,id=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l := launch.Options{Dir: "/run/b", Machine: "pc-q35-7.2"}
		line, err := launch.Destination(strings.Split(s, "\n"), l)
		if err != nil {
			if line != nil {
				t.Errorf("%v with %v", line, err)
			}
			return
		}
		out := line.Args
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
		again, err := launch.Destination(out, l)
		if err != nil || !slices.Equal(again.Args, out) {
			t.Errorf("of %q\ncame %q\nand of that %q, %v", s, out, again, err)
		}
	})
}
