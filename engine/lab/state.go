package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"qmigrate/guest"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/internal/atomicfile"
	"qmigrate/internal/procfs"
	"qmigrate/qmp"
)

// state is what a lab leaves in its folder, so that another process can use it, or clean up after one that was killed.
type state struct {
	Owner       string       `json:"owner"`
	PID         int          `json:"pid"` // of the process that made it and has not kept it; 0: it is to stand
	StartTime   uint64       `json:"start_time"`
	Made        time.Time    `json:"made"`
	LinkRate    int64        `json:"link_rate_bytes_per_s"`
	Source      *vmState     `json:"source,omitempty"`
	Destination *vmState     `json:"destination,omitempty"`
	Server      *serverState `json:"server,omitempty"` // of the guest's storage
	Tool        *serverState `json:"tool,omitempty"`   // the other end of the guest's workload
}

type vmState struct {
	Host string     `json:"host"`
	PID  int        `json:"pid"`
	Spec guest.Spec `json:"spec"`
}

// Folder is where labs keep their sockets, logs and state: /run/qmigrate as root; else one of the user's in the folder for
// temporary files, which is the same inside and outside of the namespaces that stand in for root.
func Folder() string {
	uid := os.Getuid()
	if hostnet.Inside() {
		b, _ := os.ReadFile("/proc/self/uid_map")
		if ids, _ := procfs.ParseIDs(b); len(ids) > 0 {
			uid = int(ids[0].Outside)
		}
	} else if uid == 0 {
		return "/run/qmigrate"
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("qmigrate-%d", uid))
}

// What a folder is called while it is being made and while it is being removed: a lab's folder under its own name always has its
// state in it, whenever we may have been killed.
const (
	beingMade    = ".new-"
	beingRemoved = ".old-"
)

// CheckName refuses what cannot be a lab's name: it is part of the names of folders and namespaces.
func CheckName(name string) error {
	for i, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && (i == 0 || r != '-') {
			return fmt.Errorf("%q cannot be a lab's name: small letters, digits and, not first, -", name)
		}
	}
	if len(name) < 1 || len(name) > 32 {
		return fmt.Errorf("%q cannot be a lab's name: it may have 1 to 32 letters", name)
	}
	return nil
}

// trusted refuses a folder for labs that somebody else could have filled: what is in it is believed.
func trusted() error {
	info, err := os.Lstat(Folder())
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("the folder for labs, %s, is not this user's alone: remove it, or set TMPDIR to another place", Folder())
	}
	return nil
}

// claim makes the lab's folder; a folder that is there belongs to a lab that stands.
func claim(owner string) (_ string, err error) {
	if err := CheckName(owner); err != nil {
		return "", err
	}
	if err := os.MkdirAll(Folder(), 0o700); err != nil {
		return "", fmt.Errorf("make lab folder: %w", err)
	}
	if err := trusted(); err != nil {
		return "", err
	}
	start, err := host.StartTime(os.Getpid())
	if err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(Folder(), beingMade)
	if err != nil {
		return "", fmt.Errorf("make lab folder: %w", err)
	}
	defer os.RemoveAll(made)
	if err := write(made, state{Owner: owner, PID: os.Getpid(), StartTime: start, Made: time.Now()}); err != nil {
		return "", err
	}
	dir := filepath.Join(Folder(), owner)
	if err := os.Rename(made, dir); errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return "", fmt.Errorf("lab %s exists: `qmigrate lab down %s` removes it", owner, owner)
	} else if err != nil {
		return "", fmt.Errorf("make lab folder: %w", err)
	}
	return dir, nil
}

func write(dir string, s state) error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(dir, "state.json"), b, 0o600); err != nil {
		return fmt.Errorf("write lab state: %w", err)
	}
	return nil
}

func read(dir string) (state, error) {
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return state{}, err
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return state{}, fmt.Errorf("read state of lab %s: %w", filepath.Base(dir), err)
	}
	return s, nil
}

// sides are the QEMUs of the lab in dir: those of its state and, where a run was killed before it could write them down, those whose
// process number is in their own folder.
func (s state) sides(dir string) (source, destination *vmState) {
	find := func(noted, other *vmState, host, back string) *vmState {
		if noted != nil {
			return noted
		}
		if other != nil && filepath.Base(other.Spec.Dir) == host { // the guest has moved: the one that waits is where it came from
			host = back
		}
		spec := guest.Spec{Dir: filepath.Join(dir, host)}
		b, err := os.ReadFile(spec.Socket("pid"))
		if err != nil {
			return nil
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return nil
		}
		return &vmState{fmt.Sprintf("netns:qmig-%s-%s", s.Owner, host), pid, spec}
	}
	return find(s.Source, s.Destination, sourceHost, destinationHost), find(s.Destination, s.Source, destinationHost, sourceHost)
}

func (l *Lab) state() state {
	s := state{Owner: l.spec.Owner, PID: os.Getpid(), Made: time.Now(), LinkRate: l.spec.LinkRate}
	if old, err := read(l.dir); err == nil {
		s.PID, s.StartTime, s.Made = old.PID, old.StartTime, old.Made
	}
	note := func(vm *guest.VM) *vmState {
		if vm == nil {
			return nil
		}
		return &vmState{vm.Host().Name(), vm.Process().PID(), vm.Spec()}
	}
	s.Source, s.Destination = note(l.source), note(l.destination)
	if l.disks != nil {
		s.Server = l.disks.server.state(l.network.Observer())
	}
	if l.tools != nil && l.tools.iperf != nil {
		s.Tool = (&server{proc: l.tools.iperf.proc}).state(l.network.Observer())
	}
	return s
}

func (l *Lab) save() error { return write(l.dir, l.state()) }

func (l *Lab) keep() error {
	s := l.state()
	s.PID, s.StartTime = 0, 0
	return write(l.dir, s)
}

func release(dir string) error {
	old := filepath.Join(filepath.Dir(dir), beingRemoved+filepath.Base(dir))
	if err := os.Rename(dir, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lab folder: %w", err)
	}
	return os.RemoveAll(old)
}

// Side is one QEMU of a standing lab.
type Side struct {
	Name     string // source or destination
	Host     string
	Endpoint string // as `qmigrate migrate` takes it
	PID      int
	RunState string // query-status; empty if it cannot be asked
	Err      error  // why not
}

// Status is a lab as it stands.
type Status struct {
	Owner string
	Dir   string
	Made  time.Time
	Owned bool // by a process that still runs
	Kept  bool // meant to stand without one
	Sides []Side
}

// List says which labs there are.
func List(ctx context.Context) ([]Status, error) {
	switch err := trusted(); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list labs: %w", err)
	}
	entries, err := os.ReadDir(Folder())
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var all []Status
	for _, e := range entries {
		if e.IsDir() && ours(filepath.Join(Folder(), e.Name())) {
			all = append(all, Inspect(ctx, e.Name()))
		}
	}
	return all, nil
}

// ErrInUse is why a side of a lab is not asked: its owner runs.
var ErrInUse = errors.New("in use by a running qmigrate")

// ours tells a lab's folder, by its state, from one that somebody put there.
func ours(dir string) bool {
	info, err := os.Lstat(filepath.Join(dir, "state.json"))
	return err == nil && info.Mode().IsRegular() && CheckName(filepath.Base(dir)) == nil
}

// Inspect looks at one lab, each of its QEMUs for at most half a second.
func Inspect(ctx context.Context, owner string) Status {
	dir := filepath.Join(Folder(), owner)
	st := Status{Owner: owner, Dir: dir}
	s, err := read(dir)
	if err != nil {
		return st // somebody else's folder, or one that has just gone
	}
	st.Made, st.Kept = s.Made, s.PID == 0
	if s.PID != 0 {
		_, err := host.FindProcess(s.PID, s.StartTime)
		st.Owned = err == nil
	}
	// QEMU finishes alone the migration of a run that was killed, and the two sides are asked one after the other: only what they
	// say twice have they said together.
	look := func() []Side { return s.look(ctx, dir, st.Owned) }
	st.Sides = look()
	for range 10 {
		again := look()
		if slices.EqualFunc(st.Sides, again, func(a, b Side) bool { return a.RunState == b.RunState && (a.Err == nil) == (b.Err == nil) }) {
			break
		}
		st.Sides = again
	}
	return st
}

// look asks each side once.
func (s state) look(ctx context.Context, dir string, owned bool) (sides []Side) {
	source, destination := s.sides(dir)
	for _, v := range []struct {
		name string
		vm   *vmState
	}{{"source", source}, {"destination", destination}} {
		if v.vm == nil {
			continue
		}
		side := Side{Name: v.name, Host: v.vm.Host, PID: v.vm.PID, Endpoint: "unix:" + v.vm.Spec.Dir}
		if owned {
			side.Err = ErrInUse // its monitors serve the owner
		} else {
			side.RunState, side.Err = runState(ctx, v.vm)
		}
		sides = append(sides, side)
	}
	return sides
}

func runState(ctx context.Context, v *vmState) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	at, err := host.Find(ctx, v.Host)
	if err != nil {
		at = host.Local()
	}
	vm, err := guest.Open(ctx, at, v.Spec, v.PID)
	if err != nil {
		return "", err
	}
	nc, err := vm.Dial(ctx, guest.Control)
	if err != nil {
		return "", err
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return "", err
	}
	defer c.Close()
	status, err := c.QueryStatus(ctx)
	return status.Status, err
}

// Guest says in one sentence which side runs the lab's guest.
func (s Status) Guest() string {
	var parts []string
	running, unknown := 0, false
	for _, side := range s.Sides {
		what := side.RunState
		switch {
		case errors.Is(side.Err, os.ErrProcessDone):
			what = "dead"
		case errors.Is(side.Err, ErrInUse):
			what, unknown = "in use", true
		case side.Err != nil:
			what, unknown = "does not answer", true
		}
		if what == "running" {
			running++
		}
		parts = append(parts, side.Name+" "+what)
	}
	text := strings.Join(parts, ", ")
	switch {
	case len(parts) == 0:
		return "no guest had been started"
	case running > 1:
		return text + ": THE GUEST RUNS TWICE"
	case running == 1 || unknown:
		return text
	}
	return text + ": no side runs the guest"
}

// Dead tells whether the lab has no QEMU any more.
func (s Status) Dead() bool {
	return !slices.ContainsFunc(s.Sides, func(side Side) bool { return !errors.Is(side.Err, os.ErrProcessDone) })
}

// Mend is what to do about a lab whose guest runs nowhere though both its QEMUs are there; empty if nothing is.
func (s Status) Mend() string {
	if len(s.Sides) != 2 || s.Owned || s.Sides[0].Err != nil || s.Sides[0].RunState == "running" || s.Sides[1].RunState == "running" {
		return ""
	}
	return fmt.Sprintf("no side runs the guest: `qmigrate migrate --recover --source %s --destination %s` runs it where that is safe", s.Sides[0].Endpoint, s.Sides[1].Endpoint)
}

// Down removes a lab: its QEMUs, its network, its folder. removed names what went.
func Down(ctx context.Context, owner string) (removed []string, err error) {
	if err := CheckName(owner); err != nil {
		return nil, err
	}
	if err := trusted(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	dir := filepath.Join(Folder(), owner)
	var errs []error
	if s, err := read(dir); err == nil {
		source, destination := s.sides(dir)
		for _, v := range []*vmState{destination, source} {
			if v == nil {
				continue
			}
			at, err := host.Find(ctx, v.Host)
			if err != nil {
				at = host.Local() // the namespace has lost its name, but not its processes
			}
			if vm, err := guest.Open(ctx, at, v.Spec, v.PID); err == nil {
				removed = append(removed, fmt.Sprintf("QEMU %d on %s", v.PID, v.Host))
				errs = append(errs, vm.Close())
			}
		}
	}
	if s, err := read(dir); err == nil && s.Server != nil {
		removed = append(removed, fmt.Sprintf("storage server %d", s.Server.PID))
		errs = append(errs, s.Server.end(ctx))
	}
	if s, err := read(dir); err == nil && s.Tool != nil {
		removed = append(removed, fmt.Sprintf("iperf3 %d", s.Tool.PID))
		errs = append(errs, s.Tool.end(ctx))
	}
	names, err := hostnet.Remove(ctx, owner)
	removed, errs = append(removed, names...), append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return removed, err // the folder stays: it is what the next attempt knows the rest by
	}
	if ours(dir) {
		removed, errs = append(removed, dir), append(errs, release(dir))
	}
	return removed, errors.Join(errs...)
}

// Sweep removes what killed runs left behind, and says of each where its guest was; labs that stand, and those of processes
// that run, stay. For each, said is one sentence.
func Sweep(ctx context.Context) (said []string, err error) {
	labs, err := List(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range []string{beingMade, beingRemoved} {
		folders, _ := filepath.Glob(filepath.Join(Folder(), name+"*"))
		for _, f := range folders {
			if time.Since(modified(f)) > time.Minute { // or somebody is just at it
				errs = append(errs, os.RemoveAll(f))
			}
		}
	}
	for _, l := range labs {
		if l.Kept || l.Owned {
			continue
		}
		where := l.Guest()
		removed, err := Down(ctx, l.Owner)
		errs = append(errs, err)
		said = append(said, fmt.Sprintf("%s was left by a run that was killed (%s): removed %s", l.Owner, where, strings.Join(removed, ", ")))
	}
	return said, errors.Join(errs...)
}

func modified(name string) time.Time {
	info, err := os.Stat(name)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
