package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/report/text"
)

// liveLine is the one line that a terminal shows while a migration runs.
type liveLine struct {
	w       io.Writer
	mu      sync.Mutex
	begin   time.Time
	printed time.Time
	pass    int64
	dirty   int64
	columns func() int // the terminal's width now
}

// liveEvery is how often the line changes: faster is not read.
const liveEvery = 100 * time.Millisecond

// newLiveLine is nil unless w is a terminal.
func newLiveLine(w io.Writer) *liveLine {
	if columns(w) == 0 || os.Getenv("TERM") == "dumb" {
		return nil
	}
	return &liveLine{w: w, columns: func() int { return columns(w) }}
}

// columns is the width of the terminal behind w; 0 if there is none.
func columns(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	switch {
	case err != nil:
		return 0
	case size.Col == 0: // a terminal that does not know
		return liveWidth + 1
	}
	return int(size.Col)
}

// sample prints what the sample says, at most every liveEvery.
func (l *liveLine) sample(s record.Sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.begin.IsZero() {
		l.begin = now
	}
	if s.Transferred == nil || now.Sub(l.printed) < liveEvery && l.pass == *s.SyncCount {
		return
	}
	l.printed, l.pass = now, *s.SyncCount
	if *s.DirtyPagesRate > 0 { // QEMU measures it only at a sync more than 1 s after the last
		l.dirty = *s.DirtyPagesRate
	}
	text := liveText(s, l.dirty, now.Sub(l.begin))
	fmt.Fprintf(l.w, "\r\x1b[K%s", text[:min(len(text), max(l.columns()-1, 0))])
}

// mirrored prints how far the disks' copies are, before there are samples.
func (l *liveLine) mirrored(copied, all int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.begin.IsZero() {
		l.begin = now
	}
	text := mirrorText(copied, all, now.Sub(l.begin))
	fmt.Fprintf(l.w, "\r\x1b[K%s", text[:min(len(text), max(l.columns()-1, 0))])
}

// mirrorText is at most liveWidth columns of ASCII.
func mirrorText(copied, all int64, elapsed time.Duration) string {
	text := fmt.Sprintf("storage  %s of %s  %7s", units.FormatSize(copied), units.FormatSize(all),
		fmt.Sprintf("%.1f s", elapsed.Seconds()))
	return text[:min(len(text), liveWidth)]
}

// liveWidth is the widest that a live line may be: a terminal of 80 columns less the one for the cursor.
const liveWidth = 79

// liveText is at most liveWidth columns of ASCII. dirty is in pages a second; 0 means that QEMU has not measured it
// yet.
func liveText(s record.Sample, dirty int64, elapsed time.Duration) string {
	dirtied := "-"
	if dirty > 0 {
		dirtied = units.FormatRate(float64(dirty) * 4096) // to be compared with what is sent
	}
	text := fmt.Sprintf("pass %-3d %9s left  sent %10s  dirtied %10s  %7s", max(*s.SyncCount, 1),
		units.FormatSize(*s.Remaining),
		units.FormatRate(*s.Throughput), dirtied, fmt.Sprintf("%.1f s", elapsed.Seconds()))
	switch {
	case s.Status != "active":
		text += "  " + s.Status
	case s.Throttle != nil && *s.Throttle > 0:
		text += fmt.Sprintf("  -%d%% CPU", *s.Throttle)
	}
	return text[:min(len(text), liveWidth)]
}

func (l *liveLine) clear() { fmt.Fprint(l.w, "\r\x1b[K") }

// page is how wide a line for people may be on w: a terminal's width, if that is less than text.MaxWidth.
func page(w io.Writer) int {
	if c := columns(w); c > 0 {
		return min(max(c, 40), text.MaxWidth)
	}
	return text.MaxWidth
}

// paper is what a record is printed on.
func paper(w io.Writer) text.Page { return text.Page{W: w, Width: page(w), Blocks: utf8Locale()} }

// Short names of what this program prints with.
type table = text.Table

func fold(s string, indent, width int) string { return text.Fold(s, indent, width) }
func count(n int64) string                    { return text.Count(n) }
func plural(n int64, one, many string) string { return text.Plural(n, one, many) }

// utf8Locale tells whether what reads our output takes UTF-8, by the words of the POSIX locale; a dumb terminal takes
// nothing.
func utf8Locale() bool {
	if os.Getenv("TERM") == "dumb" {
		return false
	}
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}
