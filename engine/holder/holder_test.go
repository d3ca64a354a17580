package holder

import (
	"flag"
	"os"
	"sync"

	"testing"

	"qmigrate/engine/record"
)

var update = flag.Bool("update", false, "write docs/who-holds-the-guest.md anew")

const page = "../../docs/who-holds-the-guest.md"

var (
	reaches  = []Reach{Answers, Silent, Lost, Dead}
	runs     = []Run{Running, Paused, InMigrate, Finishing, Post}
	statuses = []Status{None, Listening, Setup, Active, Cancelling, Cancelled, Failed, Departed, Arrived, Device, Split, SplitLost, SplitMend}
)

// qemus are all states of one side. Of one that does not answer it only matters whether it was last seen to run.
func qemus() (all []QEMU) {
	for _, reach := range reaches {
		for _, run := range runs {
			if reach != Answers && run != Running && run != Paused {
				continue
			}
			for _, status := range statuses {
				all = append(all, QEMU{Reach: reach, Run: run, Status: status})
			}
		}
	}
	return all
}

// every calls f with every situation: all pairs of states, with all that was sent and tried. Flags that few rules
// look at are set one at a time.
func every(asker Asker, f func(Situation)) {
	all := qemus()
	sent, ran := []Sent{SentNothing}, []Ran{Never}
	if asker == Undo {
		sent = []Sent{SentNothing, SentIncoming, SentMigrate, SentSwitch, SentCont}
		ran = []Ran{Never, Maybe, Has}
	}
	rare := []func(*Situation){
		func(*Situation) {},
		func(s *Situation) { s.Elsewhere = true },
		func(s *Situation) { s.Gives = true },
		func(s *Situation) { s.Refused = true },
		func(s *Situation) { s.Gives, s.Refused = true, true },
		func(s *Situation) { s.Gives, s.Stopped = true, true },
		func(s *Situation) { s.Gives, s.Unended = true, true },
		func(s *Situation) { s.Gives, s.Begun = true, true },
		func(s *Situation) { s.Elsewhere, s.Unended = true, true },
		func(s *Situation) { s.Yanked = true },
		func(s *Situation) { s.Takes = true },
		func(s *Situation) { s.Locks = true },
		func(s *Situation) { s.Jams = true },
		func(s *Situation) { s.Jams, s.Begun = true, true },
		func(s *Situation) { s.Takes, s.Begun, s.Tentative = true, true, true },
		func(s *Situation) { s.Yanked, s.Tentative = true, true },
		func(s *Situation) { s.Yanked, s.Begun = true, true },
		func(s *Situation) { s.Source.Known = true },
		func(s *Situation) { s.Stuck = true },
		func(s *Situation) { s.Stopped = true },
		func(s *Situation) { s.Destination.Known = true },
		func(s *Situation) { s.Leftover = true },
		func(s *Situation) { s.Begun = true },
		func(s *Situation) {
			if s.Asker == Recover {
				s.Sent = SentCont
			}
		},
		func(s *Situation) { s.Strangers = "why" },
		func(s *Situation) { s.Ended = true },
	}
	for _, src := range all {
		for _, dst := range all {
			for _, sent := range sent {
				for _, ran := range ran {
					for bits := range 32 {
						bit := func(n int) bool { return bits>>n&1 == 1 }
						s := Situation{Asker: asker, Source: src, Destination: dst, Sent: sent, Ran: ran, Waited: bit(0), Cancelled: bit(1), Unended: bit(2), Tentative: bit(3)}
						if s.Begun = sent >= SentSwitch; sent == SentCont {
							s.Begun = bit(4)
						} else if asker == Undo {
							s.Leave = bit(4)
						} else if bit(4) {
							continue
						}
						for i, set := range rare {
							if i > 0 && bits&^0b10011 != 0 { // the rare ones with what was waited for, cancelled, and the last bit
								continue
							}
							x := s
							set(&x)
							if possible(x) {
								f(x)
							}
						}
					}
				}
			}
		}
	}
}

// possible leaves out what contradicts itself.
func possible(s Situation) bool {
	switch {
	case s.Ended && (s.Asker != Recover || s.Destination.Reach != Dead):
	case s.Ended && s.Unended:
	case s.Leave && s.Source.Run == Running && s.Sent == SentSwitch:
	case s.Asker == Migrate && (s.Source.Reach != Answers || s.Destination.Reach != Answers):
	case s.Asker == Recover && s.Source.Reach == Dead && s.Cancelled: // it is not asked to
	default:
		return true
	}
	return false
}

// broken is the law that a decision breaks; "" if it breaks none.
func broken(s Situation, d Decision) string {
	src, dst := s.Source, s.Destination
	undo := s.Asker == Undo
	switch d.Do {
	case Stay, Mend:
	case Wait:
		if s.Waited {
			return "waits twice"
		}
	case Cancel, Yank:
		switch {
		case d.Do == Cancel && s.Cancelled || d.Do == Yank && s.Yanked:
			return "cancels twice"
		case src.Reach == Dead || src.Reach == Lost:
			return "cancels on a source that cannot be asked"
		case d.Do == Cancel && s.handed() && dst.Reach != Dead && !s.takesBack():
			return "cancels what the source has given away"
		case d.Do == Cancel && dst.whole() && dst.Reach != Dead && (undo || dst.Reach == Answers) &&
			(src.Run.takesCont() || s.frees()):
			return "cancels before the fence, though the destination has all of it"
		case s.Asker == Recover && src.Status != Cancelling && !s.Ended && !dst.receives():
			return "cancels a migration of which the destination is not shown to be the other end"
		}
	case End:
		switch {
		case dst.Reach == Dead || s.Unended:
			return "ends the destination twice"
		case dst.runs() || s.Ran == Has:
			return "ends a destination that has run the guest"
		case dst.whole() && (!undo || s.Sent >= SentMigrate) && src.Reach != Answers:
			return "ends what may be the only guest: the source was not asked"
		case dst.whole() && !src.Run.takesCont() && !s.frees():
			return "ends what may be the only guest: the source does not take cont"
		case dst.whole() && undo && s.Sent < SentMigrate:
			return "ends somebody else's guest"
		case s.Asker == Recover && src.home() && dst.whole():
			return "ends a guest that the source has never sent"
		case s.Asker == Recover && dst.Run != InMigrate && !dst.loaded() && dst.Status != Device:
			return "ends a QEMU that is no destination"
		case s.Asker == Recover && dst.whole() && src.Status == Departed && src.Run != Post:
			return "ends what may be the newer of two guests"
		case s.Begun && s.Gives && src.ended() && dst.whole():
			return "ends the only guest with all its memory"
		case s.handed() && s.Sent >= SentSwitch && (dst.loaded() || !s.Takes && dst.Status == Active && src.Status != Departed) && !src.runs() && !(src.Status == Departed && dst.whole() && !s.Gives):
			return "ends the only QEMU that can run the guest"
		}
	case RunSource:
		fenced := dst.Reach == Dead || undo && s.Sent < SentMigrate || s.Asker == Recover && dst.Status == None ||
			s.Asker == Recover && dst.out() && !src.Status.split() && src.Status != Device && src.Status != Departed
		switch {
		case s.Stuck && src.Reach == Answers:
			return "continues the source twice"
		case src.Reach != Answers:
			return "continues a source that does not answer"
		case !fenced:
			return "continues the source without a fence"
		case undo && s.Sent >= SentMigrate && (s.told() && s.Ran != Never):
			return "continues the source though the destination may have run"
		case s.handed() && s.Gives && undo && s.Sent >= SentSwitch:
			return "continues a source that has given its memory away"
		case undo && s.Leave && s.Sent >= SentMigrate:
			return "continues a guest that was paused"
		}
	case StopSource:
		if s.Stopped || !dst.runs() && !(s.Begun && s.Gives && src.ended() && dst.whole()) {
			return "stops a source that alone runs the guest"
		}
	case RunDestination:
		switch {
		case s.Refused:
			return "starts the destination twice"
		case dst.Reach != Answers:
			return "starts a destination that does not answer"
		case src.runs():
			return "starts the destination beside a source that runs"
		case undo && s.told(): // it has the guest since then
		case !dst.loaded():
			return "starts a destination that has not loaded everything"
		case src.Reach == Dead && dst.whole():
		case s.spent() && dst.whole(): // the source has no whole guest any more
		case !MayRun(s):
			return "starts the destination before the commit point"
		case src.Reach == Lost && src.Status != Departed && !s.handed():
			return "starts the destination though the source may run"
		}
	default:
		return "does what is no step: " + string(d.Do)
	}
	if d.Do != Stay {
		return ""
	}
	switch {
	case d.Guest == record.None && (!undo || s.Sent >= SentMigrate) && (src.runs() || dst.runs() && !dst.Status.split()):
		return "says that nobody runs it, while a side does"
	case d.Text == "" && (d.Guest == record.None || d.Guest == record.Unknown) && s.Sent != SentNothing:
		return "nobody runs it, and nobody is told what to do"
	case undo && d.Guest == record.Source && src.Run != Running && !s.Leave:
		return "says that the source has it, which does not run it"
	case undo && d.Guest == record.Destination && !dst.runs() && !s.Leave && d.Text == "":
		return "says that the destination has it, which does not run it"
	case d.Guest == record.Source && dst.runs() && s.Asker != Migrate && !(undo && s.Sent < SentMigrate):
		return "says that the source has it, while the destination runs"
	}
	return ""
}

// TestEvery decides every situation. Each decision keeps the laws, each rule decides something, and
// docs/who-holds-the-guest.md is the table of them.
func TestEvery(t *testing.T) {
	counts := map[Asker]map[string]int{}
	var mu sync.Mutex
	t.Run("of", func(t *testing.T) {
		for _, asker := range []Asker{Undo, Recover, Migrate} {
			t.Run(string(asker), func(t *testing.T) {
				t.Parallel()
				used, faults, n := map[string]int{}, map[string]int{}, 0
				every(asker, func(s Situation) {
					d := Decide(s)
					n++
					used[d.Rule]++
					if law := broken(s, d); law != "" {
						if faults[law+d.Rule]++; faults[law+d.Rule] == 1 {
							t.Errorf("%s, by rule %q: %+v", law, d.Rule, s)
						}
					}
				})
				names := map[string]bool{}
				for _, r := range tables(asker) {
					if used[r.name] == 0 {
						t.Errorf("rule %q decides nothing", r.name)
					}
					if names[r.name] {
						t.Errorf("two rules are called %q", r.name)
					}
					names[r.name] = true
				}
				t.Logf("%d situations, %d rules", n, len(names))
				mu.Lock()
				defer mu.Unlock()
				counts[asker] = used
			})
		}
	})
	if t.Failed() {
		return
	}
	want := table(counts)
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(page); err != nil || string(have) != want {
		t.Errorf("%s is out of date (%v): go test ./engine/holder -run TestEvery -update", page, err)
	}
}

// TestEnds: from every situation a decision comes to its end in a few steps, if the QEMUs do nothing and each step
// that can fail does. The flags are set as the engine sets them.
func TestEnds(t *testing.T) {
	for _, asker := range []Asker{Undo, Recover} {
		t.Run(string(asker), func(t *testing.T) {
			t.Parallel()
			longest, n := 0, 0
			every(asker, func(s Situation) {
				if s.Waited || s.Cancelled || s.Unended {
					return // such a situation comes up on the way from another one
				}
				begin, steps := s, 0
				for ; steps < 20; steps++ {
					switch d := Decide(s); d.Do {
					case Stay, Mend:
						longest = max(longest, steps)
						n++
						return
					case Wait:
						s.Waited = true
					case Cancel:
						s.Cancelled = true
					case Yank:
						s.Yanked = true
					case End:
						s.Unended = true
					case RunSource:
						s.Stuck = true
					case StopSource:
						s.Stopped = true
					case RunDestination:
						s.Refused = true
					}
				}
				t.Fatalf("no end after %d steps from %+v", steps, begin)
			})
			t.Logf("%d situations, at most %d steps", n, longest)
		})
	}
}

func TestStatusOf(t *testing.T) {
	for _, c := range []struct {
		word          string
		sent, waiting bool
		want          Status
	}{
		{"", false, false, None}, {"none", false, true, None}, {"setup", false, true, Listening}, {"setup", false, false, Setup},
		{"active", true, false, Active}, {"device", true, false, Active}, {"pre-switchover", true, false, Active}, {"wait-unplug", true, false, Active},
		{"cancelling", false, false, Cancelling}, {"failing", true, false, Cancelling}, {"cancelled", false, false, Cancelled}, {"failed", false, false, Failed},
		{"completed", true, false, Departed}, {"completed", false, false, Arrived}, {"postcopy-device", true, false, Device}, {"postcopy-active", false, true, Split},
		{"postcopy-paused", true, false, SplitLost}, {"postcopy-recover", true, false, SplitMend}, {"postcopy-recover-setup", true, false, SplitMend},
		{"something new", true, false, Active},
	} {
		if got := StatusOf(c.word, c.sent, c.waiting); got != c.want {
			t.Errorf("%s, %v, %v: %s, want %s", c.word, c.sent, c.waiting, got, c.want)
		}
	}
}
