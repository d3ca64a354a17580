package handover

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// deep explores with two faults too, for minutes. What is cut at the limit of states is said.
var deep = os.Getenv("QMIGRATE_MODEL") == "deep"

// explored are the configurations in which nothing may be wrong.
func explored() []Config {
	var all []Config
	for _, m := range []mode{preCopy, stopAndCopy, postCopy} {
		for v := v7; v <= v11; v++ {
			for _, path := range []bool{false, true} {
				if m == postCopy && path { // post-copy always has one
					continue
				}
				base := Config{Source: v, Destination: v, Mode: m, ReturnPath: path, Late: true}
				live, killed := base, base
				live.Faults, live.Asks, live.Third = 1, 1, 1
				killed.Faults, killed.Crashes, killed.Recovers = 1, 1, 1
				all = append(all, live, killed)
				if m == postCopy && v == v7 { // of the others see TestFormer
					live.IntoSwitch, killed.IntoSwitch = true, true
					all = append(all, live, killed)
				}
				if deep {
					live, killed = base, base
					live.Faults, live.Asks = 2, 1
					killed.Faults, killed.Crashes, killed.Recovers = 2, 1, 1
					live.Limit, killed.Limit = 6_000_000, 6_000_000
					all = append(all, live, killed)
				}
			}
			for other := v7; other <= v11; other++ {
				if other == v {
					continue
				}
				pair := Config{Source: v, Destination: other, Mode: m, ReturnPath: true, Late: true, Faults: 1}
				live, killed := pair, pair
				live.Asks = 1
				killed.Crashes, killed.Recovers = 1, 1
				all = append(all, live, killed)
			}
			base := Config{Source: v, Destination: v, Mode: m, ReturnPath: true, Late: true, Faults: 1, Asks: 1}
			hangs, unknown, noLocks, release, theirs, off := base, base, base, base, base, base
			hangs.Hangs, hangs.Slow = true, 1
			unknown.Unknown, unknown.Crashes, unknown.Recovers = true, 1, 1
			noLocks.NoLocks, noLocks.Crashes, noLocks.Recovers = true, 1, 1
			release.Release, release.Sick = true, true
			theirs.Theirs, theirs.Third, theirs.Arrived, theirs.Faults = true, 1, true, 0
			off.PowersOff = true
			all = append(all, hangs, unknown, noLocks, release, theirs, off)
		}
	}
	for v := v7; v <= v11; v++ {
		all = append(all, Config{Source: v, Destination: v, Mode: stopAndCopy, Elsewhere: true, Crashes: 0},
			Config{Source: v, Destination: v, Stranger: true, Arrived: true, Third: 1})
	}
	return all
}

func TestHandover(t *testing.T) {
	begun := time.Now()
	defer debug.SetGCPercent(debug.SetGCPercent(25)) // what one exploration leaves is as large as the next
	states, depth, ends := 0, 0, 0
	for _, c := range explored() {
		r := Explore(c)
		t.Logf("%v: %v", c, strings.SplitN(r.String(), "\n", 2)[0])
		if r.Wrong != "" {
			t.Errorf("%v: %v", c, r)
		}
		if r.Cut && !deep {
			t.Errorf("%v: not all of it was explored", c)
		}
		states, depth, ends = states+r.States, max(depth, r.Depth), ends+r.Ends
	}
	t.Logf("%d states, depth %d, %d ends in %v", states, depth, ends, time.Since(begun).Round(time.Millisecond))
}

// pair is a migration between two QEMUs of one version, with one fault.
func pair(v version, m mode, more ...func(*Config)) Config {
	c := Config{Source: v, Destination: v, Mode: m, Faults: 1}
	for _, f := range more {
		f(&c)
	}
	return c
}

func faults(n uint8) func(*Config) { return func(c *Config) { c.Faults = n } }
func third(n uint8) func(*Config)  { return func(c *Config) { c.Third = n } }
func put(f former) func(*Config)   { return func(c *Config) { c.Former = f } }
func asks(c *Config)               { c.Asks = 1 }
func killed(c *Config)             { c.Crashes, c.Recovers = 1, 1 }
func returnPath(c *Config)         { c.ReturnPath = true }
func noLocks(c *Config)            { c.NoLocks = true }
func hangs(c *Config)              { c.Hangs = true }
func into(c *Config)               { c.IntoSwitch = true }
func theirs(c *Config)             { c.Theirs = true }
func elsewhere(c *Config)          { c.Elsewhere = true }
func stranger(c *Config)           { c.Stranger = true }
func powersOff(c *Config)          { c.PowersOff = true }
func releases(c *Config)           { c.Release, c.Sick = true, true }

// TestFormer puts each former rule back, and breaks others on purpose: each must be found. The numbers are those of
// the interleavings of issue 9; 10, leftovers of mirrors, is not in the model.
func TestFormer(t *testing.T) {
	for _, x := range []struct {
		name  string
		wrong string // the invariant
		c     Config
	}{
		{"1 postcopy-device is handed over", "1:", pair(v11, postCopy, noLocks, put(deviceIsHanded|runsIntoSwitch))},
		{"1 in postcopy-device it is lost", "4:", pair(v11, postCopy, put(deviceIsHanded))},
		{"2 --recover continues what is in post-copy", "1:",
			pair(v11, postCopy, noLocks, killed, put(recoversSplit|runsIntoSwitch))},
		{"2 the same, after cancel and cont", "1:",
			pair(v7, postCopy, noLocks, killed, faults(0), third(2), put(recoversSplit))},
		{"3 no limit before SHUT", "5:", pair(v10, preCopy, returnPath, put(noAllLimit))},
		{"3 cancel before the fence", "3:", pair(v7, preCopy, returnPath, faults(0), asks, put(cancelsFirst))},
		{"4 an arrival is a departure", "6:", pair(v10, preCopy, faults(0), stranger, put(arrivalIsDeparture))},
		{"5 cancelling is given up", "2:", pair(v7, stopAndCopy, asks, put(givesUpCancelling))},
		{"6 a fresh limit for each attempt", "5:", pair(v10, postCopy, put(freshLimit))},
		{"7 a loaded destination is ended", "6:", pair(v10, postCopy, put(killsLoaded))},
		{"8 a refused migrate counts", "9:", pair(v10, preCopy, faults(0), third(1), theirs, put(refusedIsSent))},
		{"9 the guest is elsewhere", "1:", pair(v10, stopAndCopy, faults(0), elsewhere, put(elsewhereGoesBack))},
		{"11 postcopy-recover is not paused", "2:", pair(v10, postCopy, faults(2), put(recoverIsActive))},
		{"12 release-ram is forgotten", "8:", pair(v10, postCopy, releases, put(givenIsThere))},
		{"13 a stale answer", "2:", pair(v10, preCopy, faults(0), third(2), put(staleAnswer))},
		{"14 a source that hangs", "5:", pair(v10, stopAndCopy, hangs, put(noHangLimit))},
		{"15 a guest that powers off", "4:", pair(v10, preCopy, powersOff, put(offIsLost))},

		{"cont before the source has completed", "1:", pair(v10, preCopy, returnPath, put(earlyCont))},
		{"cont before the destination has everything", "1:", pair(v10, preCopy, put(contBeforeArrival))},
		{"no fence", "1:", pair(v10, preCopy, noLocks, hangs, put(noFence))},
		{"missed events are trusted", "4:", pair(v10, preCopy, faults(2), put(trustsSilence))},
		{"7.2 may still fail back", "7:", pair(v7, postCopy, put(noTentative))},

		// Found by the model.
		{"10.0 continues the source when the link is lost before SHUT", "1:", pair(v10, postCopy, put(runsIntoSwitch))},
		{"11.1 does it where there are no locks", "1:", pair(v11, postCopy, noLocks, put(runsIntoSwitch))},
		{"10.0 does it when qmigrate has ended", "1: two run the guest in the end",
			pair(v10, postCopy, third(1), into)},
		{"a completed source that runs again", "5:", pair(v10, preCopy, faults(0), third(1), put(waitsOn))},
		{"Ctrl-C before the reply to migrate", "9:",
			pair(v10, preCopy, faults(0), third(1), asks, theirs, put(cutsReply))},
		{"RESUME overtaken by the reply", "6:", pair(v10, postCopy, third(1), put(looksBeside))},
		{"11.1 to 7.2 without late-block-activate", "6:", pair(v11, preCopy, returnPath, asks, func(c *Config) {
			c.Destination = v7
		})},
	} {
		t.Run(x.name, func(t *testing.T) {
			begun := time.Now()
			x.c.Want = x.wrong
			r := Explore(x.c)
			if !strings.HasPrefix(r.Wrong, x.wrong) {
				t.Fatalf("want %s, got %v", x.wrong, r)
			}
			took := time.Since(begun).Round(time.Millisecond)
			t.Logf("%s, after %d steps; %d states, %v", r.Wrong, len(r.Trace), r.States, took)
			if testing.Verbose() {
				t.Log("\n  " + strings.Join(r.Trace, "\n  "))
			}
		})
	}
}

// String is a Config in few words.
func (c Config) String() string {
	words := []string{fmt.Sprintf("%v to %v, %v", c.Source, c.Destination, c.Mode)}
	for _, w := range []struct {
		on   bool
		word string
	}{
		{c.ReturnPath, "return-path"}, {c.Late, "late-block-activate"}, {c.NoLocks, "no locks"},
		{c.Release, "release-ram"}, {c.Unknown, "unknown processes"}, {c.Elsewhere, "elsewhere"},
		{c.Arrived, "once arrived"}, {c.Hangs, "hangs"}, {c.Sick, "sick disk"}, {c.Stranger, "stranger"},
		{c.IntoSwitch, "runs into the switch"}, {c.PowersOff, "power-off"}, {c.Theirs, "another migration"},
	} {
		if w.on {
			words = append(words, w.word)
		}
	}
	for _, w := range []struct {
		n    uint8
		word string
	}{
		{c.Faults, "faults"}, {c.Slow, "slow"}, {c.Third, "of a third party"}, {c.Asks, "Ctrl-C"},
		{c.Crashes, "kills of qmigrate"}, {c.Recovers, "--recover"},
	} {
		if w.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", w.n, w.word))
		}
	}
	return strings.Join(words, ", ")
}
