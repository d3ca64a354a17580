package launch

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// Need is something of its host that a destination's command line names, and that has to be there, or to be free,
// before it is started on another host than the source's.
type Need struct {
	Kind   NeedKind
	Name   string // a path, an interface, a port
	Option string // that names it: "-netdev"
}

// NeedKind is what a Need is.
type NeedKind string

// What a destination needs of its host.
const (
	NeedFile NeedKind = "file"     // is there, of whatever type
	NeedTCP  NeedKind = "TCP port" // is free
	NeedUDP  NeedKind = "UDP port"
	NeedTAP  NeedKind = "interface" // is there
)

// setting is which of Options names another.
func (n Need) setting() string {
	switch n.Kind {
	case NeedFile:
		return "Paths"
	case NeedTAP:
		return "TAPs"
	}
	return "Ports"
}

// Lacks says what of a destination's needs its host has not got: an *ArgumentError each.
func Lacks(ctx context.Context, at host.Host, needs []Need) error {
	if len(needs) == 0 {
		return nil
	}
	found, err := lacksTask().Ask(ctx, at, needs)
	if err != nil {
		return fmt.Errorf("ask %s for what the destination needs: %w", at.Name(), err)
	}
	var errs []error
	for i, why := range found {
		if why != "" && i < len(needs) {
			errs = append(errs, &ArgumentError{needs[i].Option, needs[i].Name,
				fmt.Sprintf("%s %s of host %s: %s", needs[i].Kind, needs[i].Name, at.Name(), why), needs[i].setting()})
		}
	}
	return errors.Join(errs...)
}

// lacksTask says of each need why it is not met; "" if it is.
func lacksTask() host.Task[[]Need, []string] {
	return one("launch.lacks", func(ctx context.Context, at host.Host, needs []Need) ([]string, error) {
		all := make([]string, len(needs))
		for i, n := range needs {
			if err := n.lack(ctx, at); err != nil {
				all[i] = err.Error()
			}
		}
		return all, nil
	})
}

func (n Need) lack(ctx context.Context, at host.Host) error {
	switch n.Kind {
	case NeedFile:
		if _, err := os.Stat(n.Name); errors.Is(err, fs.ErrNotExist) {
			return errors.New("it is not there")
		} else if err != nil {
			return err
		}
	case NeedTAP:
		return host.In(at, func() error {
			if _, err := net.InterfaceByName(n.Name); err != nil {
				return fmt.Errorf("it is not there: make it first (`ip tuntap add %s mode tap`), or name another", n.Name)
			}
			return nil
		})
	case NeedTCP:
		l, err := at.Listen(ctx, "tcp", ":"+n.Name)
		if err == nil {
			return l.Close()
		}
		return taken(err)
	case NeedUDP:
		l, err := at.ListenPacket(ctx, "udp", ":"+n.Name)
		if err == nil {
			return l.Close()
		}
		return taken(err)
	}
	return nil
}

func taken(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return errors.New("somebody has it")
	}
	return err
}

// Likeness is whether an image on the destination's host is the source's.
type Likeness string

// What is known of two files on two hosts.
const (
	SameFile      Likeness = "same"
	CopiedFile    Likeness = "copied" // they are two, of one size and with the same first bytes
	DifferentFile Likeness = "different"
	UnknownFile   Likeness = "unknown" // they are alike, and nothing says that they are one, or two
)

// Compare tells whether a file of the destination's host is the one that a process of the source's host has. A new
// file is made beside it on one host, for as long as Compare takes, and looked for beside it on the other: a folder
// that has it on both is one. Where no file can be made, size and first bytes can only tell that two files differ. The
// error wraps fs.ErrNotExist if the destination's host has no such file.
func Compare(ctx context.Context, from host.Host, pid int, name string, to host.Host, there string) (Likeness, error) {
	here := image{PID: pid, Name: name}
	afar := image{Name: there}
	like, err := compare(ctx, from, here, to, afar)
	if like == UnknownFile && err == nil { // the other way round: a user may write on one host only
		return compare(ctx, to, afar, from, here)
	}
	return like, err
}

func compare(ctx context.Context, from host.Host, here image, to host.Host, there image) (Likeness, error) {
	marked, cancel := context.WithCancel(ctx)
	defer cancel()
	mine := make(chan seen, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- markTask().Run(marked, from, here, func(s seen) error { mine <- s; return nil })
	}()
	defer func() {
		cancel()
		<-ended // the file is removed
	}()
	select {
	case s := <-mine:
		there.Mark = s.Mark
		other, err := seenTask().Ask(ctx, to, there)
		switch {
		case err != nil:
			return "", err
		case s.Mark != "" && other.Marked && s.Base == other.Base:
			return SameFile, nil
		case s.Size != other.Size, s.Head != other.Head:
			return DifferentFile, nil
		case s.Mark != "" && other.Beside:
			return CopiedFile, nil
		}
		return UnknownFile, nil
	case err := <-ended:
		ended <- nil
		return "", err
	}
}

// image is a file to be compared.
type image struct {
	PID  int    // the process whose root the name is in; 0: the helper's own
	Name string // absolute
	Mark string // the name of a file beside it to look for
}

// seen is what a host sees of an image.
type seen struct {
	Base   string // its name, without links
	Size   int64
	Head   string // of its first bytes: SHA-256
	Mark   string // the name of the file that was made beside it; "": none could be made
	Beside bool   // its folder is known
	Marked bool   // the file that was looked for is in that folder
}

// headBytes is how much of an image is compared: the header of a qcow2, or a partition table and what follows.
const headBytes = 1 << 20

// look looks at the image. folder is the one that it is in, without links; nil if that cannot be found.
func (i image) look() (s seen, folder *os.File, err error) {
	top := "/"
	if i.PID != 0 {
		top = fmt.Sprintf("/proc/%d/root", i.PID)
	}
	root, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, nil, &fs.PathError{Op: "open", Path: top, Err: err}
	}
	defer unix.Close(root)
	open := func(name string, flags uint64) (*os.File, error) {
		fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: flags | unix.O_RDONLY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT})
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	f, err := open(i.Name, unix.O_NONBLOCK)
	if err != nil {
		return s, nil, err
	}
	defer f.Close()
	if s.Size, err = f.Seek(0, io.SeekEnd); err != nil { // also that of a block device
		return s, nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return s, nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(f, headBytes)); err != nil {
		return s, nil, err
	}
	s.Head = fmt.Sprintf("%x", sum.Sum(nil))
	where, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return s, nil, err
	}
	if above, err := os.Readlink(top); err == nil && above != "/" {
		where = strings.TrimPrefix(where, above)
	}
	s.Base = filepath.Base(where)
	if folder, err = open(filepath.Dir(where), unix.O_DIRECTORY); err != nil {
		return s, nil, nil
	}
	var it, found unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &it); err != nil {
		return s, nil, errors.Join(err, folder.Close())
	}
	err = unix.Fstatat(int(folder.Fd()), s.Base, &found, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || it.Dev != found.Dev || it.Ino != found.Ino || it.Mode&unix.S_IFMT != unix.S_IFREG {
		return s, nil, folder.Close() // a block device's folder is each host's own
	}
	return s, folder, nil
}

// madeMark is the kind of what markTask notes.
const madeMark = "launch.mark"

// Undos remove what a task left whose helper was killed.
func Undos() map[string]func(context.Context, host.Host, json.RawMessage) error {
	return map[string]func(context.Context, host.Host, json.RawMessage) error{
		madeMark: func(_ context.Context, _ host.Host, what json.RawMessage) error {
			var name string
			if err := json.Unmarshal(what, &name); err != nil {
				return err
			}
			if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		},
	}
}

// markTask makes a file beside an image where it can, and has it until its end.
func markTask() host.Task[image, seen] {
	return host.Task[image, seen]{Name: "launch.mark",
		Work: func(ctx context.Context, _ host.Host, i image, give func(seen) error) error {
			s, folder, err := i.look()
			if err != nil {
				return err
			}
			if folder != nil {
				defer folder.Close()
				mark, at := ".qmigrate-"+rand.Text(), int(folder.Fd())
				name := filepath.Join(folder.Name(), mark)
				removed, err := host.Note(ctx, madeMark, name, name, false)
				if err != nil {
					return err
				}
				defer removed()
				fd, err := unix.Openat(at, mark, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
				if err == nil {
					s.Mark = mark
					defer unix.Unlinkat(at, mark, 0)
					if err := errors.Join(unix.Fsync(fd), unix.Close(fd)); err != nil {
						return err
					}
				}
			}
			if err := give(s); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		}}
}

func seenTask() host.Task[image, seen] {
	return one("launch.seen", func(_ context.Context, _ host.Host, i image) (seen, error) {
		s, folder, err := i.look()
		if err != nil || folder == nil {
			return s, err
		}
		defer folder.Close()
		s.Beside = true
		if i.Mark != "" && i.Mark == filepath.Base(i.Mark) {
			var st unix.Stat_t
			s.Marked = unix.Fstatat(int(folder.Fd()), i.Mark, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
		}
		return s, nil
	})
}
