package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "lab", "demo-123", "0", strings.Repeat("x", 32)} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", "../../etc", "a/b", "/", "-a", "A", "a b", "a\x00", "ä", ".new-1", strings.Repeat("x", 33)} {
		if CheckName(name) == nil {
			t.Errorf("%q is taken", name)
		}
		if removed, err := Down(within.Context(t), new(host.Pool), name); err == nil || len(removed) > 0 {
			t.Errorf("down %q removed %q, %v", name, removed, err)
		}
	}
}

func TestGuest(t *testing.T) {
	side := func(name, state string, err error) Side { return Side{Name: name, RunState: state, Err: err} }
	gone := os.ErrProcessDone
	for _, c := range []struct {
		sides      []Side
		want       string
		mend, dead bool
	}{
		{nil, "no guest had been started", false, true},
		{[]Side{side("source", "running", nil), side("destination", "inmigrate", nil)}, "source running, destination inmigrate", false, false},
		{[]Side{side("source", "postmigrate", nil), side("destination", "running", nil)}, "source postmigrate, destination running", false, false},
		{[]Side{side("source", "postmigrate", nil), side("destination", "paused", nil)}, "source postmigrate, destination paused: no side runs the guest", true, false},
		{[]Side{side("source", "running", nil), side("destination", "running", nil)}, "source running, destination running: THE GUEST RUNS TWICE", false, false},
		{[]Side{side("source", "", gone), side("destination", "", gone)}, "source dead, destination dead: no side runs the guest", false, true},
		{[]Side{side("source", "", ErrInUse), side("destination", "", ErrInUse)}, "source in use, destination in use", false, false},
		{[]Side{side("source", "", context.DeadlineExceeded), side("destination", "paused", nil)}, "source does not answer, destination paused", false, false},
	} {
		s := Status{Sides: c.sides}
		if got := s.Guest(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
		if got := s.Mend(); (got != "") != c.mend {
			t.Errorf("%s: mend %q", c.want, got)
		}
		if s.Dead() != c.dead {
			t.Errorf("%s: dead is %v", c.want, s.Dead())
		}
	}
}

// TestSweep is played where /run is the test's own, so that nobody else's lab can be swept.
func TestSweep(t *testing.T) {
	const child = "QMIGRATE_LAB_TEST_CHILD"
	if os.Getenv(child) != "" {
		sweep(t)
		return
	}
	c := within.Command(t, "/proc/self/exe", "-test.run=^TestSweep$", "-test.v")
	c.Env = append(os.Environ(), child+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	if os.Geteuid() == 0 {
		c.SysProcAttr.Cloneflags &^= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings, c.SysProcAttr.GidMappings = nil, nil
	}
	out, err := c.CombinedOutput()
	if err != nil && len(out) == 0 {
		guesttest.Unable(t, "no namespaces can be had: ", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("--- SKIP")) {
		guesttest.Unable(t, string(out))
	}
}

func sweep(t *testing.T) {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Skip("make mounts private: ", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		t.Skip("mount a /run: ", err)
	}
	if labs, err := List(within.Context(t), new(host.Pool)); err != nil || len(labs) != 0 {
		t.Fatalf("without a folder: %v, %v", labs, err)
	}
	if said, err := Sweep(within.Context(t), new(host.Pool)); err != nil || len(said) != 0 {
		t.Fatalf("without a folder: swept %q, %v", said, err)
	}

	// One of each kind: claimed by this process, kept, of a dead process, of a process whose number another has now, foreign.
	start, err := host.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	dead := within.Command(t, "true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := claim("mine", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := claim("mine", ""); err == nil || !strings.Contains(err.Error(), "`qmigrate lab down mine` removes it") {
		t.Errorf("claimed twice: %v", err)
	}
	if _, err := claim("../mine", ""); err == nil {
		t.Error("claimed a folder elsewhere")
	}
	put := func(name string, s state) {
		t.Helper()
		dir := filepath.Join(Folder(), name)
		s.Owner = name
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := write(dir, s); err != nil {
			t.Fatal(err)
		}
	}
	vm := &vmState{"netns:qmig-x-a", dead.Process.Pid, guest.Spec{Name: "x", Dir: filepath.Join(Folder(), "killed", "a")}}
	put("kept", state{})
	put("killed", state{PID: dead.Process.Pid, StartTime: 1, Source: vm, Destination: vm})
	put("reused", state{PID: os.Getpid(), StartTime: start + 1})
	foreign := filepath.Join(Folder(), "foreign")
	if err := os.MkdirAll(filepath.Join(foreign, "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(Folder(), "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{beingMade + "1", beingRemoved + "x"} {
		if err := os.Mkdir(filepath.Join(Folder(), name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(Folder(), beingRemoved+"x"), long, long); err != nil {
		t.Fatal(err)
	}

	labs, err := List(within.Context(t), new(host.Pool))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range labs {
		names = append(names, l.Owner)
		if l.Owned != (l.Owner == "mine") || l.Kept != (l.Owner == "kept") {
			t.Errorf("%s: owned %v, kept %v", l.Owner, l.Owned, l.Kept)
		}
	}
	if !slices.Equal(names, []string{"kept", "killed", "mine", "reused"}) {
		t.Errorf("labs %q", names)
	}
	said, err := Sweep(within.Context(t), new(host.Pool))
	if err != nil || len(said) != 2 || !strings.HasPrefix(said[0], "killed was left by a run that was killed (source dead, destination dead: no side runs the guest): removed ") ||
		!strings.HasPrefix(said[1], "reused was left by a run that was killed") {
		t.Errorf("swept %q, %v", said, err)
	}
	if said, err := Sweep(within.Context(t), new(host.Pool)); err != nil || len(said) != 0 {
		t.Errorf("swept again %q, %v", said, err)
	}
	for _, name := range []string{"foreign", "link"} {
		if removed, err := Down(within.Context(t), new(host.Pool), name); err != nil || len(removed) != 0 {
			t.Errorf("down %s removed %q, %v", name, removed, err)
		}
	}
	if removed, err := Down(within.Context(t), new(host.Pool), "kept"); err != nil || !slices.Equal(removed, []string{filepath.Join(Folder(), "kept")}) {
		t.Errorf("down kept removed %q, %v", removed, err)
	}
	var left []string
	entries, err := os.ReadDir(Folder())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if !slices.Equal(left, []string{beingMade + "1", "foreign", "link", "mine"}) {
		t.Errorf("left %q", left)
	}
	if _, err := os.Stat(filepath.Join(foreign, "deep")); err != nil {
		t.Error(err)
	}

	// A state that is not one is nobody's process: it is swept, and nothing else follows from it.
	if err := os.Mkdir(filepath.Join(Folder(), "garbled"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(Folder(), "garbled", "state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if said, err := Sweep(within.Context(t), new(host.Pool)); err != nil || len(said) != 1 {
		t.Errorf("a garbled state: swept %q, %v", said, err)
	}

	// A folder that others may write into is not believed.
	if err := os.Chmod(Folder(), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := List(within.Context(t), new(host.Pool)); err == nil || !strings.Contains(err.Error(), "is not this user's alone") {
		t.Errorf("list: %v", err)
	}
	if _, err := claim("x", ""); err == nil {
		t.Error("claimed")
	}
	if _, err := Down(within.Context(t), new(host.Pool), "mine"); err == nil {
		t.Error("down")
	}
}

// FuzzState: a state that can be read is written as it was; what cannot be read leaves none.
func FuzzState(f *testing.F) {
	b, err := json.Marshal(state{Owner: "lab", PID: 7, StartTime: 9, Made: time.Unix(1, 2).UTC(), Source: &vmState{"netns:a", 8, guest.Spec{Name: "a", Memory: 1 << 28}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	f.Add([]byte(`{"pid":-1,"source":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "state.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := read(dir)
		if err != nil {
			return
		}
		if err := write(dir, s); err != nil {
			var unsupported *json.MarshalerError // a year that RFC 3339 has not
			if errors.As(err, &unsupported) {
				return
			}
			t.Fatal(err)
		}
		again, err := read(dir)
		if err != nil {
			t.Fatal(err)
		}
		one, _ := json.Marshal(s)
		other, _ := json.Marshal(again)
		if !bytes.Equal(one, other) {
			t.Fatalf("%s\n%s", one, other)
		}
	})
}
