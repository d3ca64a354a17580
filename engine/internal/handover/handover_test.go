package handover

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// deep explores with larger budgets, for minutes.
var deep = os.Getenv("QMIGRATE_MODEL") == "deep"

// explored are the configurations in which nothing may be wrong.
func explored() []Config {
	var all []Config
	for _, m := range []mode{preCopy, stopAndCopy, postCopy} {
		for v := v7; v <= v11; v++ {
			for _, path := range []bool{false, true} {
				if m == postCopy && path { // post-copy always has one; with the capability a pre-copy that ends first waits too
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
					live.Faults, killed.Faults, killed.Recovers = 2, 2, 2
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
	states, depth, ends := 0, 0, 0
	for _, c := range explored() {
		c.Without = os.Getenv("QMIGRATE_MODEL_WITHOUT")
		r := Explore(c)
		t.Logf("%v: %v", c, strings.SplitN(r.String(), "\n", 2)[0])
		if r.Wrong != "" {
			t.Errorf("%v: %v", c, r)
		}
		if r.Cut {
			t.Errorf("%v: not all of it was explored", c)
		}
		states, depth, ends = states+r.States, max(depth, r.Depth), ends+r.Ends
	}
	t.Logf("%d states, depth %d, %d ends in %v", states, depth, ends, time.Since(begun).Round(time.Millisecond))
}

// TestFormer puts each former rule back, and breaks others on purpose: each must be found.
func TestFormer(t *testing.T) {
	for _, x := range []struct {
		name  string
		wrong string // the invariant
		c     Config
	}{
		{"1 postcopy-device is handed over", "1:", Config{Source: v11, Destination: v11, Mode: postCopy, NoLocks: true,
			Faults: 1, Former: deviceIsHanded | runsIntoSwitch}},
		{"1 postcopy-device is handed over, no way back is seen", "4:", Config{Source: v11, Destination: v11, Mode: postCopy, Faults: 1,
			Former: deviceIsHanded}},
		{"2 --recover continues what is in post-copy", "1:", Config{Source: v11, Destination: v11, Mode: postCopy, NoLocks: true,
			Faults: 1, Crashes: 1, Recovers: 1, Former: recoversSplit | runsIntoSwitch}},
		{"2 the same, after somebody's cancel and cont", "1:", Config{Source: v7, Destination: v7, Mode: postCopy, NoLocks: true, Third: 2,
			Crashes: 1, Recovers: 1, Former: recoversSplit}},
		{"3 no limit before SHUT", "5:", Config{Source: v10, Destination: v10, Mode: preCopy, ReturnPath: true, Faults: 1,
			Former: noAllLimit}},
		{"3 cancel before the fence", "3:", Config{Source: v7, Destination: v7, Mode: preCopy, ReturnPath: true, Asks: 1,
			Former: cancelsFirst}},
		{"4 an arrival is a departure", "6:", Config{Source: v10, Destination: v10, Stranger: true, Former: arrivalIsDeparture}},
		{"5 cancelling is given up", "2:", Config{Source: v7, Destination: v7, Mode: stopAndCopy, Faults: 1, Asks: 1,
			Former: givesUpCancelling}},
		{"6 a fresh limit for each attempt", "5:", Config{Source: v10, Destination: v10, Mode: postCopy, Faults: 1,
			Former: freshLimit}},
		{"7 a loaded destination is ended", "6:", Config{Source: v10, Destination: v10, Mode: postCopy, Faults: 1,
			Former: killsLoaded}},
		{"8 a refused migrate counts", "9:", Config{Source: v10, Destination: v10, Mode: preCopy, Third: 1, Theirs: true,
			Former: refusedIsSent}},
		{"9 the guest is elsewhere", "1:", Config{Source: v10, Destination: v10, Mode: stopAndCopy, Elsewhere: true,
			Former: elsewhereGoesBack}},
		{"11 postcopy-recover is not paused", "2:", Config{Source: v10, Destination: v10, Mode: postCopy, Faults: 2,
			Former: recoverIsActive}},
		{"12 release-ram is forgotten", "8:", Config{Source: v10, Destination: v10, Mode: postCopy, Faults: 1, Release: true,
			Sick: true, Former: givenIsThere}},
		{"13 a stale answer", "2:", Config{Source: v10, Destination: v10, Mode: preCopy, Third: 2, Former: staleAnswer}},
		{"14 a source that hangs", "5:", Config{Source: v10, Destination: v10, Mode: stopAndCopy, Faults: 1, Hangs: true,
			Former: noHangLimit}},
		{"15 a guest that powers off", "4:", Config{Source: v10, Destination: v10, Mode: preCopy, Faults: 1, PowersOff: true,
			Former: offIsLost}},

		{"cont before the source has completed", "1:", Config{Source: v10, Destination: v10, Mode: preCopy, ReturnPath: true,
			Faults: 1, Former: earlyCont}},
		{"cont before the destination has everything", "1:", Config{Source: v10, Destination: v10, Mode: preCopy, Faults: 1,
			Former: contBeforeArrival}},
		{"no fence", "1:", Config{Source: v10, Destination: v10, Mode: preCopy, NoLocks: true, Faults: 1, Hangs: true,
			Former: noFence}},
		{"missed events are trusted", "4:", Config{Source: v10, Destination: v10, Mode: preCopy, Faults: 2,
			Former: trustsSilence}},
		{"7.2 may still fail back", "7:", Config{Source: v7, Destination: v7, Mode: postCopy, Faults: 1, Former: noTentative}},
		{"10.0 continues the source when the link is lost before SHUT", "1:", Config{Source: v10, Destination: v10, Mode: postCopy,
			Faults: 1, Former: runsIntoSwitch}},
		{"10.0 continues it, and qmigrate has ended meanwhile", "1: two run the guest in the end", Config{Source: v10, Destination: v10,
			Mode: postCopy, Faults: 1, Third: 1, IntoSwitch: true}},
		{"11.1 does it where there are no locks", "1:", Config{Source: v11, Destination: v11, Mode: postCopy, NoLocks: true,
			Faults: 1, Former: runsIntoSwitch}},
		{"a completed source that runs again", "5:", Config{Source: v10, Destination: v10, Mode: preCopy, Third: 1,
			Former: waitsOn}},
		{"Ctrl-C before the reply to migrate", "9:", Config{Source: v10, Destination: v10, Mode: preCopy, Third: 1, Asks: 1,
			Theirs: true, Former: cutsReply}},
		{"RESUME overtaken by the reply", "6:", Config{Source: v10, Destination: v10, Mode: postCopy, Faults: 1, Third: 1,
			Former: looksBeside}},
	} {
		t.Run(x.name, func(t *testing.T) {
			begun := time.Now()
			x.c.Want = x.wrong
			r := Explore(x.c)
			if !strings.HasPrefix(r.Wrong, x.wrong) {
				t.Fatalf("want %s, got %v", x.wrong, r)
			}
			t.Logf("%s, after %d steps; %d states, %v", r.Wrong, len(r.Trace), r.States, time.Since(begun).Round(time.Millisecond))
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
		{c.ReturnPath, "return-path"}, {c.Late, "late-block-activate"}, {c.NoLocks, "no locks"}, {c.Release, "release-ram"},
		{c.Unknown, "unknown processes"}, {c.Elsewhere, "elsewhere"}, {c.Arrived, "once arrived"}, {c.Hangs, "hangs"},
		{c.Sick, "sick disk"}, {c.IntoSwitch, "runs into the switch"}, {c.Stranger, "stranger"}, {c.PowersOff, "power-off"}, {c.Theirs, "another migration"},
	} {
		if w.on {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ", ") + fmt.Sprintf(" (%d faults, %d slow, %d third, %d Ctrl-C, %d kills of qmigrate, %d recovers)",
		c.Faults, c.Slow, c.Third, c.Asks, c.Crashes, c.Recovers)
}
