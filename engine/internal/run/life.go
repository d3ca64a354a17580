package run

import (
	"context"
	"fmt"
	"strings"
	"time"

	"qmigrate/engine/record"
)

// life is what the guest of one side did by itself, and what was done to it, as that QEMU's events tell. This file is
// the one place that knows what these events mean for a migration, for its figures and for its words.
type life struct {
	Stopped time.Time // the first STOP, or the first since it was continued
	Resumed time.Time // the last RESUME
	started time.Time // the first RESUME
	ran     time.Time // when the last RESUME or WAKEUP came; zero: it was never stopped
	halted  time.Time // when the first STOP or SUSPEND came after it had started; zero: it ran on
	Asleep  time.Time // SUSPEND (ACPI S3); zero: it is awake. QEMU 7.2 wakes it for the switch-over, 9.0 and newer do not
	wakes   bool      // this QEMU is one before 9.0
	slept   time.Time // SUSPEND before the last WAKEUP
	woken   time.Time // and that

	Shutdown   string    // the reason of SHUTDOWN in QEMU's word: guest-shutdown, host-qmp-quit, ...
	shutdownAt time.Time // and when
	Itself     bool      // it is the guest's doing, or a reset that ends its QEMU (-no-reboot)

	Stands []stand // those that the migration did not make, and that are over
	deeds  []deed  // the rest, in their order
}

// wakesBefore is how long before STOP a QEMU that wakes the guest for the switch-over may say so. Mostly it says it
// after STOP. On a loaded machine it may come first (by 0.1 ms, seen on 7.2.22): how long the pause takes is up to the
// load.
const wakesBefore = time.Second

// stand is a time in which the guest did not run.
type stand struct{ From, To time.Time }

// deed is one event, or some of one kind.
type deed struct {
	event, detail string // detail: QEMU's reason, or the action that it took
	at            time.Time
	times         int
	lasted        time.Duration // of SUSPEND: until WAKEUP, in sum; 0: it never came
}

// eventData is what the data of the events that are looked at may have.
type eventData struct {
	Status string `json:"status"`
	Pass   int    `json:"pass"`
	Guest  bool   `json:"guest"`
	Reason string `json:"reason"`
	Action string `json:"action"`
}

// take notes one event, which happened at one instant and came at another. Undisturbed says that a RESUME now is not
// the migration's: somebody else's, then.
func (l *life) take(name string, data eventData, at, came time.Time, undisturbed bool) {
	if (name == "STOP" || name == "SUSPEND") && !l.started.IsZero() && l.halted.IsZero() {
		l.halted = came
	}
	switch name {
	case "STOP":
		if l.Stopped.IsZero() || l.Again() {
			l.Stopped = at
		}
		if l.wakes && !l.woken.IsZero() && at.Sub(l.woken) < wakesBefore {
			l.Asleep = l.slept
		}
	case "RESUME":
		if l.wakes { // which does not run a guest that sleeps
			l.Asleep, l.woken = time.Time{}, time.Time{}
		}
		if undisturbed && l.Still() {
			l.Stands = append(l.Stands, stand{l.Stopped, at})
		}
		if l.started.IsZero() {
			l.started = at
		}
		l.Resumed, l.ran, l.Shutdown = at, came, ""
	case "SUSPEND":
		l.Asleep = at
		l.did(name, "", at)
	case "WAKEUP":
		for i := range l.deeds {
			if d := &l.deeds[i]; d.event == "SUSPEND" && !l.Asleep.IsZero() {
				d.lasted += at.Sub(l.Asleep)
			}
		}
		if !l.Still() { // else it was woken for the switch-over, after it was stopped
			l.ran, l.slept, l.woken, l.Asleep = came, l.Asleep, at, time.Time{}
		}
	case "SHUTDOWN":
		l.Shutdown, l.shutdownAt = data.Reason, at
		if l.Shutdown == "" {
			l.Shutdown = "unknown"
		}
		l.Itself = data.Guest || data.Reason == "host-qmp-system-reset"
	case "BLOCK_IO_ERROR":
		if data.Action == "stop" {
			l.did(name, data.Reason, at)
		}
	case "RESET":
		l.Asleep, l.woken = time.Time{}, time.Time{}
		l.did(name, data.Reason, at)
	case "GUEST_PANICKED", "WATCHDOG", "POWERDOWN":
		l.did(name, data.Action, at)
		if name == "WATCHDOG" && data.Action == "poweroff" { // QEMU exits, without SHUTDOWN
			l.Shutdown, l.shutdownAt, l.Itself = "watchdog", at, true
		}
	}
}

// move moves every instant of an event.
func (l *life) move(to func(time.Time) time.Time) {
	for _, t := range []*time.Time{&l.Stopped, &l.Resumed, &l.started, &l.Asleep, &l.slept, &l.woken, &l.shutdownAt} {
		*t = to(*t)
	}
	for i := range l.Stands {
		l.Stands[i] = stand{to(l.Stands[i].From), to(l.Stands[i].To)}
	}
	for i := range l.deeds {
		l.deeds[i].at = to(l.deeds[i].at)
	}
}

// did notes a deed, or one more of a kind: a guest may be reset again and again.
func (l *life) did(event, detail string, at time.Time) {
	for i := range l.deeds {
		if l.deeds[i].event == event {
			l.deeds[i].times++
			return
		}
	}
	l.deeds = append(l.deeds, deed{event: event, detail: detail, at: at, times: 1})
}

// Again tells whether this side has run the guest since it was stopped.
func (l *life) Again() bool { return l.Resumed.After(l.Stopped) }

// Still tells whether the guest was stopped and has not been continued.
func (l *life) Still() bool { return !l.Stopped.IsZero() && !l.Again() }

// LivesOn tells whether the guest was stopped by its shutdown, which is what -no-shutdown does: its QEMU stays.
func (l *life) LivesOn() bool { return l.Still() && !l.Stopped.Before(l.shutdownAt) }

// cause is what the guest did to end its QEMU, or what was done to it, and why that was its QEMU's end. Empty: somebody
// else ended it.
func (l *life) cause() (did, why string) {
	switch {
	case l.Shutdown == "guest-reset" || l.Shutdown == "host-qmp-system-reset":
		return "the guest was reset", ", which its QEMU takes for a shutdown (-no-reboot)"
	case l.Shutdown == "guest-panic":
		return "the guest panicked", ", which its QEMU takes for a shutdown (-action panic=shutdown)"
	case l.Shutdown == "watchdog":
		return "the guest's watchdog fired", ", which its QEMU takes for its end (-action watchdog=poweroff)"
	case l.Itself:
		return "the guest shut down", ""
	}
	return "", ""
}

// words are what a deed is called. Where is the side, when the time.
func (d deed) words(where record.Holder, when string) string {
	text := map[string]string{
		"RESET":          "the guest was reset",
		"SUSPEND":        "the guest was suspended (ACPI S3)",
		"GUEST_PANICKED": "the guest panicked",
		"WATCHDOG":       "the guest's watchdog fired",
		"POWERDOWN":      "somebody asked the guest to power down",
		"BLOCK_IO_ERROR": "a disk error stopped the guest",
	}[d.event]
	first := ""
	if d.times > 1 {
		text += fmt.Sprintf(" %d times", d.times)
		first = ", first"
	}
	text += fmt.Sprintf(" on the %s%s %s", where, first, when)
	if d.detail != "" {
		text += " (" + d.detail + ")"
	}
	switch {
	case d.lasted > 0 && d.times == 1:
		text += ", and woke after " + long(d.lasted)
	case d.lasted > 0:
		text += ", and slept " + long(d.lasted) + " in all before it last woke"
	}
	return text
}

// stands tells whether a QEMU that says this run state, after a STOP, has a guest that the migration did not stop.
func stands(runState string) bool {
	switch runState {
	case "", "running", "inmigrate", "finish-migrate", "postmigrate", "colo":
		return false
	}
	return true
}

// unable tells whether a guest in this run state is not to be run by a plain `cont`, whatever the migration does.
func unable(runState string) bool {
	switch runState {
	case "shutdown", "guest-panicked", "internal-error", "io-error", "watchdog", "debug", "prelaunch":
		return true
	}
	return false
}

// left says why the guest does not run on the side where it is now, and what makes it run.
func left(runState string, where record.Holder) string {
	anew := fmt.Sprintf("`system_reset` and then `cont` on the %s start it anew", where)
	switch runState {
	case "paused":
		return fmt.Sprintf("somebody stopped the guest meanwhile: it is left paused on the %s, where `cont` runs it", where)
	case "suspended":
		return fmt.Sprintf("the guest sleeps (ACPI S3) on the %s: `system_wakeup` there wakes it", where)
	case "shutdown":
		return "the guest has shut down, and its QEMU stays (-no-shutdown): " + anew
	case "guest-panicked":
		return "the guest has panicked, which stops it: " + anew
	case "internal-error":
		return "an internal error of the emulator stopped the guest, and its QEMU's standard error may say which: " + anew
	case "io-error":
		return fmt.Sprintf("a disk error stopped the guest: mend the disk, then `cont` on the %s runs it", where)
	case "watchdog":
		return fmt.Sprintf("the guest's watchdog stopped it: `cont` on the %s runs it on; %s", where, anew)
	case "prelaunch":
		return fmt.Sprintf("the guest was reset while it stood still: `cont` on the %s starts it", where)
	}
	return fmt.Sprintf("the guest is left %s on the %s, where `cont` runs it", runState, where)
}

// when says how far a stage had come at that instant.
func (r *Run) when(at time.Time) string {
	since := at.Sub(r.Rec.Origin)
	name, begun := record.Initialization, time.Duration(0)
	for _, s := range r.Rec.Stages {
		if s.Start < since {
			name, begun = s.Name, s.Start
		}
	}
	return long(since-begun) + " into " + string(name)
}

// long is a duration as a sentence has it: as exact as it matters.
func long(d time.Duration) string {
	if d = max(d, 0); d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// HowEnded says why a side's QEMU ended, and when. Nil: it did not say.
func (r *Run) HowEnded(s *Side) error {
	if s.Shutdown == "" {
		return nil
	}
	did, why := s.cause()
	if did == "" {
		return fmt.Errorf("somebody ended the %s QEMU %s (its reason: %s)", s.Role, r.when(s.shutdownAt), s.Shutdown)
	}
	did = r.whose(s, s.shutdownAt, did)
	return fmt.Errorf("%s on the %s %s%s (QEMU's reason: %s)", did, s.Role, r.when(s.shutdownAt), why, s.Shutdown)
}

// whose is what was done, with the right name for a machine that has not the guest then.
func (r *Run) whose(s *Side, at time.Time, did string) string {
	has := r.Dst.started.IsZero() || at.Before(r.Dst.started)
	switch {
	case s == r.Src && !has:
		return strings.Replace(did, "the guest", "the machine that the guest had left", 1)
	case s == r.Dst && has:
		return strings.Replace(did, "the guest", "the machine that waits for the guest", 1)
	}
	return did
}

// guestEnded is for a guest that has shut down, or was reset where that ends QEMU: nothing is lost, and nobody has
// it.
func (r *Run) guestEnded(ctx context.Context) (Verdict, bool) {
	r.CatchUp()
	if r.Dst.Broke() && r.Src.Endpoint.Process != nil { // the source's end may be why, and its last words be on their way
		_ = r.DrainFor(ctx, DeathLimit, r.Src.Ended)
	}
	for _, s := range []*Side{r.Src, r.Dst} {
		if s.Facts == nil || s.Shutdown == "" || !s.Itself || s == r.Dst && s.started.IsZero() {
			continue
		}
		limit := KillLimit
		if s.LivesOn() {
			limit = DeathLimit
		}
		_ = r.DrainFor(ctx, limit, func() bool { return s.Gone != nil || s.Shutdown == "" })
		if s.Gone == nil && s.Control.Err() == nil { // it lives on (-no-shutdown)
			continue
		}
		v := Verdict{Guest: record.None, Outcome: record.GuestEnded, Ended: s}
		if s == r.Dst {
			if r.Split { // what its end makes of the source: 10.0 and newer may run the guest again (stopAgain)
				_ = r.DrainFor(ctx, DeathLimit, func() bool { return r.Src.Ended() || r.Src.Linkless() })
			}
			v.Mend = fmt.Sprintf("end the source QEMU too (%s), which holds what it had before", r.Src.Endpoint.Name)
			return v, true
		}
		if r.ContSent || !r.Dst.Resumed.IsZero() {
			continue // the guest is the destination's: what ended is the source's old copy of it
		}
		if r.Listening && r.Dst.Facts != nil {
			if err := r.Dst.Kill(ctx); err != nil {
				r.Rec.Warn("the destination QEMU still waits for the guest: %v: end it", err)
			}
		}
		return v, true
	}
	return Verdict{}, false
}

// TellLife warns of what the guest did and of what was done to it, and says how it is left where that is not as it
// was.
func (r *Run) TellLife() {
	if r.Rec.Outcome == record.GuestEnded { // the error says it
		return
	}
	for _, s := range []*Side{r.Src, r.Dst} {
		for _, d := range s.deeds {
			r.Rec.Warn("%s", r.whose(s, d.at, d.words(s.Role, r.when(d.at))))
		}
		if s.Shutdown != "" && s.Itself && s.Gone == nil {
			r.Rec.Warn("%v, and that QEMU stays", r.HowEnded(s))
		}
		if s == r.Src && r.Paused && len(s.Stands) > 0 { // the first was our own
			r.Rec.Warn("somebody continued the guest on the source %s: it ran while it was copied", r.when(s.Stands[0].To))
			continue
		}
		if len(s.Stands) > 0 {
			var sum time.Duration
			for _, x := range s.Stands {
				sum += x.To.Sub(x.From)
			}
			r.Rec.Warn("somebody stopped the guest on the %s %s and continued it, %s, for %s in all: "+
				"its downtimes are those of the switch-over alone",
				s.Role, r.when(s.Stands[0].From), times(len(s.Stands)), long(sum))
		}
	}
	where := r.holding()
	if where == nil || where.Facts == nil || r.Src.Facts == nil || !r.Src.Facts.Running || !stands(where.RunState) {
		return
	}
	state := where.RunState
	if where == r.Dst && r.Held != "" {
		state = r.Held
	}
	r.Rec.Warn("%s", left(state, where.Role))
}

// times is how often something happened, in words.
func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// holding is the side that has the guest, nil if neither has.
func (r *Run) holding() *Side {
	switch r.Rec.GuestOn {
	case record.Source:
		return r.Src
	case record.Destination:
		return r.Dst
	}
	return nil
}
