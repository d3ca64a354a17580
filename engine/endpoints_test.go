package engine_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest/within"
)

// mixed is the endpoint of a fake whose events are another's.
func mixed(q, events *fakeQEMU) *endpoint.Endpoint {
	ep := q.endpoint()
	ep.Events = events.endpoint().Control
	return ep
}

// saying makes a fake answer a command with a value.
func saying(q *fakeQEMU, command, value string) { q.says = map[string]string{command: value} }

// The monitors of one endpoint are of one QEMU. Only what both say can tell, for a forwarder may stand between.
func TestMixedMonitors(t *testing.T) {
	t.Parallel()
	twin := func(t *testing.T, status string) *fakeQEMU { return newFake(t, "another", status, "none") }
	for name, c := range map[string]struct {
		other func(t *testing.T) *fakeQEMU
		want  string
	}{
		"vCPU thread": {func(t *testing.T) *fakeQEMU {
			q := twin(t, "running")
			saying(q, "query-cpus-fast", `[{"cpu-index":0,"thread-id":2,"qom-path":"/cpu"}]`)
			return q
		}, "vCPU thread 1, 2"},
		"UUID": {func(t *testing.T) *fakeQEMU {
			q := twin(t, "running")
			saying(q, "query-uuid", `{"UUID":"5cc5b5d3-0000-4000-8000-000000000001"}`)
			return q
		}, "UUID"},
		"name": {func(t *testing.T) *fakeQEMU {
			q := twin(t, "running")
			saying(q, "query-name", `{"name":"web"}`)
			return q
		}, `name "", "web"`},
		"the destination's": {func(t *testing.T) *fakeQEMU { return twin(t, "inmigrate") }, "run state running, inmigrate"},
		"character devices": {func(t *testing.T) *fakeQEMU {
			q := twin(t, "running")
			saying(q, "query-chardev", `[{"label":"compat_monitor0","filename":"unix:/run/c.qmp,server=on"}]`)
			return q
		}, "character devices"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, dst := copying(t), listening(t)
			r, err := engine.Migrate(within.Context(t), mixed(src, c.other(t)), dst.endpoint(), small(plan.Plan{}),
				plan.Options{})
			if err == nil || !strings.Contains(err.Error(), "belong to two QEMUs ("+c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			if len(r.Stages) != 1 {
				t.Errorf("stages %v", r.Stages)
			}
			untold(t, src, "stop", "migrate", "migrate-set-capabilities")
			untold(t, dst, "stop", "quit", "migrate-incoming")
		})
	}
}

// Two QEMUs that say the same are found out by the events that do not come, and the one that may have the guest is left
// alone.
func TestForeignEvents(t *testing.T) {
	t.Parallel()
	t.Run("source's", func(t *testing.T) {
		t.Parallel()
		src, dst, other := copying(t), listening(t), newFake(t, "another", "running", "none")
		src.on["migrate"] = func() { // all is there at once
			src.status = "postmigrate"
			src.migrating("completed")
			go dst.do(func() { dst.status = "paused"; dst.migrating("completed") })
		}
		r, err := engine.Migrate(within.Context(t), mixed(src, other), dst.endpoint(), small(plan.Plan{}), plan.Options{})
		if err == nil || !strings.Contains(err.Error(), "has told of none") || r.GuestOn != record.Unknown {
			t.Errorf("guest on %s: %v", r.GuestOn, err)
		}
		untold(t, dst, "quit", "cont")
		untold(t, src, "cont")
		untold(t, other, "cont", "stop", "quit", "migrate_cancel")
		if dst.runState() != "paused" {
			t.Errorf("the destination, which has the guest, is %s", dst.runState())
		}
	})
	t.Run("destination's", func(t *testing.T) {
		t.Parallel()
		src, dst, other := copying(t), listening(t), newFake(t, "another", "inmigrate", "none")
		r, err := engine.Migrate(within.Context(t), src.endpoint(), mixed(dst, other), small(plan.Plan{}), plan.Options{})
		if err == nil || !strings.Contains(err.Error(), "has told of none") || r.GuestOn != record.Source {
			t.Errorf("guest on %s: %v", r.GuestOn, err)
		}
		untold(t, src, "migrate", "stop")
	})
	t.Run("silent later", func(t *testing.T) { // the way to it was lost without notice
		t.Parallel()
		src, dst := copying(t), listening(t)
		src.moving = true
		ep, muted := src.endpoint(), newMuted(t)
		ep.Events = muted.dial(ep.Control)
		src.on["migrate"] = func() { src.migrating("active"); time.AfterFunc(300*time.Millisecond, muted.mute) }
		r, err := engine.Migrate(within.Context(t), ep, dst.endpoint(), small(plan.Plan{}), plan.Options{})
		if err == nil || !strings.Contains(err.Error(), "source QEMU has not answered for 1s") {
			t.Errorf("guest on %s: %v", r.GuestOn, err)
		}
	})
}

// muted is a connection of which nothing is heard any more from some time on.
type muted struct {
	net.Conn
	gone, over chan struct{}
}

func newMuted(t *testing.T) *muted {
	m := &muted{gone: make(chan struct{}), over: make(chan struct{})}
	t.Cleanup(func() { close(m.over) })
	return m
}

func (m *muted) mute() { close(m.gone) }

func (m *muted) dial(d endpoint.Dialer) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		nc, err := d(ctx)
		if err != nil {
			return nil, err
		}
		return &muted{nc, m.gone, m.over}, nil
	}
}

func (m *muted) Read(b []byte) (n int, err error) {
	for {
		n, err = m.Conn.Read(b)
		select {
		case <-m.gone:
			if err == nil {
				continue
			}
		default:
		}
		return n, err
	}
}

// A socket that nobody listens on beside a first monitor that answers is stale, and says nothing about the QEMU.
func TestRecoverStaleMonitor(t *testing.T) {
	t.Parallel()
	src, dst := both(t, "postmigrate", "completed", "paused", "completed")
	ep := src.endpoint()
	ep.Events = func(context.Context) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "unix", Err: syscall.ECONNREFUSED}
	}
	_, _, err := engine.Recover(within.Context(t), ep, dst.endpoint(), small(plan.Plan{}), plan.Options{})
	if err == nil || !strings.Contains(err.Error(), "reach source") ||
		!strings.Contains(err.Error(), "nothing was changed") {
		t.Error(err)
	}
	untold(t, src, "cont", "migrate_cancel", "quit")
	untold(t, dst, "cont", "quit")
}

// --recover cancels only what the destination shows to come to it.
func TestRecoverSomebodyElses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ source, migration, destination, want string }{
		{"running", "active", "none", "does not even listen"},
		{"running", "active", "setup", "which listens"},
		{"running", "setup", "setup", "which listens"},
		{"running", "active", "failed", "that of destination has ended"},
		{"paused", "active", "cancelled", "that of destination has ended"},
		{"running", "active", "dead", "whether it goes there is not known"},
	} {
		t.Run(c.migration+" "+c.destination, func(t *testing.T) {
			t.Parallel()
			src, dst := both(t, c.source, c.migration, "inmigrate", c.destination)
			if c.destination == "dead" {
				dst.end()
			}
			_, said, err := engine.Recover(within.Context(t), src.endpoint(), dst.endpoint(), small(plan.Plan{}),
				plan.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("says %q: %v", said, err)
			}
			untold(t, src, "migrate_cancel", "yank", "cont", "stop")
			untold(t, dst, "quit", "cont")
		})
	}
}

// An address that cannot be used is found before the destination is good for nothing else.
func TestListenRefused(t *testing.T) {
	t.Parallel()
	t.Run("no host", func(t *testing.T) {
		t.Parallel()
		src, dst := copying(t), listening(t)
		x := moves(within.Context(t), t, 15*time.Second, src, dst, plan.Plan{Listen: "tcp::4444"})
		x.want(t, "running", "inmigrate", "source|unknown")
		x.says(t, "it has no host", "connect tcp:HOST:4444")
		untold(t, dst, "stop", "migrate-incoming", "quit")
	})
	t.Run("in use", func(t *testing.T) {
		t.Parallel()
		src, dst := copying(t), listening(t)
		dst.refuse["migrate-incoming"] = func() string { return "Failed to bind socket: Address already in use" }
		x := moves(within.Context(t), t, 15*time.Second, src, dst, plan.Plan{Listen: "tcp:127.0.0.1:4444"})
		x.want(t, "running", "inmigrate", "source")
		x.says(t, "already in use")
		untold(t, dst, "quit")
		untold(t, src, "migrate")
	})
}

// TestNeverGreets: a monitor that is reached and never greets is given up, however much time the caller has.
func TestNeverGreets(t *testing.T) {
	name := filepath.Join(t.TempDir(), "m")
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ep := &endpoint.Endpoint{Name: "unix:m", Control: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", name)
	}}
	for what, ask := range map[string]func(context.Context) error{
		"inspect": func(ctx context.Context) error {
			_, err := facts.Inspect(ctx, ep, plan.Options{})
			return err
		},
		"recover": func(ctx context.Context) error {
			_, _, err := engine.Recover(ctx, ep, ep, plan.Plan{}, plan.Options{})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			err := ask(ctx)
			if err == nil || !strings.Contains(err.Error(), "unix:m: greeting: none came within") || ctx.Err() != nil {
				t.Errorf("%v; %v", err, ctx.Err())
			}
		})
	}
}
