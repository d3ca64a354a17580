package anatomy

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The trace events that this package reads, by QEMU's names.
const (
	Checkpoint = "vmstate_downtime_checkpoint" // a step of the switch-over was reached; QEMU 8.2 and newer
	Save       = "vmstate_downtime_save"       // a section was written; 8.2 and newer
	Load       = "vmstate_downtime_load"       // a section was read; 8.2 and newer
	SyncStart  = "migration_bitmap_sync_start" // the source begins to look which pages are dirty
	SyncEnd    = "migration_bitmap_sync_end"   // and has looked
	Request    = "handle_qmp_command"          // a monitor got a command: the proof that a log is that QEMU's
)

// Events are the trace events that a QEMU has to write down for its part of the downtime to be told apart. One that a
// QEMU does not have is done without.
func Events() []string { return []string{Checkpoint, Save, Load, SyncStart, SyncEnd} }

// Line is a line of a trace log.
type Line struct {
	// QEMU's stamp, by its host's realtime clock, in whole microseconds; zero: the log has none, and tells durations and
	// the order alone
	Stamp time.Time
	Event string // one of the constants
	// of a checkpoint its name, of a section QEMU's idstr, of a command and of Pending the whole text of it
	Name     string
	Instance int64         // of a section: several may have one idstr
	Iterable bool          // of a section: it was sent in passes before, as memory is, and this is its rest
	Took     time.Duration // of a section, in whole microseconds
}

// Section is the name of a section as a record has it: with "#N" behind it if its instance is not 0.
func (l Line) Section() string {
	if l.Instance == 0 {
		return l.Name
	}
	return fmt.Sprintf("%s#%d", l.Name, l.Instance)
}

// String is the line as a QEMU without time stamps writes it; one with them writes Stamp before it.
func (l Line) String() string {
	switch l.Event {
	case Save, Load:
		kind := "non-iterable"
		if l.Iterable {
			kind = "iterable"
		}
		return fmt.Sprintf("%s type=%s idstr=%s instance_id=%d downtime=%d", l.Event, kind, l.Name, l.Instance,
			l.Took.Microseconds())
	}
	return l.Event + " " + l.Name
}

// Parse reads a trace log and leaves out what it does not know: other events, other messages of QEMU, and a last line
// without an end.
func Parse(log []byte) (all []Line) {
	for text := range bytes.Lines(log) {
		text, whole := bytes.CutSuffix(text, []byte("\n"))
		if !whole {
			break // QEMU is writing it
		}
		if l, ok := parse(string(text)); ok {
			all = append(all, l)
		}
	}
	return all
}

func parse(text string) (l Line, ok bool) {
	if l.Stamp, text, ok = stamp(text); !ok {
		return Line{}, false
	}
	l.Event, text, _ = strings.Cut(text, " ")
	switch l.Event {
	case Checkpoint, Request:
		l.Name = text
		return l, text != ""
	case SyncStart, SyncEnd, Pending:
		l.Name = text
		return l, true
	case Save, Load:
		if l, ok = l.section(text); ok {
			return l, true
		}
	}
	return Line{}, false
}

// section reads what follows the name of the event: type=non-iterable idstr=ioapic instance_id=0 downtime=12. The idstr
// may hold anything.
func (l Line) section(text string) (Line, bool) {
	kind, text, _ := strings.Cut(text, " ")
	l.Iterable = kind == "type=iterable"
	text, named := strings.CutPrefix(text, "idstr=")
	took, instance := strings.LastIndex(text, " downtime="), strings.LastIndex(text, " instance_id=")
	if !l.Iterable && kind != "type=non-iterable" || !named || instance <= 0 || took < instance {
		return Line{}, false
	}
	us, err := strconv.ParseInt(text[took+len(" downtime="):], 10, 64)
	if err != nil || us < 0 || us > int64(24*time.Hour/time.Microsecond) {
		return Line{}, false
	}
	if l.Instance, err = strconv.ParseInt(text[instance+len(" instance_id="):took], 10, 64); err != nil {
		return Line{}, false
	}
	l.Name, l.Took = text[:instance], time.Duration(us)*time.Microsecond
	return l, true
}

// utc is how QEMU 11.1 writes the time before a line; 10.0 writes the thread and the seconds since the epoch. Both do
// so only with `-msg timestamp=on`.
const utc = "2006-01-02T15:04:05.000000Z"

// epochBits is how many bits the seconds of a stamp have at most: until the year 6325.
const epochBits = 37

// stamp reads what stands before the name of the event, if anything does.
func stamp(text string) (at time.Time, rest string, ok bool) {
	if len(text) > len(utc) && text[len(utc)] == ' ' {
		if at, err := time.Parse(utc, text[:len(utc)]); err == nil && at.Unix()>>epochBits == 0 {
			return at, text[len(utc)+1:], true
		}
	}
	thread, rest, stamped := strings.Cut(text, "@")
	if !stamped || strings.Contains(thread, " ") { // that one is of an idstr
		return time.Time{}, text, true
	}
	clock, rest, ok := strings.Cut(rest, ":")
	seconds, us, _ := strings.Cut(clock, ".")
	_, err := strconv.ParseUint(thread, 10, 32)
	s, err2 := strconv.ParseUint(seconds, 10, epochBits)
	u, err3 := strconv.ParseUint(us, 10, 32)
	if !ok || err != nil || err2 != nil || err3 != nil || len(us) != 6 {
		return time.Time{}, "", false
	}
	return time.Unix(int64(s), int64(u)*1000).UTC(), rest, true
}
