package observe

import (
	"context"
	"fmt"
	"sync"
	"time"

	"qmigrate/engine/record"
	"qmigrate/hostnet/host"
)

// endLimit is how long a task on a host may take to end, its grace for what is under way included.
const endLimit = 20 * time.Second

// task is work under way on a host: what it says is taken until it has ended.
type task struct {
	name string // for people
	stop context.CancelFunc
	done chan struct{}
	err  error // when done

	mu   sync.Mutex
	left bool // nobody takes any more
}

// begin begins a task on a host and waits for its first output, which says that it has begun. ctx is for that alone.
// take gets everything that it says, one after the other.
func begin[In, Out any](ctx context.Context, name string, t host.Task[In, Out], at host.Host, in In,
	take func(Out)) (*task, error) {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	x := &task{name: name, stop: stop, done: make(chan struct{})}
	begun := make(chan struct{})
	first := true
	go func() {
		defer close(x.done)
		x.err = t.Run(run, at, in, func(out Out) error {
			x.mu.Lock()
			defer x.mu.Unlock()
			if x.left {
				return context.DeadlineExceeded
			}
			take(out)
			if first {
				first = false
				close(begun)
			}
			return nil
		})
	}()
	var err error
	select {
	case <-begun:
		return x, nil
	case <-x.done:
		err = x.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	stop()
	if err == nil {
		err = fmt.Errorf("%s ended at once", name)
	}
	return nil, err
}

// end ends it, and returns when what it had seen has been taken. Harmless twice, and where it was not begun.
func (x *task) end() {
	if x == nil {
		return
	}
	x.stop()
	select {
	case <-x.done:
	case <-time.After(endLimit): // its host does not answer any more
		x.mu.Lock()
		x.left = true
		x.mu.Unlock()
	}
}

// doubt warns where the task did not see everything.
func (x *task) doubt(rec *record.Migration) {
	if x == nil {
		return
	}
	select {
	case <-x.done:
		if x.err != nil {
			rec.Warn("%s: not all of it was seen: %v", x.name, x.err)
		}
	default:
		rec.Warn("%s: not all of it was seen: it did not end", x.name)
	}
}
