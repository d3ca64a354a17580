package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
)

// clockRuns says how many migrations TestClocks does; unset: few, and a clock is stepped one way only.
const clockRuns = "QMIGRATE_CLOCK_RUNS"

// wrongClock is a host whose helper and whose QEMUs show a wrong clock.
func wrongClock(t *testing.T, d host.Drift) host.Host {
	t.Helper()
	guesttest.Starts(t)
	hosts := hosttest.New(t, map[string]hosttest.Machine{"wrong": {Env: hosttest.WrongClock(t, d)}})
	h, err := hosts.Pool.Find(within.Context(t), "ssh://wrong")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// instant is the instant of the kernel's clock at which d shows a time.
func instant(d host.Drift, shown time.Time) time.Time {
	back := func(shown time.Time) time.Time {
		x := shown.Add(-d.Offset).Sub(d.From)
		return d.From.Add(time.Duration(float64(x) / (1 + d.PPM/1e6)))
	}
	if t := back(shown); d.Step.IsZero() || t.Before(d.Step) {
		return t
	}
	return back(shown.Add(-d.StepBy))
}

// stamps hears what comes over a QEMU's monitor, and keeps QEMU's stamps of the first event of each name.
type stamps struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (s *stamps) dialer(dial endpoint.Dialer) endpoint.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		nc, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return &heard{nc, s}, nil
	}
}

type heard struct {
	net.Conn
	by *stamps
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	h.by.mu.Lock()
	h.by.all.Write(b[:n])
	h.by.mu.Unlock()
	return n, err
}

func (s *stamps) of(t *testing.T, event string) time.Time {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range bytes.Lines(s.all.Bytes()) {
		var ev struct {
			Event     string
			Timestamp struct{ Seconds, Microseconds int64 }
		}
		if json.Unmarshal(line, &ev) == nil && ev.Event == event {
			return time.Unix(ev.Timestamp.Seconds, ev.Timestamp.Microseconds*1000)
		}
	}
	t.Fatalf("no %s was heard", event)
	return time.Time{}
}

// moved migrates between a host with a wrong clock and this one, and returns the true time from STOP to RESUME: by both
// QEMUs' stamps, of which the wrong ones are put right by the formula that made them wrong.
func moved(t *testing.T, qemu string, d host.Drift, h host.Host, wrongIsSource bool, memory, rate int64,
	begin func()) (*record.Migration, time.Duration) {
	t.Helper()
	hosts := [2]host.Host{host.Local(), h}
	if wrongIsSource {
		slices.Reverse(hosts[:])
	}
	src, dst := pairOn(t, hosts, qemu, func(a, b *guest.Spec) { a.Memory, b.Memory = memory, memory })
	var heardOf [2]stamps
	a, b := connect.Endpoint(src), connect.Endpoint(dst)
	a.Events, b.Events = heardOf[0].dialer(a.Events), heardOf[1].dialer(b.Events)
	begin()
	r, err := engine.Migrate(within.Context(t), a, b, plan.Plan{MaxBandwidth: rate}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantRecord(t, r)
	stop, resume := heardOf[0].of(t, "STOP"), heardOf[1].of(t, "RESUME")
	c := r.Clocks
	if c == nil || wrongIsSource != (c.Source != nil) || wrongIsSource == (c.Destination != nil) {
		t.Fatalf("clocks %+v", c)
	}
	if wrongIsSource {
		stop = instant(d, stop)
	} else {
		resume = instant(d, resume)
	}
	return r, resume.Sub(stop)
}

// drifting is 5 s ahead and drifts by 300 ppm, for an hour already.
func drifting() host.Drift {
	return host.Drift{Offset: 5 * time.Second, PPM: 300, From: time.Now().Round(0).Add(-time.Hour)}
}

// TestClocks: a host's clock is 5 s off and drifts by 300 ppm. The wire downtime and its second witness are within
// their stated errors, whichever side that host is.
func TestClocks(t *testing.T) {
	runs := 3
	if text := os.Getenv(clockRuns); text != "" {
		var err error
		if runs, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", clockRuns, err)
		}
	}
	versions := guesttest.Versions()
	d := drifting()
	h := wrongClock(t, d)
	var offs, errs []time.Duration
	for i := range runs {
		t.Run(strconv.Itoa(i+1), func(t *testing.T) {
			qemu, wrongIsSource := guesttest.QEMU(t, versions[i%len(versions)]), i%2 == 0
			r, truth := moved(t, qemu, d, h, wrongIsSource, int64(64+64*(i%4))<<20, 512<<10, func() {})
			c, down := r.Clocks.Source, r.Downtime
			if !wrongIsSource {
				c = r.Clocks.Destination
			}
			if down.Wire == nil || down.WireError == nil || down.Arrival == nil || down.ArrivalError == nil {
				t.Fatalf("downtimes are missing: %+v", down)
			}
			off := (*down.Wire - truth).Abs()
			drift := "drift not told"
			if c.Drift != nil {
				drift = fmt.Sprintf("drift %.0f ppm +/- %.0f", *c.Drift, *c.DriftError)
			}
			t.Logf("wire %v +/- %v, is %v: off by %v; arrival %v +/- %v; clock %+v +/- %v, %s, %d looks", *down.Wire, *down.WireError,
				truth, off, *down.Arrival, *down.ArrivalError, c.Offset, c.Error, drift, c.Samples)
			if off > *down.WireError {
				t.Errorf("wire downtime %v +/- %v, is %v", *down.Wire, *down.WireError, truth)
			}
			if (*down.Arrival-truth).Abs() > *down.ArrivalError || strings.Contains(strings.Join(r.Warnings, "\n"), "by when both were here") {
				t.Errorf("arrival %v +/- %v, is %v; warns %q", *down.Arrival, *down.ArrivalError, truth, r.Warnings)
			}
			began := r.StartedAt
			if is := d.At(began).Sub(began); (c.Offset - is).Abs() > c.Error+time.Millisecond { // a second more or less is 300 us
				t.Errorf("offset %v +/- %v, is %v", c.Offset, c.Error, is)
			}
			if c.Drift != nil && (*c.Drift < 300-*c.DriftError-1 || *c.Drift > 300+*c.DriftError+1) {
				t.Errorf("drift %v ppm +/- %v, is 300", *c.Drift, *c.DriftError)
			}
			if len(c.Steps) > 0 {
				t.Errorf("steps %+v", c.Steps)
			}
			offs, errs = append(offs, off), append(errs, *down.WireError)
		})
	}
	if len(offs) > 0 {
		slices.Sort(offs)
		slices.Sort(errs)
		t.Logf("%d runs: off by %v at the median, %v at most; stated errors from %v to %v, median %v", len(offs), offs[len(offs)/2],
			offs[len(offs)-1], errs[0], errs[len(errs)-1], errs[len(errs)/2])
	}
}

// TestClockStep: a host's clock is set by 1 s while the guest's memory is copied: that is warned of, and the wire
// downtime, seconds later, is right all the same.
func TestClockStep(t *testing.T) {
	steps := map[string]time.Duration{"back": -time.Second}
	if os.Getenv(clockRuns) != "" {
		steps["forwards"] = time.Second
	}
	for name, by := range steps {
		t.Run(name, func(t *testing.T) {
			qemu := guesttest.QEMU(t, "10.0")
			for lead := 2500 * time.Millisecond; ; lead *= 2 {
				d := drifting()
				d.Step, d.StepBy = time.Now().Round(0).Add(lead), by
				h := wrongClock(t, d)
				late := false
				r, truth := moved(t, qemu, d, h, false, 384<<20, slow, func() {
					late = time.Until(d.Step) < time.Second/2
					time.Sleep(time.Until(d.Step) - 1200*time.Millisecond)
				})
				if late { // the QEMUs took their time
					continue
				}
				said, down := strings.Join(r.Warnings, "\n"), r.Downtime
				if k := r.Clocks.Destination; len(k.Steps) != 1 || (k.Steps[0].By-by).Abs() > k.Steps[0].Error+time.Millisecond ||
					!strings.Contains(said, "clock of the destination's host was set") {
					t.Errorf("steps %+v, warns %q", k.Steps, said)
				}
				t.Logf("wire %v +/- %v, is %v; warns %q", *down.Wire, *down.WireError, truth, said)
				if (*down.Wire - truth).Abs() > *down.WireError {
					t.Errorf("wire downtime %v +/- %v, is %v", *down.Wire, *down.WireError, truth)
				}
				return
			}
		})
	}
}
