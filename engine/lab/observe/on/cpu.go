package on

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
)

// CPUSpec is which processes are looked at, and how often.
type CPUSpec struct {
	Processes []ProcessID   `json:"processes"`
	Every     time.Duration `json:"every_ns"`
}

// ProcessID is one process of the host.
type ProcessID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // see host.Process
}

// CPULooks are looks at them since the last output.
type CPULooks struct {
	Looks []CPULook     `json:"looks,omitempty"`
	Cost  time.Duration `json:"cost_ns"` // processor time of looking, since the begin
}

// CPULook is one look at one process: what its threads had used by an instant, by their names.
type CPULook struct {
	Process int                      `json:"process"` // of the spec's
	At      time.Time                `json:"at"`
	Used    map[string]time.Duration `json:"used"`
}

// WholeProcess is the name of all threads of a process together, those that have ended included.
const WholeProcess = "process"

// CPU reads what QEMUs and their threads have had of the host's processors, until ctx ends, and then once more.
func CPU() host.Task[CPUSpec, CPULooks] {
	return host.Task[CPUSpec, CPULooks]{Name: "observe.cpu",
		Work: func(ctx context.Context, at host.Host, s CPUSpec, give func(CPULooks) error) error {
			if err := give(CPULooks{}); err != nil {
				return last(ctx, err)
			}
			runtime.LockOSThread() // for its clock
			defer runtime.UnlockOSThread()
			began := threadCPU()
			var all []*looked
			for i, p := range s.Processes {
				q := &looked{index: i, id: p, at: at, names: map[int]string{}, ended: map[string]time.Duration{},
					last: map[int]time.Duration{}}
				q.process, _ = at.FindProcess(ctx, p.PID, p.Start) // one that has gone has nothing to tell
				all = append(all, q)
			}
			var out CPULooks
			flush := func() error {
				out.Cost = threadCPU() - began
				err := give(out)
				out.Looks = nil
				return err
			}
			tick := time.NewTicker(s.Every)
			defer tick.Stop()
			for handed := time.Now(); ; {
				for _, q := range all {
					if look, ok := q.look(); ok {
						out.Looks = append(out.Looks, look)
					}
				}
				if ctx.Err() != nil {
					return last(ctx, flush())
				}
				if time.Since(handed) > batch {
					handed = time.Now()
					if err := flush(); err != nil {
						return last(ctx, err)
					}
				}
				select {
				case <-tick.C:
				case <-ctx.Done(): // and once more
				}
			}
		}}
}

func threadCPU() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // it cannot fail
	return time.Duration(ts.Nano())
}

// looked is one QEMU that is looked at.
type looked struct {
	index   int
	id      ProcessID
	at      host.Host
	process host.Process             // nil: it has gone
	names   map[int]string           // of threads, as the record has them; "": of no interest
	ended   map[string]time.Duration // what the threads of a name had that are gone
	last    map[int]time.Duration
}

// look reads all threads once, which takes less than a millisecond, and stamps all of it with its begin. A process that
// has gone has no more to tell.
func (q *looked) look() (look CPULook, ok bool) {
	if q.process == nil {
		return look, false
	}
	look = CPULook{Process: q.index, At: q.at.Now(), Used: map[string]time.Duration{}}
	if u, err := q.process.Usage(); err == nil && u.RSS > 0 {
		look.Used[WholeProcess] = u.CPU
	}
	ids, err := threads(q.id.PID)
	if err != nil {
		return look, len(look.Used) > 0
	}
	for name, used := range q.ended {
		look.Used[name] = used
	}
	for _, id := range ids {
		name, known := q.names[id]
		if !known {
			if name, known = q.name(id); !known {
				continue
			}
			q.names[id] = name
		}
		if name == "" {
			continue
		}
		if s, err := procfs.Thread(q.id.PID, id).Schedule(os.ReadFile); err == nil {
			q.last[id] = s.Ran
		}
		look.Used[name] += q.last[id]
	}
	for id, used := range q.last {
		if !slices.Contains(ids, id) { // the migration's threads end with it: what they had until our last look stays
			q.ended[q.names[id]] += used
			look.Used[q.names[id]] += used
			delete(q.last, id)
			delete(q.names, id)
		}
	}
	return look, true
}

func threads(pid int) (ids []int, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, name := range names {
		if id, convErr := strconv.Atoi(name); convErr == nil {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 && err == nil {
		err = errors.New("no threads")
	}
	return ids, err
}

// name is a thread's name in the record, by the name that QEMU gave it (-name debug-threads=on): its vCPUs are "CPU
// 0/TCG" and the like, and "ALL CPUs/TCG" where one thread runs all; those of a migration "live_migration",
// "multifdsend_0", "return path", ... until 8.2 and "mig/src/main", ... from 9.0 on.
func (q *looked) name(id int) (name string, known bool) {
	if id == q.id.PID {
		return "main", true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/comm", q.id.PID, id))
	if err != nil {
		return "", false
	}
	return threadName(strings.TrimSpace(string(b)))
}

func threadName(comm string) (name string, known bool) {
	switch {
	case strings.HasPrefix(comm, "CPU "):
		number, _, _ := strings.Cut(strings.TrimPrefix(comm, "CPU "), "/")
		if _, err := strconv.Atoi(number); err == nil {
			return "vcpu" + number, true
		}
	case strings.HasPrefix(comm, "ALL CPUs"):
		return "vcpus", true
	}
	for _, prefix := range []string{"mig/", "live_migration", "multifd", "postcopy/", "return path", "fault-default",
		"bg_snapshot"} {
		if strings.HasPrefix(comm, prefix) {
			return "migration", true
		}
	}
	return "", !strings.HasPrefix(comm, "qemu-system") // a new thread has its maker's name for a moment
}
