package policy

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
)

const (
	mib = 1 << 20
	ms  = time.Millisecond
)

// at is one sample: 10 MiB/s go out, the throughput of QEMU's windows too.
func at(t time.Duration, remaining, syncs int64) record.Sample {
	return record.Sample{T: t, Asked: t, Side: record.Source, Status: "active", Transferred: record.Of(int64(t.Seconds() * 10 * mib)),
		Remaining: record.Of(remaining), SyncCount: record.Of(syncs), Throughput: record.Of(10.0 * mib), Pages: record.Of(int64(t / ms))}
}

func limits() Limits {
	return Limits{MemoryBytes: 1 << 30, MaxBandwidth: 10 * mib, DowntimeLimit: 300 * ms, CanPostCopy: true, CanThrottle: true, CanSwitchoverBandwidth: true}
}

// passes makes samples each step: found[i] is what sync i found; a pass goes down from it, 10 MiB/s.
func passes(step time.Duration, found ...int64) []record.Sample {
	var all []record.Sample
	t := step
	for i, f := range found {
		for left := f; ; t += step {
			all = append(all, at(t, left, int64(i+1)))
			if left -= int64(step.Seconds() * 10 * mib); left <= 0 {
				t += step
				break
			}
		}
	}
	return all
}

func decide(t *testing.T, text string, l Limits, series []record.Sample) []Decision {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	setting, _, err := s.Initial(l)
	if err != nil {
		t.Fatal(err)
	}
	return Replay(s.Policy(), l, setting, 0, series)
}

// TestFold: passes by the rises of the sync count; 11.1 counts from 0; what tells nothing is skipped.
func TestFold(t *testing.T) {
	for name, base := range map[string]int64{"set-up counted": 1, "not counted": 0} {
		var h *History
		f := Follow(func(now *History) Decision { h = now; return Decision{} }, limits(), Setting{}, 100*ms)
		for _, x := range []record.Sample{
			at(50*ms, 9*mib, base), // before `migrate`
			at(200*ms, 8*mib, base), at(300*ms, 7*mib, 1), at(300*ms, 0, 9), {T: 350 * ms, Status: "active", Side: record.Source}, at(400*ms, 5*mib, 2), at(500*ms, 4*mib, 2), at(600*ms, 3*mib, 5),
			{T: 700 * ms, Status: "completed", Side: record.Source, Transferred: record.Of(int64(1)), Remaining: record.Of(int64(0)), SyncCount: record.Of(int64(6))},
		} {
			f.Observe(x)
		}
		want := []Pass{{Number: 1, Start: 100 * ms, Duration: 300 * ms, Sent: 2 * mib, Begin: 8 * mib, End: 7 * mib}, {Number: 2, Start: 400 * ms, Duration: 200 * ms, Sent: 2 * mib, Begin: 5 * mib, End: 4 * mib}}
		if !reflect.DeepEqual(h.Passes, want) || len(h.Series) != 5 || h.Current.Number != 5 || h.Current.Begin != 3*mib || !h.Edge {
			t.Errorf("%s: %+v, running %+v, %d samples", name, h.Passes, h.Current, len(h.Series))
		}
	}
}

// TestDecisions has each policy decide on a series whose decisions its formula gives by hand.
func TestDecisions(t *testing.T) {
	stalling := passes(100*ms, 60*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib, 30*mib)
	without := limits()
	without.CanPostCopy = false
	throttling := passes(100*ms, 60*mib, 30*mib, 30*mib, 30*mib, 30*mib)
	for i := range throttling {
		throttling[i].Throttle, throttling[i].ExpectedDowntime = record.Of(int64(99)), record.Of(2500*ms)
	}
	for _, test := range []struct {
		policy string
		limits Limits
		series []record.Sample
		want   []string // action, at, and what the text ends with
	}{
		{"none", limits(), stalling, nil},
		{"auto-converge", limits(), stalling, nil},
		{"timeout:after=7s", limits(), stalling, []string{"abort 7.1s pass 2: not done after 7 s, 20 MiB left; abort"}},
		{"timeout:per-gib=8s,action=stop", limits(), stalling, []string{"stop 8.1s pass 2: not done after 8 s, 10 MiB left; stop"}},
		{"timeout:after=7s,action=post-copy", limits(), stalling, []string{"post-copy 7.1s pass 2: not done after 7 s, 20 MiB left; post-copy"}},
		{"post-copy-on-stall", limits(), stalling, []string{"post-copy 9.1s pass 3: stalled: 30 MiB > 0.90 x 30 MiB; post-copy"}},
		{"steps:max=400ms,steps=4,delay=10s,least=1GiB", limits(), stalling, []string{"post-copy 9.1s pass 3: 30 MiB left after 30 MiB: progress under 10 %; post-copy"}},
		{"steps:max=400ms,steps=4,delay=10s,least=1GiB", without, stalling[:350], []string{"set 10.1s pass 3: step 1 of 4 after 10 s; set downtime-limit to 175 ms",
			"set 20.1s pass 6: step 2 of 4 after 20 s; set downtime-limit to 250 ms", "set 30.1s pass 10: step 3 of 4 after 30 s; set downtime-limit to 325 ms"}},
		{"ramp:max=350ms,levels=3", limits(), stalling, []string{"set 19.1s pass 6: 20 MiB left, 10 s since the last step; raise downtime-limit to 250 ms",
			"set 29.1s pass 9: 10 MiB left, 10 s since the last step; raise downtime-limit to 350 ms"}},
		{"doubling:signs=3,max=500ms", limits(), stalling, []string{"set 12.1s pass 4: 3 signs of no progress, 30 MiB left; raise downtime-limit to 500 ms"}},
		{"stall:timeout=5s,max=1900ms", without, stalling, []string{"abort 12.1s pass 4: stalled: 30 MiB >= 0.96 x 30 MiB since 6 s; local minimum, downtime would be 3 s, over 1.5 x 1.9 s: hopeless; abort"}},
		{"stall:timeout=5s,max=2500ms,switchover=10s", without, stalling, []string{"set 12.1s pass 4: stalled: 30 MiB >= 0.96 x 30 MiB since 6 s; local minimum, downtime would be 3 s; raise downtime-limit to 2.5 s",
			"abort 22.2s pass 7: no switch-over within 10 s of raising downtime-limit; abort"}},
		{"stall:timeout=5s", limits(), stalling, []string{"post-copy 12.1s pass 4: stalled: 30 MiB >= 0.96 x 30 MiB since 6 s; local minimum, downtime would be 3 s; post-copy"}},
		{"quick-finish", limits(), throttling, []string{"set 10s pass 3: throttle is at 99 %, expected downtime 2.5 s; raise downtime-limit to 2.5 s"}},
		{"quick-finish", limits(), stalling, nil},
	} {
		var got []string
		for _, d := range decide(t, test.policy, test.limits, test.series) {
			got = append(got, string(d.Action)+" "+d.At.String()+" "+d.Text)
		}
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s:\ngot  %s\nwant %s", test.policy, strings.Join(got, "\n     "), strings.Join(test.want, "\n     "))
		}
	}
}

// TestLocalMinimum: a stall is left at a level as good as the best since; when that does not come again, at one that relaxation allows.
func TestLocalMinimum(t *testing.T) {
	series := func(bytes ...int64) (all []found) {
		for i, b := range bytes {
			all = append(all, found{time.Duration(i) * time.Second, b})
		}
		return all
	}
	for _, test := range []struct {
		name  string
		bytes []int64
		want  bool
	}{
		{"still falling", []int64{1000, 800, 600, 400, 200, 100}, false},
		{"flat", []int64{1000, 1000, 1000, 1000, 1000}, true},
		{"risen above the best", []int64{1000, 900, 1000, 1100, 1100}, false},
		{"back at the best", []int64{1000, 900, 1000, 1100, 1100, 930}, true},
		{"relaxed after the patience", []int64{1000, 100, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000}, true},
		{"too young to tell", []int64{1000, 1000}, false},
	} {
		if _, _, got := localMinimum(series(test.bytes...), 3*time.Second, 0.04, 0.5); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestNothingAfterTheEnd: a policy is not asked again after it has ended the migration or handed it over.
func TestNothingAfterTheEnd(t *testing.T) {
	for _, a := range []Action{Stop, PostCopy, Abort} {
		f := Follow(func(*History) Decision { return Decision{Action: a, Text: "enough"} }, limits(), Setting{}, 0)
		f.Observe(at(100*ms, mib, 1))
		if d := f.Observe(at(200*ms, mib, 1)); d.Action != "" || len(f.Made()) != 1 || f.Made()[0].Text != "pass 1: enough" {
			t.Errorf("after %s: %+v", a, f.Made())
		}
	}
}

func TestChanged(t *testing.T) {
	before := Setting{MaxBandwidth: 16 * mib, DowntimeLimit: 300 * ms}
	after := Setting{DowntimeLimit: 210 * ms, ThrottleInitial: 80, ThrottleIncrement: 80, ThrottleMax: 80, SwitchoverBandwidth: 800}
	want := map[string]int64{"max-bandwidth": 0, "downtime-limit": 210, "cpu-throttle-initial": 80, "cpu-throttle-increment": 80, "max-cpu-throttle": 80, "avail-switchover-bandwidth": 800}
	if got := after.Changed(before); !reflect.DeepEqual(got, want) {
		t.Errorf("changed: %v, want %v", got, want)
	}
	if got := after.Changed(after); len(got) != 0 {
		t.Errorf("nothing changed, and %v", got)
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"none":                                  "none",
		"stall":                                 "stall:timeout=40s,margin=4%,max=900ms,hopeless=150%,decay=50%,alpha=40%,switchover=1m0s,per-gib=2m30s,factor=200%",
		" steps:max=1s, least=1GB":              "steps:max=1s,steps=10,delay=1m15s,least=1000000000B,progress=10%",
		"timeout:action=post-copy,after=90s":    "timeout:after=1m30s,per-gib=2m30s,action=post-copy",
		"switchover:probe=off":                  "switchover:margin=20%,device=30ms,probe=off,throttle=on,patience=2s,hopeless=wait",
		"ramp:levels=2":                         "ramp:initial=150ms,max=1.05s,levels=2,from=3,cooldown=10s",
		"quick-finish:max=90 %,limit=2000000ms": "quick-finish:initial=20%,increment=10%,max=90%,limit=33m20s",
	} {
		s, err := Parse(text)
		if err != nil || s.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, s.String(), err, want)
		}
	}
	for text, want := range map[string]string{
		"":                      "have none, timeout, doubling",
		"elsewhere":             "have none, timeout, doubling",
		"swithover":             "did you mean switchover?",
		"switchover:marginn=1":  "did you mean margin?",
		"none:x=1":              "it takes none",
		"stall:":                "not of the form key=value: it takes timeout=40s",
		"stall:wait=1s":         `no parameter "wait": it takes timeout=40s`,
		"stall:timeout=5":       "has no unit: write it as 300ms",
		"stall:margin=4":        "write it as 4%",
		"stall:margin=400%":     "out of range: from 0% to 100%",
		"steps:steps=0":         "out of range: from 1 to 1000",
		"steps:steps=2s":        "not a whole number: write it as 10",
		"steps:least=2":         "has no unit",
		"timeout:action=drop":   "none of abort, stop, post-copy",
		"ramp:max=3h":           "out of range: from 1ms to 33m20s",
		"ramp:max=1s,max=2s":    "given twice",
		"timeout:per-gib=0s":    "at least 1ns",
		"switchover:margin=95%": "from 0% to 90%",
	} {
		if s, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) || !reflect.DeepEqual(s, Spec{}) {
			t.Errorf("%q: %v, %v; want an error with %q", text, s, err, want)
		}
	}
}

// TestNeeds: what a policy is nothing without is refused, and what it can do without is not.
func TestNeeds(t *testing.T) {
	all, nothing := limits(), Limits{MemoryBytes: 1 << 30, DowntimeLimit: 300 * ms}
	for text, want := range map[string]struct {
		capabilities []string
		refused      string
	}{
		"none":                     {},
		"steps":                    {capabilities: []string{"postcopy-ram"}},
		"stall":                    {capabilities: []string{"postcopy-ram"}},
		"switchover":               {capabilities: []string{"auto-converge", "postcopy-ram"}},
		"switchover:throttle=off":  {capabilities: []string{"postcopy-ram"}},
		"post-copy-on-stall":       {capabilities: []string{"postcopy-ram"}, refused: "policy post-copy-on-stall: post-copy is not possible"},
		"timeout:action=post-copy": {capabilities: []string{"postcopy-ram"}, refused: "policy timeout: post-copy is not possible"},
		"auto-converge":            {capabilities: []string{"auto-converge"}, refused: "policy auto-converge: the capability auto-converge"},
		"quick-finish":             {capabilities: []string{"auto-converge"}, refused: "policy quick-finish: the capability auto-converge"},
	} {
		s, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, got, err := s.Initial(all); err != nil || !reflect.DeepEqual(got, want.capabilities) {
			t.Errorf("%s: needs %v, %v; want %v", text, got, err, want.capabilities)
		}
		_, got, err := s.Initial(nothing)
		if want.refused == "" && (err != nil || len(got) > 0) || want.refused != "" && (err == nil || !strings.Contains(err.Error(), want.refused)) {
			t.Errorf("%s where nothing is there: %v, %v; want %q", text, got, err, want.refused)
		}
	}
	var zero Spec
	if s, c, err := zero.Initial(all); err != nil || len(c) > 0 || s != all.start() || zero.String() != "none" || zero.Policy()(&History{}).Action != "" {
		t.Errorf("the zero Spec is not none: %+v %v %v", s, c, err)
	}
	for _, k := range kinds() { // a value that a policy asks for by a wrong name would panic
		if setting, _, err := (Spec{Name: k.name}).Initial(all); err != nil || setting.DowntimeLimit <= 0 {
			t.Errorf("%s unparsed: %+v, %v", k.name, setting, err)
		}
		if !strings.Contains(Help(), k.name) || k.meaning == "" {
			t.Errorf("%s has no help", k.name)
		}
	}
}

// FuzzParse: what is read prints as what is read again; on an error the value is zero.
func FuzzParse(f *testing.F) {
	for _, k := range kinds() {
		f.Add(Spec{Name: k.name}.String())
	}
	f.Add("stall:timeout=1.5h,margin=007%")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if !reflect.DeepEqual(s, Spec{}) {
				t.Fatalf("%q: %v and %+v", text, err, s)
			}
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() || !reflect.DeepEqual(again.values, s.values) {
			t.Fatalf("%q is %q, which is %q, %v", text, s, again, err)
		}
		if _, _, err := s.Initial(limits()); err != nil {
			t.Fatalf("%q: %v where all is there", text, err)
		}
	})
}

// FuzzObserve: no series makes a policy panic or hang, or set what QEMU would refuse, and a replay decides the same.
func FuzzObserve(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyz0123456789"), false)
	f.Add([]byte{255, 255, 0, 0, 1, 1, 128, 128, 7, 7, 200, 3, 9, 9, 9, 9, 1, 0, 255, 0, 1, 255}, true)
	f.Fuzz(func(t *testing.T, data []byte, can bool) {
		var series []record.Sample
		now, syncs := time.Duration(0), int64(0)
		value := func(b byte) *int64 { // absent, small, large, and nonsense
			if b == 0 {
				return nil
			}
			return record.Of(int64(b%16) << (b / 4) >> (b % 3) * int64(1-2*int(b/250)))
		}
		for i := 0; i+8 <= len(data); i += 8 {
			d := data[i : i+8]
			now += time.Duration(d[0]) << (d[1] % 56)
			syncs += int64(d[2]) % 3
			x := record.Sample{T: now, Side: record.Source, Status: "active", Transferred: value(d[3]), Remaining: value(d[4]), SyncCount: record.Of(syncs),
				Throttle: value(d[5]), Pages: value(d[6]), DirtyPagesRate: value(d[6])}
			if v := value(d[7]); v != nil {
				x.Throughput, x.ExpectedDowntime = record.Of(float64(*v)), record.Of(time.Duration(*v))
			}
			if d[7] == 77 {
				x.SyncCount = value(d[6])
			}
			series = append(series, x)
		}
		l := Limits{MemoryBytes: 256 * mib, MaxBandwidth: 16 * mib, DowntimeLimit: 300 * ms, CanThrottle: true, CanPostCopy: true, CanSwitchoverBandwidth: can}
		for _, k := range kinds() {
			s := Spec{Name: k.name}
			setting, _, err := s.Initial(l)
			if err != nil {
				t.Fatal(err)
			}
			made := Replay(s.Policy(), l, setting, 0, series)
			for _, d := range made {
				if d.Setting.DowntimeLimit < ms || d.Setting.DowntimeLimit > MaxDowntimeLimit || d.Setting.ThrottleMax > 99 || d.Setting.ThrottleMax < d.Setting.ThrottleInitial ||
					d.Setting.SwitchoverBandwidth < 0 || d.Setting.MaxBandwidth < 0 || d.Text == "" {
					t.Fatalf("%s: %+v", k.name, d)
				}
			}
			if !reflect.DeepEqual(made, Replay(s.Policy(), l, setting, 0, series)) {
				t.Fatalf("%s decides otherwise in a replay", k.name)
			}
		}
	})
}

// TestSprint: the cap is lifted for min(d, 0.3 s), is put back, and QEMU is told the rate: by the parameter that is for it, or by a
// downtime-limit that gives the same threshold. A link's rate bounds what is found; without a sprint it is what is known.
func TestSprint(t *testing.T) {
	var series []record.Sample
	sent := int64(0)
	for now := 10 * ms; now < 3*time.Second; now += 10 * ms { // 10 MiB/s, and 100 MiB/s while the cap is lifted: from 220 to 520 ms
		if rate := int64(10 * mib); now > 220*ms && now <= 520*ms {
			sent += 10 * rate / 100
		} else {
			sent += rate / 100
		}
		x := at(now, 200*mib-sent, 1)
		x.Transferred = record.Of(sent)
		series = append(series, x)
	}
	newer, older, link := limits(), limits(), limits()
	older.CanSwitchoverBandwidth, link.LinkRate = false, 50*mib
	type set struct {
		at        time.Duration
		bandwidth int64
		limit     time.Duration
		told      int64
	}
	for _, test := range []struct {
		name, policy string
		limits       Limits
		want         []set
	}{
		{"8.2 and newer", "switchover", newer, []set{{220 * ms, 0, 210 * ms, 0}, {520 * ms, 10 * mib, 210 * ms, 100 * mib}}},
		{"before", "switchover", older, []set{{220 * ms, 0, 210 * ms, 0}, {520 * ms, 10 * mib, 210 * ms, 0}, {820 * ms, 10 * mib, 2100 * ms, 0}}},
		{"known link", "switchover", link, []set{{220 * ms, 0, 210 * ms, 0}, {520 * ms, 10 * mib, 210 * ms, 45 * mib}}},
		{"known link, no sprint", "switchover:probe=off", link, []set{{220 * ms, 10 * mib, 210 * ms, 45 * mib}}},
		{"nothing known, no sprint", "switchover:probe=off", newer, nil},
	} {
		var got []set
		for _, d := range decide(t, test.policy, test.limits, series) {
			got = append(got, set{d.At, d.Setting.MaxBandwidth, d.Setting.DowntimeLimit, d.Setting.SwitchoverBandwidth})
		}
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

// TestTurns: where syncs come by time, a pass ends at the first one by which its work is done.
func TestTurns(t *testing.T) {
	x := func(n int, syncs, pages, left int64) record.Sample {
		t := time.Duration(n) * ms
		return record.Sample{T: t, Asked: t, Side: record.Source, Status: "active", SyncCount: record.Of(syncs), Pages: record.Of(pages),
			Transferred: record.Of(pages * 4100), Remaining: record.Of(left * pageSize), Throughput: record.Of(10.0 * mib)}
	}
	series := []record.Sample{
		x(10, 2, 100, 900), // of 1,000 pages
		x(110, 3, 300, 750), x(210, 4, 600, 500),
		x(290, 4, 1000, 90),  // all sent, and no sync yet
		x(310, 5, 1010, 200), // the second pass: 200 pages
		{T: 320 * ms, Status: "active"},
		x(410, 6, 1110, 150), x(510, 7, 1215, 180), // the third
		x(520, 7, 1400, 0),
	}
	var turns Turns
	var ends []time.Duration
	for i := range series {
		if turns.Ends(&series[i]) {
			ends = append(ends, series[i].T)
		}
	}
	if want := []time.Duration{310 * ms, 510 * ms}; !slices.Equal(ends, want) {
		t.Errorf("passes end at %v, want %v", ends, want)
	}
	for timed, want := range map[bool]int{false: 6, true: 3} {
		var h *History
		l := limits()
		l.TimedSyncs = timed
		f := Follow(func(now *History) Decision { h = now; return Decision{} }, l, Setting{}, 0)
		for _, x := range series {
			f.Observe(x)
		}
		if h.Current.Number != want || len(h.Passes) != want-1 {
			t.Errorf("timed %t: pass %d after %d, want pass %d", timed, h.Current.Number, len(h.Passes), want)
		}
	}
}
