package engine_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host/hosttest"
)

// farTrial is a trial whose QEMUs are reached over a channel each: ssh://source and ssh://destination.
func farTrial(t *testing.T, qemu string, change func(a, b *guest.Spec)) (*trial, *hosttest.Hosts) {
	t.Helper()
	h := hosttest.New(t, nil)
	x := newTrial(t, qemu, true, change)
	var err error
	if x.from, err = connect.Parse("ssh://source"+x.src.Spec().Dir, h.Pool); err == nil {
		x.to, err = connect.Parse("ssh://destination"+x.dst.Spec().Dir, h.Pool)
	}
	if err != nil {
		t.Fatal(err)
	}
	return x, h
}

// breaks are what may happen to a channel, by their names.
var breaks = []struct {
	name string
	do   func(*hosttest.Channel)
}{
	{"ssh killed", (*hosttest.Channel).KillSSH},
	{"helper killed", (*hosttest.Channel).KillHelper},
	{"link stopped", (*hosttest.Channel).StopSSH},
	{"helper stopped", func(c *hosttest.Channel) {
		c.StopHelper()
		time.AfterFunc(16*time.Second, c.Continue) // it is noticed by then
	}},
}

// A channel that breaks is no QEMU that dies: the run ends with the guest where decision 2 has it, and says so.
func TestChannelBreaks(t *testing.T) {
	const s, d = record.Source, record.Destination
	mirror := plan.Plan{Mirror: plan.Mirror{Nodes: []string{"disk0"}}}
	postcopy := plan.Plan{Mode: record.PostCopyMode, MaxBandwidth: 512 << 10}
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		n := 0
		for _, c := range []struct {
			at     edge
			plan   plan.Plan
			guest  record.Holder // where it must be, whichever channel breaks
			anyway bool          // also without an error
		}{
			{sent(d, "migrate-incoming"), plan.Plan{}, s, false},
			{got(s, `"status": "active"`), plan.Plan{MaxBandwidth: 512 << 10}, s, false},
			{event(s, "STOP"), plan.Plan{MaxBandwidth: 512 << 10}, "", true},
			{got(d, `"status": "completed"`), plan.Plan{}, "", true},
			{done(record.Commitment), plan.Plan{}, d, true},
			{sent(d, "cont"), plan.Plan{}, d, true},
			{sent(s, "migrate-start-postcopy"), postcopy, "", true},
			{event(d, "RESUME"), postcopy, d, true},
			{done(record.Activation), postcopy, d, true},
			{sent(s, "blockdev-mirror"), mirror, s, false},
			{got(s, "pre-switchover"), mirror, "", true},
		} {
			for _, who := range []record.Holder{s, d} {
				how := breaks[n%len(breaks)]
				if !thorough() && n != 2 && n != 11 { // the others take 14 s to be noticed
					how = breaks[n%2]
				}
				if n++; !mine(n) {
					continue
				}
				t.Run(fmt.Sprint(c.at, "/", who, "/", how.name), func(t *testing.T) {
					t.Parallel()
					var change func(a, b *guest.Spec)
					if len(c.plan.Mirror.Nodes) > 0 {
						change = mirrored(t, nil)
					}
					x, h := farTrial(t, qemu, change)
					x.plan = c.plan
					var channel *hosttest.Channel
					begun := time.Now()
					x.run(t, c.at, 0, func() {
						channel = h.Channel(string(who))
						how.do(channel)
					})
					if channel != nil { // what holds a monitor lets go of it
						channel.Continue()
					}
					x.check(t)
					switch {
					case channel == nil:
						t.Fatalf("the edge never came: %v", x.err)
					case x.err == nil && !c.anyway:
						t.Error("the channel broke, and there is no error")
					case c.guest != "" && x.rec.GuestOn != c.guest, x.rec.GuestOn == record.Unknown, x.rec.GuestOn == record.None:
						t.Errorf("the guest is said to be on %s, want %s: %v", x.rec.GuestOn, c.guest, x.err)
					case x.a != "running" && x.b != "running":
						t.Errorf("source %s, destination %s: %v", x.a, x.b, x.err)
					}
					x.say(t, fmt.Sprint(c.at, " ", how.name, " ", time.Since(begun).Round(time.Millisecond)))
					t.Log(x.err)
					x.recovered(t)
				})
			}
		}
	})
}

// TestChannelBreaksAtRandom breaks either channel at any moment, in each of its ways.
func TestChannelBreaksAtRandom(t *testing.T) {
	random := seed(t)
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for i := range chaos(t, 2) {
			p := []plan.Plan{{MaxBandwidth: 60 << 10}, {Mode: record.PostCopyMode, MaxBandwidth: 512 << 10},
				{Mirror: plan.Mirror{Nodes: []string{"disk0"}, MaxBandwidth: 4 << 20}}}[random.IntN(3)]
			who := []record.Holder{record.Source, record.Destination}[random.IntN(2)]
			how := breaks[random.IntN(len(breaks))]
			lasts := 2500 * time.Millisecond
			if p.Mode == record.PostCopyMode {
				lasts = time.Second
			}
			after := time.Duration(random.Int64N(int64(lasts)))
			t.Run(fmt.Sprint(i, who, how.name, after, p.Mode, p.Mirror.Nodes), func(t *testing.T) {
				t.Parallel()
				var change func(a, b *guest.Spec)
				if len(p.Mirror.Nodes) > 0 {
					change = mirrored(t, nil)
				}
				x, h := farTrial(t, qemu, change)
				x.plan = p
				for _, name := range []string{"source", "destination"} { // so that there is something to break
					if _, err := h.Pool.Find(within.Context(t), "ssh://"+name); err != nil {
						t.Fatal(err)
					}
				}
				channel := h.Channel(string(who))
				x.run(t, never, after, func() { how.do(channel) })
				channel.Continue()
				x.check(t)
				if x.a != "running" && x.b != "running" {
					t.Errorf("source %s, destination %s: %v", x.a, x.b, x.err)
				}
				x.say(t, fmt.Sprint(how.name, " after ", after.Round(time.Millisecond)))
				x.recovered(t)
			})
		}
	})
}

// A host that is not reached again: what becomes of the guest is not known, and that is said. The next command finds out.
func TestChannelStaysBroken(t *testing.T) {
	x, h := farTrial(t, guesttest.QEMU(t, "10.0"), nil)
	x.plan = plan.Plan{MaxBandwidth: slow}
	x.from.Again, x.to.Again = time.Second, time.Second
	x.run(t, got(record.Source, `"status": "active"`), 0, func() {
		h.Refuse("source")
		h.Channel("source").KillSSH()
	})
	x.check(t)
	x.say(t, "the source's host is not reached again")
	t.Log(x.err)
	// The source may complete meanwhile: then nobody runs it.
	if on := x.rec.GuestOn; on != record.Unknown && on != record.None || !strings.Contains(x.err.Error(), "--recover") {
		t.Errorf("the guest is said to be on %s: %v", on, x.err)
	}
	h.Accept("source")
	holder, said, err := engine.Recover(within.Context(t), x.from, x.to, plan.Plan{}, plan.Options{})
	x.look(t)
	t.Log(holder, said, err, x.a, x.b)
	if err != nil || holder == record.Source && x.a != "running" || holder == record.Destination && x.b != "running" {
		t.Errorf("%s, %q, %v; source %s, destination %s", holder, said, err, x.a, x.b)
	}
}

// Disks are copied, and the guest goes over to post-copy, between two hosts that are reached over channels.
func TestFarModes(t *testing.T) {
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		for i, p := range []plan.Plan{{Mirror: plan.Mirror{Nodes: []string{"disk0"}}}, {Mode: record.PostCopyMode, MaxBandwidth: 512 << 10},
			{Mode: record.StopAndCopyMode}, {Mode: record.HybridMode, MaxBandwidth: 512 << 10}} {
			if i > 0 && !mine(i) {
				continue
			}
			t.Run(fmt.Sprint(p.Mode, p.Mirror.Nodes), func(t *testing.T) {
				change := func(a, b *guest.Spec) {}
				if len(p.Mirror.Nodes) > 0 {
					change = mirrored(t, nil)
				}
				x, _ := farTrial(t, qemu, change)
				if err := connect.Listen(within.Context(t), &p, x.from, x.to); err != nil {
					t.Fatal(err)
				}
				x.plan = p
				x.run(t, never, 0, nil)
				x.check(t)
				if x.err != nil || x.b != "running" || x.rec.Outcome != record.Completed {
					t.Errorf("%s: source %s, destination %s: %v", x.rec.Outcome, x.a, x.b, x.err)
				}
				t.Logf("total %v, initialization %v, reservation %v, warnings %q", x.rec.Total.Wall, x.rec.Stages[0].Duration,
					x.rec.Stages[1].Duration, x.rec.Warnings)
			})
		}
	})
}

// A QEMU that dies together with its channel is found dead over the new one. A channel alone proves nothing.
func TestChannelAndQEMU(t *testing.T) {
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		for i, who := range []record.Holder{record.Source, record.Destination} {
			if !mine(i) {
				continue
			}
			t.Run(string(who), func(t *testing.T) {
				t.Parallel()
				x, h := farTrial(t, qemu, nil)
				x.plan = plan.Plan{MaxBandwidth: slow}
				x.run(t, got(record.Source, `"status": "active"`), 0, func() {
					h.Channel(string(who)).KillSSH()
					x.kill(t, who)
				})
				x.check(t)
				x.say(t, "with its channel")
				switch {
				case who == record.Destination && (x.rec.GuestOn != record.Source || x.a != "running"):
					t.Errorf("guest said to be on %s, source %s: %v", x.rec.GuestOn, x.a, x.err)
				case who == record.Source && (x.rec.GuestOn != record.None || !strings.Contains(x.err.Error(), "it is lost")):
					t.Errorf("guest said to be on %s: %v", x.rec.GuestOn, x.err)
				}
			})
		}
	})
}

// A helper whose link is cut holds the monitor until it notices: the next command waits for that.
func TestHelperHoldsMonitor(t *testing.T) {
	x, h := farTrial(t, guesttest.QEMU(t, "10.0"), nil)
	nc, err := x.from.Control(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	channel := h.Channel("source")
	channel.StopSSH()
	defer channel.Continue()
	next, begun := hosttest.New(t, nil), time.Now()
	from, err := connect.Parse("ssh://source"+x.src.Spec().Dir, next.Pool)
	if err != nil {
		t.Fatal(err)
	}
	to, err := connect.Parse("ssh://destination"+x.dst.Spec().Dir, next.Pool)
	if err != nil {
		t.Fatal(err)
	}
	holder, said, err := engine.Recover(within.Context(t), from, to, plan.Plan{}, plan.Options{})
	if err != nil || holder != record.Source {
		t.Errorf("%s, %q, %v", holder, said, err)
	}
	t.Log(said, "after", time.Since(begun))
}
