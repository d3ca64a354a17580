package report

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/record"
)

// metric is one number of a record.
type metric struct {
	key, name  string
	kind       kind
	definition string // what it is, and the record's key
	of         func(*record.Migration) (float64, bool)
}

func seconds(d *time.Duration) (float64, bool) {
	if d == nil {
		return 0, false
	}
	return d.Seconds(), true
}

func integer(n *int64) (float64, bool) {
	if n == nil {
		return 0, false
	}
	return float64(*n), true
}

func float(n *float64) (float64, bool) {
	if n == nil {
		return 0, false
	}
	return *n, true
}

func totalTime() metric {
	return metric{"time", "total time", timeKind,
		"total time: first command to RESUME on the destination, in post-copy modes to the end of what follows the guest " +
			"(total.wall_ns)",
		func(m *record.Migration) (float64, bool) { return m.Total.Wall.Seconds(), m.Total.Wall > 0 }}
}

func downtime() metric {
	return metric{"downtime", "downtime", timeKind,
		"downtime: STOP on the source to RESUME on the destination, by QEMU's stamps (downtime.wire_ns)",
		func(m *record.Migration) (float64, bool) { return seconds(m.Downtime.Wire) }}
}

func sentBytes() metric {
	return metric{"bytes", "bytes sent", sizeKind,
		"bytes sent: the source's own count on the wire (total.transferred_bytes)",
		func(m *record.Migration) (float64, bool) { return integer(m.Total.Transferred) }}
}

func passes() metric {
	return metric{"passes", "passes", none,
		"passes: turns over the dirty pages while the guest ran; the last pass, with the guest stopped, and post-copy are " +
			"not counted (passes)",
		func(m *record.Migration) (float64, bool) {
			n := 0
			for _, p := range m.Passes {
				if !p.Stopped && !p.PostCopy {
					n++
				}
			}
			return float64(n), n > 0
		}}
}

func slowdown() metric {
	return metric{"slowdown", "slowdown of the guest", percent,
		"slowdown: 100 x (1 - the workload's events during / before), the blackout included (guest.slowdown_percent)",
		func(m *record.Migration) (float64, bool) {
			if m.Guest == nil {
				return 0, false
			}
			return float(m.Guest.SlowdownPercent)
		}}
}

// hostCPU is what the whole source QEMU took of its host before the migration.
func hostCPU() metric {
	return metric{"cpu", "CPU of QEMU", percent,
		"CPU of QEMU: time of all threads of the source's QEMU before `migrate`, in percent of one processor (cpu, thread process)",
		func(m *record.Migration) (float64, bool) {
			for _, u := range m.CPU {
				if u.Side == record.Source && u.Thread == processThread && u.Stage == "" {
					return u.Percent, true
				}
			}
			return 0, false
		}}
}

// vcpuCPU is what the guest itself took: the vCPU threads alone, which a cap holds down.
func vcpuCPU() metric {
	return metric{"vcpus", "CPU of the vCPUs", percent,
		"CPU of the vCPUs: time of the source's vCPU threads before `migrate`, together, in percent of one processor (cpu, " +
			"threads vcpu0, vcpu1, ... or vcpus)",
		func(m *record.Migration) (float64, bool) {
			sum, ok := 0.0, false
			for _, u := range m.CPU {
				if u.Side == record.Source && strings.HasPrefix(u.Thread, "vcpu") && u.Stage == "" {
					sum, ok = sum+u.Percent, true
				}
			}
			return sum, ok
		}}
}

// processThread is the record's name for all of a QEMU's threads together.
const processThread = "process"

// claimedRate is the writes that the load generator was asked for, seenRate the pages that QEMU found dirty.
func ownRate() metric {
	return metric{"own", "the generator's own count", perSecond,
		"own count: the workload's events in the second before the first command, by the guest (guest.events_before_per_s)",
		func(m *record.Migration) (float64, bool) {
			if m.Guest == nil {
				return 0, false
			}
			return float(m.Guest.EventsBefore)
		}}
}

// eventsBefore is the same of any workload: what it counts is its own.
func eventsBefore() metric {
	m := ownRate()
	m.key, m.name, m.definition = "events", "the workload's events",
		"the workload's events: its own count in the second before the first command (guest.events_before_per_s); of "+
			"iperf3 bytes, of sysbench events, of dirty page writes"
	return m
}

// seenRate is an estimate from QEMU's bitmap alone, and needs no word of the guest's. Over all passes: some hundred
// pages wait after each, however short, so that behind one of 20 ms alone it was seen to be 40,000/s of a workload that
// wrote 3,000/s; behind the first and longest the working set is all dirty.
func seenRate() metric {
	return metric{"seen", "dirty pages seen by QEMU", perSecond,
		"seen by QEMU: dirty pages waiting when a pass began / duration of the pass before, all of them in sum (passes). A " +
			"page written twice " +
			"in a pass counts once, so that it lies below the writes the more, the longer the passes and the smaller the " +
			"working set; what the guest's system writes counts too",
		func(m *record.Migration) (float64, bool) {
			pages, during := int64(0), time.Duration(0)
			for i := 1; i < len(m.Passes); i++ {
				if p, before := m.Passes[i], m.Passes[i-1]; p.DirtyPages != nil && before.Duration > 0 && !p.PostCopy &&
					!before.Stopped && !p.Stopped {
					pages, during = pages+*p.DirtyPages, during+before.Duration
				}
			}
			return float64(pages) / max(during.Seconds(), 1e-9), during > 0
		}}
}

// seenPages is what the first synchronisation after the whole copy found.
func seenPages() metric {
	return metric{"dirty", "dirty pages after the first pass", none,
		"dirty pages: waiting when pass 2 began (passes[1].dirty_pages)",
		func(m *record.Migration) (float64, bool) {
			if len(m.Passes) < 2 || m.Passes[1].PostCopy {
				return 0, false
			}
			return integer(m.Passes[1].DirtyPages)
		}}
}

// observer is one of the places from which the downtime is seen.
type observer struct {
	name, definition string
	of               func(*record.Downtime) *time.Duration
}

func observers() []observer {
	return []observer{
		{"qemu", "query-migrate's own", func(d *record.Downtime) *time.Duration { return d.QEMU }},
		{"wire", "STOP to RESUME by QEMU's stamps", func(d *record.Downtime) *time.Duration { return d.Wire }},
		{"arrival", "STOP to RESUME by when both were at qmigrate",
			func(d *record.Downtime) *time.Duration { return d.Arrival }},
		{"status", "query-status polled on both sides", func(d *record.Downtime) *time.Duration { return d.Status }},
		{"ping", "longest gap between echo replies", func(d *record.Downtime) *time.Duration { return d.Ping }},
		{"heartbeat", "longest gap between the guest's beats at the observer",
			func(d *record.Downtime) *time.Duration { return d.Heartbeat }},
		{"guest clock", "longest gap on the guest's own clock, which stands still",
			func(d *record.Downtime) *time.Duration { return d.GuestClock }},
		{"tcp", "longest gap in an established connection", func(d *record.Downtime) *time.Duration { return d.TCP }},
	}
}

// values are the metric's values of the completed trials, and those trials.
func (m metric) values(trials []*trial) (values []float64, of []*trial) {
	for _, t := range trials {
		if !t.completed() {
			continue
		}
		if v, ok := m.of(t.Migration); ok {
			values, of = append(values, v), append(of, t)
		}
	}
	return values, of
}

// measured tells whether any trial has it.
func (m metric) measured(trials []*trial) bool {
	return slices.ContainsFunc(trials, func(t *trial) bool { _, ok := m.of(t.Migration); return ok && t.completed() })
}

// criticalTime is how much of the downtime is due to a part.
func criticalTime(part record.PartName) metric {
	return metric{part.Key(), string(part), timeKind,
		fmt.Sprintf("%s: how much of it is on the critical path of the downtime (anatomy.duration_ns where part is %s and "+
			"critical)", part, part),
		func(m *record.Migration) (float64, bool) {
			took, told := m.CriticalTime(part)
			return took.Seconds(), told
		}}
}

// metricOf is the metric of a record's key, total.wall_ns, or of a part of the downtime, anatomy.ram_save_ns.
func metricOf(key string) metric {
	known := map[string]metric{
		"guest.events_before_per_s": eventsBefore(), "total.wall_ns": totalTime(), "downtime.wire_ns": downtime(), "total.transferred_bytes": sentBytes(), "passes": passes(), "guest.slowdown_percent": slowdown(),
	}
	if m, ok := known[key]; ok {
		return m
	}
	for _, part := range record.PartNames() {
		if part.Key() == key {
			return criticalTime(part)
		}
	}
	m := metric{key: key, name: key, definition: key + ": as docs/measurements.md defines it"}
	one := 1.0
	switch {
	case strings.HasSuffix(key, "_ns"):
		m.kind, one = timeKind, 1e9
	case strings.HasSuffix(key, "_bytes_per_s"):
		m.kind = rateKind
	case strings.HasSuffix(key, "_bytes"):
		m.kind = sizeKind
	case strings.HasSuffix(key, "_per_s"):
		m.kind = perSecond
	case strings.HasSuffix(key, "_percent"):
		m.kind = percent
	}
	m.of = func(r *record.Migration) (float64, bool) {
		b, err := json.Marshal(r)
		var v any
		if err != nil || json.Unmarshal(b, &v) != nil {
			return 0, false
		}
		for _, name := range strings.Split(key, ".") {
			fields, _ := v.(map[string]any)
			v = fields[name]
		}
		n, ok := v.(float64)
		return n / one, ok
	}
	return m
}
