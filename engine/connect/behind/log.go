package behind

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"qmigrate/engine/endpoint"
	"qmigrate/hostnet/host"
)

// LogQuery asks for lines of a log.
type LogQuery struct {
	PID   int // of the process for which Name is the log's name; 0: it is the host's
	Name  string
	From  int64    // bytes at its beginning that are left out
	Words []string // each line has one of them; none: no lines are wanted
}

// Logs reads lines of a log. A name is looked for as the process has it, which may have another root, and else as its
// host has it: what writes the lines down may be another process (libvirt's virtlogd).
func Logs() host.Task[LogQuery, endpoint.LogLines] {
	return one("behind.log", func(ctx context.Context, q LogQuery) (endpoint.LogLines, error) {
		file, err := openLog(q)
		if err != nil {
			return endpoint.LogLines{}, err
		}
		defer file.Close()
		return linesOf(ctx, file, q)
	})
}

// openLog opens a log for reading. What is no regular file could keep us waiting, and has no size.
func openLog(q LogQuery) (*os.File, error) {
	var as error = &os.PathError{Op: "open", Path: q.Name, Err: os.ErrNotExist}
	if q.PID != 0 {
		root, err := unix.Open(fmt.Sprintf("/proc/%d/root", q.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(root)
			var fd int
			fd, err = unix.Openat2(root, q.Name, &unix.OpenHow{Flags: logFlags, Resolve: unix.RESOLVE_IN_ROOT})
			if err == nil {
				return regular(os.NewFile(uintptr(fd), q.Name))
			}
		}
		as = &os.PathError{Op: "open", Path: q.Name, Err: err}
	}
	fd, err := unix.Open(q.Name, logFlags, 0)
	if err == nil {
		return regular(os.NewFile(uintptr(fd), q.Name))
	}
	if errors.Is(err, os.ErrNotExist) { // of two reasons the better one
		return nil, as
	}
	return nil, &os.PathError{Op: "open", Path: q.Name, Err: err}
}

const logFlags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY

func regular(file *os.File) (*os.File, error) {
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", file.Name())
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// logLimit is how many bytes of lines are given at once.
const logLimit = 16 << 20

func linesOf(ctx context.Context, file *os.File, q LogQuery) (l endpoint.LogLines, err error) {
	info, err := file.Stat()
	if err != nil {
		return l, err
	}
	if l.Size = info.Size(); len(q.Words) == 0 || l.Size <= q.From {
		return l, nil
	}
	words := make([][]byte, len(q.Words))
	for i, w := range q.Words {
		words[i] = []byte(w)
	}
	r := bufio.NewReaderSize(io.NewSectionReader(file, q.From, l.Size-q.From), 64<<10)
	for whole := true; ctx.Err() == nil; {
		line, err := r.ReadSlice('\n')
		has := func(w []byte) bool { return bytes.Contains(line, w) }
		begins := whole // a longer line than the reader's buffer is nobody's trace line, nor is the rest of it
		if whole = !errors.Is(err, bufio.ErrBufferFull); whole && begins && slices.ContainsFunc(words, has) {
			if l.More = len(l.Text)+len(line) > logLimit; l.More {
				return l, nil
			}
			l.Text = append(l.Text, line...)
		}
		switch {
		case errors.Is(err, io.EOF):
			return l, nil
		case err != nil && whole:
			return l, err
		}
	}
	return l, ctx.Err()
}
