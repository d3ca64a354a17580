package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/lab/load"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

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
func List(ctx context.Context, hosts *host.Pool) ([]Status, error) {
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
		if e.IsDir() && isLab(filepath.Join(Folder(), e.Name())) {
			all = append(all, Inspect(ctx, hosts, e.Name()))
		}
	}
	return all, nil
}

// ErrInUse is why a side of a lab is not asked: its owner runs.
var ErrInUse = errors.New("in use by a running qmigrate")

// Inspect looks at one lab, each of its QEMUs for at most two seconds.
func Inspect(ctx context.Context, hosts *host.Pool, owner string) Status {
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
	// QEMU finishes alone the migration of a run that was killed, and the two sides are asked one after the other: only
	// what they say twice have they said together.
	look := func() []Side { return s.look(ctx, hosts, st.Owned) }
	st.Sides = look()
	for range 10 {
		again := look()
		if slices.EqualFunc(st.Sides, again, func(a, b Side) bool {
			return a.RunState == b.RunState &&
				(a.Err == nil) == (b.Err == nil)
		}) {
			break
		}
		st.Sides = again
	}
	return st
}

// look asks each side once.
func (s state) look(ctx context.Context, hosts *host.Pool, owned bool) (sides []Side) {
	source, destination := s.sides(ctx, hosts)
	for _, v := range []struct {
		name string
		vm   *vmState
	}{{"source", source}, {"destination", destination}} {
		if v.vm == nil {
			continue
		}
		side := Side{Name: v.name, Host: v.vm.Host, PID: v.vm.PID, Endpoint: endpointOf(v.vm.Host, v.vm.Spec.Dir)}
		if owned {
			side.Err = ErrInUse // its monitors serve the owner
		} else {
			side.RunState, side.Err = runState(ctx, hosts, v.vm)
		}
		sides = append(sides, side)
	}
	return sides
}

// endpointOf is a QEMU's folder of sockets as `qmigrate migrate` takes it.
func endpointOf(at, dir string) string {
	kind, name, _ := strings.Cut(at, ":")
	switch kind {
	case "lxc":
		if folder, ok := strings.CutPrefix(name, string(host.LibLXC)+"/"); ok && strings.Contains(folder, "/") {
			name = string(host.LibLXC) + "/" + url.PathEscape(folder) // with the folder that liblxc knows it by
		}
		return "lxc://" + name + dir
	case "ssh":
		return at + dir
	}
	return "unix:" + dir
}

func runState(ctx context.Context, hosts *host.Pool, v *vmState) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	at, err := findPlace(ctx, hosts, v.Host)
	if err != nil {
		return "", err
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
	if len(s.Sides) != 2 || s.Owned || s.Sides[0].Err != nil || s.Sides[0].RunState == "running" ||
		s.Sides[1].RunState == "running" {
		return ""
	}
	return fmt.Sprintf("no side runs the guest: "+
		"`qmigrate migrate --recover --source %s --destination %s` runs it where that is safe",
		s.Sides[0].Endpoint, s.Sides[1].Endpoint)
}

// Host finds a host of a lab by its name there: a, b, or link for the observer.
func Host(ctx context.Context, hosts *host.Pool, owner, name string) (host.Host, error) {
	if err := CheckName(owner); err != nil {
		return nil, err
	}
	s, err := read(filepath.Join(Folder(), owner))
	if err != nil {
		return nil, fmt.Errorf("no lab %s: `qmigrate lab status` lists them", owner)
	}
	p, ok := s.Places[name]
	if !ok {
		return nil, fmt.Errorf("lab %s has no host %s: its hosts are a, b, and link (the observer)", owner, name)
	}
	return hosts.Find(ctx, p.Host)
}

// Down removes a lab: its QEMUs, its network, its folder. removed names what went.
func Down(ctx context.Context, hosts *host.Pool, owner string) (removed []string, err error) {
	if err := CheckName(owner); err != nil {
		return nil, err
	}
	if err := trusted(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	dir := filepath.Join(Folder(), owner)
	var errs []error
	s, err := read(dir)
	if err != nil { // the folder has gone, and what had its mark may not have
		s = state{Owner: owner}
	}
	removed, err = s.end(ctx, hosts)
	errs = append(errs, err)
	names, err := removeSite(ctx, hosts, s)
	removed, errs = append(removed, names...), append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return removed, err // the folder stays: it is what the next attempt knows the rest by
	}
	if isLab(dir) {
		removed, errs = append(removed, dir), append(errs, release(dir))
	}
	return removed, errors.Join(errs...)
}

// end ends what of the lab runs on its hosts, and removes its folders there. A host that went with its site has nothing
// left.
func (s state) end(ctx context.Context, hosts *host.Pool) (ended []string, err error) {
	var errs []error
	source, destination := s.sides(ctx, hosts)
	for _, v := range []*vmState{destination, source} {
		if v == nil {
			continue
		}
		at, err := findPlace(ctx, hosts, v.Host)
		if err != nil {
			if !ownHosts(s.Hosts) {
				errs = append(errs, fmt.Errorf("end QEMU %d: %w", v.PID, err))
			}
			continue
		}
		vm, err := guest.Open(ctx, at, v.Spec, v.PID)
		switch {
		case err == nil:
			ended = append(ended, fmt.Sprintf("QEMU %d on %s", v.PID, v.Host))
			errs = append(errs, vm.Close())
		case !errors.Is(err, os.ErrProcessDone) && !ownHosts(s.Hosts):
			errs = append(errs, err)
		}
	}
	for _, p := range []struct {
		name string
		of   *load.ProcessState
	}{{"storage server", s.Server}, {"iperf3", s.Tool}} {
		if p.of != nil {
			ended = append(ended, fmt.Sprintf("%s %d", p.name, p.of.PID))
			errs = append(errs, p.of.Kill(ctx, hosts))
		}
	}
	if !ownHosts(s.Hosts) {
		for _, p := range s.Places {
			if p.Folder == "" {
				continue
			}
			at, err := hosts.Find(ctx, p.Host)
			if err == nil {
				err = at.RemoveAll(p.Folder)
			}
			errs = append(errs, err)
		}
	}
	return ended, errors.Join(errs...)
}

// Sweep removes what killed runs left behind, and says of each where its guest was; labs that stand, and those of
// processes that run, stay. For each, said is one sentence.
func Sweep(ctx context.Context, hosts *host.Pool) (said []string, err error) {
	labs, err := List(ctx, hosts)
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
		removed, err := Down(ctx, hosts, l.Owner)
		errs = append(errs, err)
		said = append(said, fmt.Sprintf("%s was left by a run that was killed (%s): removed %s", l.Owner, where,
			strings.Join(removed, ", ")))
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
