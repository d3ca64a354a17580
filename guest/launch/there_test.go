package launch_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
)

// other is this machine behind a helper that has a folder of its own at dir/apart.
func other(t *testing.T, dir string) host.Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a mount that the other host alone has")
	}
	apart := filepath.Join(dir, "apart")
	if err := os.MkdirAll(apart, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := hosttest.New(t, map[string]hosttest.Machine{"b": {Enter: []string{"unshare", "-m", "sh", "-c",
		"mount -t tmpfs qmig " + apart + ` && exec "$@"`, "sh"}}})
	h, err := hosts.Pool.Find(within.Context(t), "ssh://b")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestCompare: whether two hosts have one file is known by a file beside it, either way round; content alone only shows
// that two differ.
func TestCompare(t *testing.T) {
	dir := guesttest.Dir(t)
	h := other(t, dir)
	write := func(at host.Host, name, text string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := at.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, c := range []struct {
		name, here, there string
		want              launch.Likeness
	}{{"shared", "x", "x", launch.SameFile}, {"apart/copy", "x", "x", launch.CopiedFile}, {"apart/changed", "x", "y", launch.DifferentFile},
		{"apart/longer", "x", "xx", launch.DifferentFile}} {
		name := write(host.Local(), c.name, c.here)
		if c.name != "shared" {
			write(h, c.name, c.there)
		}
		for _, way := range [][2]host.Host{{host.Local(), h}, {h, host.Local()}} {
			if got, err := launch.Compare(within.Context(t), way[0], 0, name, way[1], name); got != c.want || err != nil {
				t.Errorf("%s, from %s: %s, %v; want %s", c.name, way[0].Name(), got, err, c.want)
			}
		}
	}
	// as a process sees it, by a link
	link := filepath.Join(dir, "link")
	if err := os.Symlink("shared", link); err != nil {
		t.Fatal(err)
	}
	if got, err := launch.Compare(within.Context(t), host.Local(), os.Getpid(), link, h, filepath.Join(dir, "shared")); got != launch.SameFile || err != nil {
		t.Errorf("a link: %s, %v", got, err)
	}
	if _, err := launch.Compare(within.Context(t), host.Local(), 0, write(host.Local(), "apart/mine", "x"), h,
		filepath.Join(dir, "apart/mine")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// nobody can make a file there
	if b, err := os.ReadFile("/sys/kernel/notes"); err == nil && len(b) > 0 {
		if got, err := launch.Compare(within.Context(t), host.Local(), 0, "/sys/kernel/notes", h, "/sys/kernel/notes"); got != launch.UnknownFile || err != nil {
			t.Errorf("a file beside which none can be made: %s, %v", got, err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*", ".qmigrate-*"))
	more, _ := filepath.Glob(filepath.Join(dir, ".qmigrate-*"))
	if len(left)+len(more) > 0 {
		t.Errorf("left: %v %v", left, more)
	}
}

// TestLacks: what is not there, or not free, is named with what names another.
func TestLacks(t *testing.T) {
	dir := guesttest.Dir(t)
	h := other(t, dir)
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	needs := []launch.Need{{Kind: launch.NeedFile, Name: "/dev/null", Option: "-initrd"}, {Kind: launch.NeedTAP, Name: "lo"},
		{Kind: launch.NeedUDP, Name: port}}
	if err := launch.Lacks(within.Context(t), h, needs); err != nil {
		t.Error(err)
	}
	bad := []launch.Need{{Kind: launch.NeedFile, Name: dir + "/none", Option: "-kernel"},
		{Kind: launch.NeedTAP, Name: "qmignone", Option: "-netdev"}, {Kind: launch.NeedTCP, Name: port, Option: "port"}}
	for i, want := range []struct{ text, setting string }{{dir + "/none of host ssh://b: it is not there", "Paths"},
		{"qmignone of host ssh://b: it is not there", "TAPs"}, {"TCP port " + port + " of host ssh://b: somebody has it", "Ports"}} {
		err := launch.Lacks(within.Context(t), h, append(needs, bad[i]))
		var refused *launch.ArgumentError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want.text) || refused.Setting != want.setting {
			t.Errorf("%v", err)
		}
	}
}
