package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Task is work that runs on a host, beside what it looks at: it takes one In and gives any number of Outs until it
// ends. The package that the work belongs to makes it, and the helper's main lists it. On this machine and its
// namespaces it runs in this process.
type Task[In, Out any] struct {
	// Name is the task's, the package first: "observe.ping".
	Name string
	// Work does it. at is the host as seen from where the work runs: this machine, in the namespace that was asked for.
	// Everything that has an instant carries that host's own, by at.Now. give hands over one Out; it fails when nobody
	// takes it any more, and when ctx has ended: then the one that it fails for was handed over, and is the last. Work
	// ends when it is done, or when ctx ends, and undoes by then what it made.
	Work func(ctx context.Context, at Host, in In, give func(Out) error) error
	// Lasting work goes on when the channel closes: a guest needs it. It ends by itself, and its helper with it.
	Lasting bool
}

// Run does the work on a host and takes what it gives, in its order. It returns when the work has ended; ctx ends it.
func (t Task[In, Out]) Run(ctx context.Context, on Host, in In, take func(Out) error) error {
	far, ok := on.(*Far)
	if !ok {
		return t.Work(ctx, on, in, take)
	}
	input, err := json.Marshal(in)
	if err != nil {
		return err
	}
	err = far.task(ctx, t.Name, input, func(b json.RawMessage) error {
		var out Out
		if err := json.Unmarshal(b, &out); err != nil {
			return fmt.Errorf("%s on %s: %w", t.Name, on.Name(), err)
		}
		return take(out)
	})
	return err
}

// Ask is Run for work that gives one Out.
func (t Task[In, Out]) Ask(ctx context.Context, on Host, in In) (out Out, err error) {
	got := false
	err = t.Run(ctx, on, in, func(o Out) error {
		out, got = o, true
		return nil
	})
	if err == nil && !got {
		err = fmt.Errorf("%s on %s: no answer: %w", t.Name, on.Name(), io.ErrUnexpectedEOF)
	}
	return out, err
}

// Served is a task as a helper lists it.
type Served interface {
	name() string
	lasting() bool
	serve(ctx context.Context, at Host, in json.RawMessage, give func(any) error) error
}

func (t Task[In, Out]) name() string  { return t.Name }
func (t Task[In, Out]) lasting() bool { return t.Lasting }

func (t Task[In, Out]) serve(ctx context.Context, at Host, input json.RawMessage, give func(any) error) error {
	var in In
	if err := json.Unmarshal(input, &in); err != nil {
		return errors.Join(fmt.Errorf("%s: what it was given", t.Name), err)
	}
	return t.Work(ctx, at, in, func(o Out) error { return give(o) })
}
