package host

import (
	"bufio"
	"bytes"
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
	"sync"
)

// Kinds of entries that are the helper's own. Others are the tasks'.
const (
	madeFile    = "file" // or a folder, with all that is in it
	madeProcess = "process"
)

// entry is one thing that a helper made on its host.
type entry struct {
	Kind  string          `json:"kind"`
	Path  string          `json:"path,omitempty"` // of a file; a process's folder
	PID   int             `json:"pid,omitempty"`
	Start uint64          `json:"start,omitempty"`
	Name  string          `json:"name,omitempty"` // for people
	What  json.RawMessage `json:"what,omitempty"`
	Needs bool            `json:"needs,omitempty"` // a guest needs it: it stays as long as a process does that may hold one
	Gone  bool            `json:"gone,omitempty"`  // it has been removed since
}

func (e entry) String() string {
	switch e.Kind {
	case madeFile:
		return e.Path
	case madeProcess:
		return fmt.Sprintf("process %d (%s)", e.PID, filepath.Base(e.Name))
	}
	return strings.TrimSpace(e.Kind + " " + e.Name)
}

func (e entry) same(o entry) bool {
	return e.Kind == o.Kind && e.Path == o.Path && e.PID == o.PID && e.Start == o.Start && bytes.Equal(e.What, o.What)
}

// ledger is what a helper has made and not removed, in memory and in a file: who kills the helper leaves the file.
type ledger struct {
	at     Host
	helper Helper
	inUse  map[string]bool // paths that other helpers have noted, which are at work
	mu     sync.Mutex
	file   *os.File // nil: no folder could be made for it
	all    []entry
}

type ledgerKey struct{}

// Note writes down, from within a task, that it made something which Helper.Undo can remove by kind and what; needed
// says that a guest may need it. It does nothing in this program, where the task's caller undoes. The name is for
// people. What it returns says that it has been removed.
func Note(ctx context.Context, kind, name string, what any, needed bool) (removed func(), err error) {
	l, ok := ctx.Value(ledgerKey{}).(*ledger)
	if !ok {
		return func() {}, nil
	}
	b, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	e := entry{Kind: kind, Name: name, What: b, Needs: needed}
	l.made(e)
	return func() { l.gone(func(o entry) bool { return o.same(e) }) }, nil
}

// runFolder is where the helpers of a user have their ledgers.
func runFolder() (string, error) {
	cache, err := cacheFolder()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "helpers")
	return dir, os.MkdirAll(dir, 0o700)
}

// openLedger removes what helpers left that were killed, and says so, and begins a ledger.
func openLedger(at Host, h Helper) (_ *ledger, said []string) {
	l := &ledger{at: at, helper: h}
	dir, err := runFolder()
	if err != nil {
		return l, []string{fmt.Sprintf("what this helper makes is not removed if it is killed: %v", err)}
	}
	here, err := placeHere()
	if err != nil {
		return l, []string{fmt.Sprintf("what this helper makes is not removed if it is killed: %v", err)}
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	var ended []string
	inUse := map[string]bool{}
	for _, name := range names {
		pid, start, place, ok := ledgerOf(name)
		if !ok || place != here {
			continue
		}
		if _, err := FindProcess(pid, start); errors.Is(err, os.ErrProcessDone) {
			ended = append(ended, name)
			continue
		}
		for _, e := range readLedger(name) { // it is at work, or that is not known
			if e.Path != "" {
				inUse[e.Path] = true
			}
		}
	}
	for _, name := range ended {
		old := &ledger{at: at, helper: h, inUse: inUse, all: readLedger(name)}
		ctx, cancel := context.WithTimeout(context.Background(), undoLimit)
		removed, kept, err := old.undo(ctx)
		cancel()
		if len(removed) > 0 {
			said = append(said, "a helper that ended left this behind, which is removed now: "+strings.Join(removed, ", "))
		}
		switch {
		case err != nil:
			said = append(said, fmt.Sprintf("what a helper left behind could not be removed: %v", err))
		case len(old.all) > 0:
			if len(kept) > 0 {
				said = append(said, "a guest may need this, which a helper left behind: "+strings.Join(kept, ", "))
			}
			_ = old.write(name)
		default:
			_ = os.Remove(name)
		}
	}
	start, err := StartTime(os.Getpid())
	if err == nil {
		l.file, err = os.OpenFile(filepath.Join(dir, ledgerName(os.Getpid(), start, here)),
			os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_EXCL, 0o600)
	}
	if err != nil {
		said = append(said, fmt.Sprintf("what this helper makes is not removed if it is killed: %v", err))
	}
	return l, said
}

// placeHere is where a process number means what it means to us: this boot of this kernel, and our PID namespace.
// Hosts may share a home, and the ledgers in it.
func placeHere() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	numbers, err := os.Readlink("/proc/self/ns/pid") // pid:[4026531836]
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(boot)) + "-" + strings.Trim(numbers, "pid:[]"), nil
}

func ledgerName(pid int, start uint64, place string) string {
	return fmt.Sprintf("%d-%d@%s.jsonl", pid, start, place)
}

func ledgerOf(name string) (pid int, start uint64, place string, ok bool) {
	process, place, ok1 := strings.Cut(strings.TrimSuffix(filepath.Base(name), ".jsonl"), "@")
	a, b, ok2 := strings.Cut(process, "-")
	pid, err1 := strconv.Atoi(a)
	start, err2 := strconv.ParseUint(b, 10, 64)
	return pid, start, place, ok1 && ok2 && err1 == nil && err2 == nil
}

func readLedger(name string) (all []entry) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // the last line of one that was killed
		}
		if !e.Gone {
			all = append(all, e)
			continue
		}
		all = slices.DeleteFunc(all, func(o entry) bool { return o.same(e) })
	}
	return all
}

// write makes the file hold what is left.
func (l *ledger) write(name string) error {
	var b bytes.Buffer
	for _, e := range l.all {
		if err := writeLine(&b, e); err != nil {
			return err
		}
	}
	return os.WriteFile(name, b.Bytes(), 0o600)
}

// made notes something, before the caller is told that it is there.
func (l *ledger) made(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
	if l.file != nil {
		_ = writeLine(l.file, e)
	}
}

func (l *ledger) gone(which func(entry) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(e entry) bool {
		if !which(e) {
			return false
		}
		if e.Gone = true; l.file != nil {
			_ = writeLine(l.file, e)
		}
		return true
	})
}

// close removes what was made, unless it is to stand, and the ledger with it where nothing is left.
func (l *ledger) close(ctx context.Context, stands bool) {
	if l.file == nil {
		if !stands {
			_, _, _ = l.undo(ctx)
		}
		return
	}
	name := l.file.Name()
	l.file.Close()
	if stands {
		_ = os.Remove(name)
		return
	}
	_, kept, err := l.undo(ctx)
	if err == nil && len(kept) == 0 {
		_ = os.Remove(name)
		return
	}
	_ = l.write(name)
}

// undo removes everything, the last first, but what a guest may need. l.all is what is left then.
func (l *ledger) undo(ctx context.Context) (removed, kept []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var left []entry
	var errs []error
	held := map[string]bool{} // folders of processes that stay
	for _, e := range slices.Backward(l.all) {
		if e.Kind != madeProcess {
			continue
		}
		p, findErr := l.at.FindProcess(ctx, e.PID, e.Start)
		if errors.Is(findErr, os.ErrProcessDone) {
			continue
		}
		if findErr != nil { // it is not known to be dead
			left, kept, held[e.Path] = append(left, e), append(kept, e.String()), true
			errs = append(errs, findErr)
			continue
		}
		if l.helper.Holds == nil || l.helper.Holds(ctx, l.at, p, e.Path) {
			left, kept, held[e.Path] = append(left, e), append(kept, e.String()), true
			continue
		}
		if killErr := p.Kill(ctx); killErr != nil {
			left, errs = append(left, e), append(errs, killErr)
			continue
		}
		removed = append(removed, e.String())
	}
	for _, e := range slices.Backward(l.all) {
		if e.Kind == madeProcess {
			continue
		}
		if stays := len(held) > 0 && (e.Needs || e.Kind == madeFile && holds(e.Path, held)); stays {
			left, kept = append(left, e), append(kept, e.String())
			continue
		}
		if e.Kind == madeFile && holds(e.Path, l.inUse) { // somebody has made it his since
			left = append(left, e)
			continue
		}
		var undoErr error
		switch undo := l.helper.Undo[e.Kind]; {
		case e.Kind == madeFile:
			if _, statErr := os.Lstat(e.Path); errors.Is(statErr, fs.ErrNotExist) {
				continue
			}
			undoErr = os.RemoveAll(e.Path)
		case undo == nil:
			undoErr = fmt.Errorf("remove %s: this helper does not know how", e)
		default:
			undoErr = undo(ctx, l.at, e.What)
		}
		if undoErr != nil {
			left, errs = append(left, e), append(errs, undoErr)
			continue
		}
		removed = append(removed, e.String())
	}
	slices.Reverse(left)
	l.all = left
	return removed, kept, errors.Join(errs...)
}

// holds tells whether a path is one of the folders, or has one of them in it, or lies in one. A process without a
// folder may need any.
func holds(path string, folders map[string]bool) bool {
	for f := range folders {
		if f == "" || f == path || strings.HasPrefix(f, path+"/") || strings.HasPrefix(path, f+"/") {
			return true
		}
	}
	return false
}

func folderOf(log string) string {
	if log == "" {
		return ""
	}
	return filepath.Dir(log)
}

// firstMissing is the uppermost folder of a path that is not there yet; "" if all of it is.
func firstMissing(path string) (first string) {
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		if _, err := os.Lstat(p); err == nil || p == filepath.Dir(p) {
			return first
		}
		first = p
	}
}
