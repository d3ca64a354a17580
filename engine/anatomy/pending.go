package anatomy

import (
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record"
)

// Pending is the trace event by which a source says what it has still to send: once an iteration, 10 to 20 times a
// second under a bandwidth limit (seen on 11.1.3). QEMU 11.1 and newer.
const Pending = "qemu_savevm_query_pending"

// mostPending is how many a record keeps.
const mostPending = 300

// Left are the lines of Pending, on our clock. Of more than a record keeps it takes some, as far apart as can be, the
// first and the last among them.
func Left(marks []Mark, origin time.Time) []record.Pending {
	var all []record.Pending
	for _, m := range marks {
		if p, ok := m.left(); ok && !m.At.IsZero() {
			p.T = m.At.Sub(origin)
			all = append(all, p)
		}
	}
	if len(all) <= mostPending {
		return all
	}
	kept := make([]record.Pending, mostPending)
	for i := range kept {
		kept[i] = all[i*(len(all)-1)/(mostPending-1)]
	}
	return kept
}

// left reads what follows the name of the event: exact=0, final=0, precopy=67444736, stopcopy=0, postcopy=0, and more.
func (l Line) left() (p record.Pending, ok bool) {
	if l.Event != Pending {
		return p, false
	}
	found := 0
	for field := range strings.SplitSeq(l.Name, ", ") {
		key, text, _ := strings.Cut(field, "=")
		into := map[string]*int64{"precopy": &p.PreCopy, "stopcopy": &p.StopCopy, "postcopy": &p.PostCopy}[key]
		switch {
		case into != nil:
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return record.Pending{}, false
			}
			*into = n
			found++
		case key == "exact":
			p.Exact = text == "1"
		}
	}
	return p, found == 3
}
