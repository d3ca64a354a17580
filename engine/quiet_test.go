package engine_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

// asked is what two fakes were asked from an edge on until `cont`.
type asked struct {
	before   int           // questions to the source before the edge
	src, dst []string      // commands
	took     time.Duration // from the edge to `cont`
}

// asking moves a guest between fakes of this version. From the edge of the switch-over to its end it takes gap.
func asking(t *testing.T, version string, mode record.Mode, gap time.Duration) (a asked) {
	src, dst := copying(t), listening(t)
	src.version, dst.version, src.moving = version, version, true
	var edge time.Time
	n := map[*fakeQEMU]int{}
	src.on["migrate"] = func() {
		src.migrating("active")
		dst.do(func() { dst.migrating("active") })
		src.later(soon, func() {
			if mode != record.StopAndCopyMode {
				src.event(`"STOP"`)
			}
			if src.status = "finish-migrate"; version != "7.2" {
				src.migrating("device")
			}
			edge, n[src] = time.Now(), len(src.seen)
			dst.do(func() { n[dst] = len(dst.seen) })
			src.later(gap, func() {
				src.migrating("completed")
				src.status = "postmigrate"
				dst.do(func() { dst.status = "paused"; dst.migrating("completed") })
			})
		})
	}
	resume := dst.on["cont"]
	dst.on["cont"] = func() {
		a.took, a.dst = time.Since(edge), slices.Clone(dst.seen[n[dst]:])
		src.do(func() { a.before, a.src = n[src], slices.Clone(src.seen[n[src]:]) })
		resume()
	}
	x := moves(within.Context(t), t, 20*time.Second, src, dst,
		plan.Plan{Mode: mode, SampleInterval: 10 * time.Millisecond, RecoverLimit: time.Minute})
	x.want(t, "postmigrate", "running", "destination")
	if x.rec.Downtime.Status == nil {
		t.Error("no bracket")
	}
	return a
}

func count(all []string, command string) (n int) {
	for _, c := range all {
		if c == command {
			n++
		}
	}
	return n
}

// TestQuiet: between STOP and RESUME of a short switch-over the destination is sent `cont`, and the source is asked who
// stopped the guest. Nothing else is sent to either but what was on its way when STOP came.
func TestQuiet(t *testing.T) {
	var cases []caseOf
	for _, version := range []string{"7.2", "10.0", "11.1"} {
		for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
			if version == "7.2" && mode == record.StopAndCopyMode { // nothing tells where its last stage begins
				continue
			}
			cases = append(cases, caseOf{fmt.Sprint(version, " ", mode), func(t *testing.T) {
				for range 5 {
					a := asking(t, version, mode, 150*time.Millisecond)
					if a.took > run.QuietLimit*4/5 { // this machine was too busy for a short one
						continue
					}
					if n := len(a.dst) - 1; a.dst[n] != "cont" || count(a.dst, "query-status") != n || n > 2 {
						t.Errorf("the destination was sent %q", a.dst)
					}
					if count(a.src, "query-status") > 2 || count(a.src, "query-migrate") > 1 || len(a.src) > 3 {
						t.Errorf("the source was sent %q", a.src)
					}
					if a.before < 10 {
						t.Errorf("it was asked %d times before", a.before)
					}
					return
				}
				t.Error("five switch-overs of 150 ms took too long")
			}})
		}
	}
	// A long one is watched.
	cases = append(cases, caseOf{"long", func(t *testing.T) {
		a := asking(t, "7.2", record.PreCopyMode, 2*run.QuietLimit)
		if count(a.src, "query-migrate") < 3 || count(a.dst, "query-status") < 3 {
			t.Errorf("the source was sent %q, the destination %q", a.src, a.dst)
		}
	}})
	atOnce(t, cases)
}

// tap notes what is said to two QEMUs, and when STOP and RESUME came from them.
type tap struct {
	mu           sync.Mutex
	said         []sentTo
	stop, resume time.Time
	stopped      func()
}

type sentTo struct {
	at       time.Time
	to, what string
}

func (x *tap) of(e *endpoint.Endpoint, side string) *endpoint.Endpoint {
	through := func(dial endpoint.Dialer) endpoint.Dialer {
		return func(ctx context.Context) (net.Conn, error) {
			nc, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return &tapped{nc, x, side}, nil
		}
	}
	e.Control, e.Events, e.Sampler = through(e.Control), through(e.Events), through(e.Sampler)
	return e
}

type tapped struct {
	net.Conn
	tap  *tap
	side string
}

var executes = regexp.MustCompile(`"execute": ?"([^"]*)"`)

func (c *tapped) Write(b []byte) (int, error) {
	c.tap.mu.Lock()
	for _, m := range executes.FindAllSubmatch(b, -1) {
		c.tap.said = append(c.tap.said, sentTo{time.Now(), c.side, string(m[1])})
	}
	c.tap.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *tapped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	switch {
	case c.side == "source" && c.tap.stop.IsZero() && bytes.Contains(b[:n], []byte(`"event": "STOP"`)):
		c.tap.stop = time.Now()
		c.tap.stopped()
	case c.side == "destination" && c.tap.resume.IsZero() && bytes.Contains(b[:n], []byte(`"event": "RESUME"`)):
		c.tap.resume = time.Now()
	}
	return n, err
}

// TestQuietReal is the same on real QEMUs. The destination is held for a moment in the switch-over, so that there is
// time to ask.
func TestQuietReal(t *testing.T) {
	t.Parallel()
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, mode := range []record.Mode{record.PreCopyMode, record.PostCopyMode} {
			t.Run(string(mode), func(t *testing.T) {
				t.Parallel()
				src, dst := pair(t, qemu, nil)
				x := &tap{stopped: func() {
					if err := dst.Process().Signal(syscall.SIGSTOP); err != nil {
						t.Error(err)
					}
					time.AfterFunc(150*time.Millisecond, func() { _ = dst.Process().Signal(syscall.SIGCONT) })
				}}
				r, err := engine.Migrate(within.Context(t), x.of(connect.Endpoint(src), "source"), x.of(connect.Endpoint(dst), "destination"),
					plan.Plan{Mode: mode, MaxBandwidth: 8 * slow}, plan.Options{})
				if err != nil {
					t.Fatal(err)
				}
				wantRecord(t, r)
				x.mu.Lock()
				defer x.mu.Unlock()
				end := x.resume
				if quiet := x.stop.Add(run.QuietLimit * 4 / 5); end.After(quiet) { // this machine is too busy for a short one
					end = quiet
				}
				asked := map[string][]string{}
				for _, s := range x.said {
					if s.at.After(x.stop) && s.at.Before(end) {
						asked[s.to] = append(asked[s.to], s.what)
					}
				}
				t.Logf("in %v: %q", x.resume.Sub(x.stop), asked)
				if n := count(asked["destination"], "query-status"); n > 2 || len(asked["destination"]) > n+1 {
					t.Errorf("the destination was sent %q", asked["destination"])
				}
				if mode == record.PostCopyMode && strings.Contains(qemu, "7.2") { // it is asked whether it has surely given the guest away
					return
				}
				if a := asked["source"]; count(a, "query-status") > 2 || count(a, "query-migrate") > 1 || len(a) > 3 {
					t.Errorf("the source was sent %q", a)
				}
			})
		}
	})
}
