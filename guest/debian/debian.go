// Package debian gets Debian packages for us alone: apt with private lists and cache, dpkg-deb -x into our cache
// folder. Nothing of the user's system changes, and no privilege is needed.
package debian

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/internal/atomicfile"
)

// Program is the emulator's name, in $PATH and in the cache.
const Program = "qemu-system-x86_64"

// What is a thing that Ensure gets.
type What string

// The things that Ensure gets.
const (
	QEMU72  What = "qemu-7.2"  // Debian 12's own
	QEMU100 What = "qemu-10.0" // Debian 12's backports, Debian 13's own
	QEMU111 What = "qemu-11.1" // Debian 13's backports
	Kernel  What = "kernel"    // Debian 12's kernel for virtual machines, with its modules; see Generic
)

// ForDemo are the things that the demo needs.
func ForDemo() []What { return []What{QEMU100, Kernel} }

// All are the things that the demo and the tests need; Extras are more.
func All() []What { return []What{QEMU72, QEMU100, Kernel} }

// CacheDir is the folder of everything that can be made again: $QMIGRATE_CACHE, else $XDG_CACHE_HOME/qmigrate, else
// ~/.cache/qmigrate.
func CacheDir() (string, error) {
	if d := os.Getenv("QMIGRATE_CACHE"); d != "" {
		return filepath.Abs(d)
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache folder: %w: set QMIGRATE_CACHE", err)
	}
	return filepath.Join(d, "qmigrate"), nil
}

// Error says what could not be got, why, and what to try instead.
type Error struct {
	What What
	Err  error
}

func (e *Error) Error() string {
	mend := "its path as qemu"
	switch {
	case e.What.series() != "":
	case kernelPackage(e.What) != "":
		mend = "kernel and modules"
	case isExtra(e.What):
		return fmt.Sprintf("get %s: %v", e.What, e.Err)
	}
	return fmt.Sprintf("get %s: %v; or give your own, %s", e.What, e.Err, mend)
}

func (e *Error) Unwrap() error { return e.Err }

// Store is where packages come from and go to. The zero value is this machine and its cache.
type Store struct {
	Dir  string    // cache folder; default CacheDir()
	Root string    // where etc/apt and etc/os-release are read; default "/"
	Log  io.Writer // one line a step; nil is silent
}

// Ensure gets what with the default Store, unless it is there. It returns the path of the QEMU binary, or of the folder
// of the unpacked kernel package (boot/vmlinuz-*, lib/modules/*). The error is a *Error.
func Ensure(ctx context.Context, what What, log io.Writer) (string, error) {
	return Store{Log: log}.Ensure(ctx, what)
}

// Find is the path that Ensure unpacked before; fs.ErrNotExist if it has not.
func Find(what What) (string, error) { return Store{}.Find(what) }

func (s Store) withDefaults() (Store, error) {
	var err error
	if s.Dir == "" {
		s.Dir, err = CacheDir()
	}
	if s.Root == "" {
		s.Root = "/"
	}
	if s.Log == nil {
		s.Log = io.Discard
	}
	return s, err
}

// Find is the path in the cache; fs.ErrNotExist if it is not there whole.
func (s Store) Find(what What) (string, error) {
	s, err := s.withDefaults()
	if err != nil {
		return "", err
	}
	p := s.path(what)
	info, err := os.Stat(p)
	if err == nil && emulatorOf(what) != "" && info.Size() == 0 { // see coverModules
		err = fs.ErrNotExist
	}
	return p, err
}

func (s Store) path(what What) string {
	switch {
	case emulatorOf(what) != "":
		return s.block(what)
	case what.series() != "":
		return filepath.Join(s.Dir, what.folder(), Program)
	}
	return filepath.Join(s.Dir, what.folder())
}

// series is the version of an emulator, "10.0"; "" if what is something else.
func (what What) series() string {
	series, ok := strings.CutPrefix(string(what), "qemu-")
	if !ok {
		return ""
	}
	return series
}

// Ensure gets what, unless it is there; see the function of that name.
func (s Store) Ensure(ctx context.Context, what What) (string, error) {
	s, err := s.withDefaults()
	if err != nil {
		return "", &Error{what, err}
	}
	if have := append(All(), Extras()...); !slices.Contains(have, what) {
		return "", &Error{what, fmt.Errorf("unknown: have %q", have)}
	}
	if p := installed(ctx, what); p != "" {
		fmt.Fprintf(s.Log, "%s: this system's own %s\n", what, p)
		return p, nil
	}
	get := s.ensure
	if isExtra(what) {
		get = s.extra
	}
	p, err := get(ctx, what)
	if err != nil {
		return "", &Error{what, err}
	}
	return p, nil
}

func (s Store) ensure(ctx context.Context, what What) (string, error) {
	if p := s.there(ctx, what); p != "" {
		return p, nil
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(s.Dir, "."+string(what)+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if p := s.there(ctx, what); p != "" { // another process got it while we waited
		return p, nil
	}
	old, _ := filepath.Glob(filepath.Join(s.Dir, "."+string(what)+".tmp*")) // of a run that was killed: we hold the lock
	for _, d := range old {
		os.RemoveAll(d)
	}
	tmp, err := os.MkdirTemp(s.Dir, "."+string(what)+".tmp")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	root := filepath.Join(tmp, "root")
	switch {
	case emulatorOf(what) != "":
		err = s.ensureBlock(ctx, what, tmp)
	case what == Guest:
		err = s.ensureGuest(ctx, tmp, root)
	case isExtra(what) && what.series() == "" && kernelPackage(what) == "":
		err = s.ensureBundle(ctx, what, tmp, root)
	default:
		err = s.fetch(ctx, what, tmp, root)
	}
	if err != nil {
		return "", err
	}
	if emulatorOf(what) != "" { // they went to where the emulator is
		fmt.Fprintf(s.Log, "%s: ready: %s\n", what, s.path(what))
		return s.path(what), nil
	}
	final := filepath.Join(s.Dir, what.folder())
	if what.series() != "" {
		if err := writeWrapper(root, final); err != nil { // it was tried where it is; now for where it goes
			return "", err
		}
	}
	if err := os.RemoveAll(final); err != nil { // one that does not run
		return "", err
	}
	if err := atomicfile.SyncAll(root); err != nil {
		return "", err
	}
	if err := os.Rename(root, final); err != nil {
		return "", err
	}
	if err := atomicfile.SyncFolder(s.Dir); err != nil {
		return "", err
	}
	fmt.Fprintf(s.Log, "%s: ready: %s\n", what, s.path(what))
	return s.path(what), nil
}

// there is the path of what the cache has, "" if it has none or one that no longer runs: libraries of the system may
// have gone.
func (s Store) there(ctx context.Context, what What) string {
	p, err := s.Find(what)
	if err != nil {
		return ""
	}
	if series := what.series(); series != "" {
		if err := works(ctx, p, series); err != nil {
			fmt.Fprintf(s.Log, "%s: getting it again: %v\n", what, err)
			return ""
		}
		if err := coverModules(moduleDir(filepath.Dir(p))); err != nil { // of one that was unpacked by an older qmigrate
			fmt.Fprintf(s.Log, "%s: %v\n", what, err)
		}
	}
	if emulator := emulatorOf(what); emulator != "" {
		if err := HasDriver(ctx, s.path(emulator), "iscsi"); err != nil {
			fmt.Fprintf(s.Log, "%s: getting it again: %v\n", what, err)
			return ""
		}
	}
	fmt.Fprintf(s.Log, "%s: there already: %s\n", what, p)
	return p
}

// installed is this system's own binary if it is of the wanted series.
func installed(ctx context.Context, what What) string {
	series := what.series()
	if series == "" {
		return ""
	}
	p, err := exec.LookPath(Program)
	if err != nil {
		return ""
	}
	out, err := exec.CommandContext(ctx, p, "--version").Output()
	if err != nil || !strings.Contains(string(out), "version "+series+".") {
		return ""
	}
	return p
}

// lock takes an exclusive lock on a file; the kernel drops it when the process ends. It asks again and again, for a
// blocked flock cannot be called off.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err == unix.EWOULDBLOCK || err == unix.EINTR {
			select {
			case <-time.After(50 * time.Millisecond):
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
}
