package main

import (
	"errors"
	"math/bits"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// A clock is the guest's CLOCK_MONOTONIC and a way to let it pass.
type clock interface {
	now() time.Duration
	sleep(time.Duration)
}

// monotonic is the real clock. Go's own reading of it goes through the vDSO and costs no system call, but shows only
// differences: base is the absolute value at start.
type monotonic struct {
	base  time.Duration
	start time.Time
}

func newMonotonic() monotonic {
	return monotonic{base: clockNow(unix.CLOCK_MONOTONIC), start: time.Now()}
}

func (c monotonic) now() time.Duration { return c.base + time.Since(c.start) }

// sleep is a bare nanosleep that Go's scheduler does not see, so that the goroutine keeps its processor (run has spare
// ones). Go's own timers go through epoll, round to whole milliseconds and wake a second thread. A system call that the
// scheduler does see has its processor taken away by the sysmon thread, which then looks again every 20 us for a while:
// 200 sleeps a second cost half of a busy guest's CPU under TCG. The scheduler's signals, every 10 ms and when the
// collector must stop the world, end the nanosleep: it gets its due and the rest is slept.
func (c monotonic) sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(max(d, 0)))
	for {
		if _, _, errno := unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), uintptr(unsafe.Pointer(&ts)),
			0); errno != unix.EINTR {
			return
		}
		runtime.Gosched()
	}
}

// clockNow reads one of the kernel's clocks; those used here cannot fail.
func clockNow(id int32) time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(id, &ts)
	return time.Duration(ts.Nano())
}

// realtime ties the goroutine to a thread that the kernel wakes before every other: what is measured by it must not
// wait for the workload. Without the right to do so (not in the guest) it stays an ordinary thread.
func realtime() {
	runtime.LockOSThread()
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}, 0)
}

// gaps is a histogram of durations with 16 steps per power of two: a quantile is at most 1/16 too large.
type gaps struct {
	n       uint64
	longest time.Duration
	at      time.Duration // when the longest began
	count   [64 * 16]uint32
}

func (g *gaps) add(from, to time.Duration) {
	d := max(to-from, 0)
	g.n++
	if d > g.longest {
		g.longest, g.at = d, from
	}
	g.count[step(uint64(d))]++
}

// step is d's place: d itself below 16, then 16 for each power of two.
func step(d uint64) int {
	if d < 16 {
		return int(d)
	}
	e := bits.Len64(d) - 5
	return e*16 + int(d>>e)
}

// top is the largest duration in a place.
func top(s int) time.Duration {
	if s < 32 {
		return time.Duration(s)
	}
	e := s/16 - 1
	return time.Duration(uint64(s-e*16+1)<<e - 1)
}

func (g *gaps) quantile(q float64) time.Duration {
	want, sum := uint64(q*float64(g.n))+1, uint64(0)
	for s, c := range g.count {
		if sum += uint64(c); sum >= want {
			return min(top(s), g.longest)
		}
	}
	return g.longest
}

// looks are the heartbeat's looks at the clock, and the gaps between them.
type looks struct {
	mu       sync.Mutex
	interval time.Duration // of the beats, at the last look
	start    time.Duration
	last     time.Duration
	gaps     gaps
	counting bool
	known    bool // there was a reset
}

var errNoLooks = errors.New("the looks at the clock were never counted: clock.reset begins it")

// reset starts the count afresh.
func (l *looks) reset(now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start, l.last, l.gaps = now, now, gaps{}
	l.counting, l.known = true, true
}

func (l *looks) look(now, interval time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counting {
		l.gaps.add(l.last, now)
		l.last, l.interval = now, interval
	}
}

// halt ends the count; its report stays.
func (l *looks) halt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counting = false
}

func (l *looks) report() (wire.ClockReport, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.known {
		return wire.ClockReport{}, errNoLooks
	}
	return wire.ClockReport{
		Interval: l.interval, Turns: l.gaps.n, Elapsed: l.last - l.start,
		Longest: l.gaps.longest, LongestAt: l.gaps.at,
		Resolution: l.gaps.quantile(0.5), P99: l.gaps.quantile(0.99),
	}, nil
}
