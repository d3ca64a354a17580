package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"qmigrate/engine/lab/load"
	"qmigrate/guest"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/internal/atomicfile"
	"qmigrate/internal/procfs"
)

// state is what a lab leaves in its folder, so that another process can use it, or clean up after one that was killed.
type state struct {
	Owner       string             `json:"owner"`
	PID         int                `json:"pid"` // of the process that made it and has not kept it; 0: it is to stand
	StartTime   uint64             `json:"start_time"`
	Made        time.Time          `json:"made"`
	LinkRate    int64              `json:"link_rate_bytes_per_s"`
	Hosts       string             `json:"hosts"`            // as in Spec
	Places      map[string]place   `json:"places,omitempty"` // by the hosts' names in the site, "link" is the observer
	Source      *vmState           `json:"source,omitempty"`
	Destination *vmState           `json:"destination,omitempty"`
	Server      *load.ProcessState `json:"server,omitempty"` // of the guest's storage
	Tool        *load.ProcessState `json:"tool,omitempty"`   // the other end of the guest's workload
}

// place is where a host of the site is found, and the lab's folder there.
type place struct {
	Host   string `json:"host"`
	Folder string `json:"folder"`
}

type vmState struct {
	Host string     `json:"host"`
	PID  int        `json:"pid"`
	Spec guest.Spec `json:"spec"`
}

// Folder is where labs keep their sockets, logs and state: /run/qmigrate as root; else one of the user's in the folder
// for temporary files, which is the same inside and outside of the namespaces that stand in for root.
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

// What a folder is called while it is being made and while it is being removed: a lab's folder under its own name
// always has its state in it, whenever we may have been killed.
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
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("the folder for labs, %s, is not this user's alone: remove it, or set TMPDIR to another place",
			Folder())
	}
	return nil
}

// claim makes the lab's folder; a folder that is there belongs to a lab that stands.
func claim(owner, hosts string) (_ string, err error) {
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
	if err := write(made, state{Owner: owner, PID: os.Getpid(), StartTime: start, Made: time.Now(),
		Hosts: hosts}); err != nil {
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

// sides are the QEMUs of the lab: those of its state and, where a run was killed before it could write them down, those
// whose process number is in their own folder.
func (s state) sides(ctx context.Context, hosts *host.Pool) (source, destination *vmState) {
	find := func(noted, other *vmState, host, back string) *vmState {
		if noted != nil {
			return noted
		}
		// the guest has moved: the one that waits is where it came from
		if other != nil && filepath.Base(other.Spec.Dir) == host {
			host = back
		}
		p, ok := s.Places[host]
		if !ok {
			return nil
		}
		at, err := findPlace(ctx, hosts, p.Host)
		if err != nil {
			return nil
		}
		spec := guest.Spec{Dir: path.Join(p.Folder, host)}
		b, err := at.ReadFile(spec.Socket("pid"))
		if err != nil {
			return nil
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return nil
		}
		return &vmState{p.Host, pid, spec}
	}
	return find(s.Source, s.Destination, sourceHost, destinationHost),
		find(s.Destination, s.Source, destinationHost, sourceHost)
}

// findPlace finds a host of a lab. A namespace that has lost its name has not lost its processes and files.
func findPlace(ctx context.Context, hosts *host.Pool, name string) (host.Host, error) {
	at, err := hosts.Find(ctx, name)
	if err != nil && strings.HasPrefix(name, "netns:") {
		return host.Local(), nil
	}
	return at, err
}

func (l *Lab) state() state {
	s := state{Owner: l.spec.Owner, PID: os.Getpid(), Made: time.Now(), LinkRate: l.spec.LinkRate, Hosts: l.spec.Hosts,
		Places: map[string]place{"link": {Host: l.site.Observer().Name()}}}
	for _, name := range []string{sourceHost, destinationHost} {
		s.Places[name] = place{l.hosts[name].Name(), l.hosts[name].folder}
	}
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
	s.Server, s.Tool = l.disks.Process(), l.tools.Process()
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

// isLab tells a lab's folder, by its state, from one that somebody put there.
func isLab(dir string) bool {
	info, err := os.Lstat(filepath.Join(dir, "state.json"))
	return err == nil && info.Mode().IsRegular() && CheckName(filepath.Base(dir)) == nil
}
