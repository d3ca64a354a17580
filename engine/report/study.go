package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"qmigrate/engine/record"
)

// number is a value that a published study gave, and the same from these records.
type number struct {
	what, theirs string
	metric       metric
	of           func(*trial) bool
}

// study is a published study that an experiment of that name repeats.
type study struct {
	experiment, title string
	numbers           []number
}

func inMode(mode record.Mode) func(*trial) bool {
	return func(t *trial) bool { return t.Mode == mode }
}

func all(*trial) bool { return true }

func runs(workload string) func(*trial) bool {
	return func(t *trial) bool { return strings.HasPrefix(t.Workload, workload) }
}

func onCard(nic string) func(*trial) bool {
	return func(t *trial) bool { return strings.HasPrefix(t.Workload, "iperf") && t.QEMU.NIC == nic }
}

// throughput is what iperf3 moved before the migration.
func throughput() metric {
	m := eventsBefore()
	m.name, m.kind = "throughput", rateKind
	return m
}

func studies() []study {
	preCopy := inMode(record.PreCopyMode)
	return []study{
		{"kvm-precopy", "study K, KVM pre-copy against stop-and-copy (slides)", []number{
			{"live copy of one run", "16.5 s", stageTime(record.PreCopy), preCopy},
			{"downtime of that run", "1.2 s", downtime(), preCopy},
			{"that run from migrate to running", "17.7 s", totalTime(), preCopy},
		}},
		{"xen-cpu", "study X, processor-bound workloads on Xen (IJERT 2013), table 5 and tables 1 to 3", []number{
			{"Livermore loops: total time", "63 s", totalTime(), runs("livermore")}, {"Livermore loops: downtime", "18 s",
				downtime(), runs("livermore")},
			{"Dhrystone: total time", "64 s", totalTime(), runs("dhrystone")}, {"Dhrystone: downtime", "28 s", downtime(),
				runs("dhrystone")},
			{"Linpack: total time", "64 s", totalTime(), runs("linpack")}, {"Linpack: downtime", "19 s", downtime(),
				runs("linpack")},
			{"processor at caps of 25, 50, 75, 100 %, 1 vCPU, in % of their machine", "6.2, 12.5, 18.7, 24.8; flat beyond",
				hostCPU(), all},
		}},
		{"lxc-lab", "study L, two LXC containers as hosts (homework)", []number{
			{"sysbench in the guest: events a second before", "1,848", eventsBefore(), runs("sysbench")},
			{"sysbench in the guest: in the second of the migration", "1,801 (2.5 % fewer)", slowdown(), runs("sysbench")},
			{"iperf, virtio: throughput before", "18.9 Gbit/s (2.2 GiB/s)", throughput(), onCard("virtio-net")},
			{"iperf, e1000: throughput", "0.813 Gbit/s (97 MiB/s)", throughput(), onCard("e1000")},
			{"iperf across the migration: segments sent again", "0", resent(), all},
		}},
		{"prediction", "study P, predicting time and downtime on Xen (Akoush and others, MASCOTS 2010)", []number{
			{"error of the predicted time", "CPU 2.4, WEB 2.0, SFS 1.5, MR 1.4 %",
				predictionError(totalTime(), func(p *record.Prediction) (float64, bool) { return seconds(p.Total) }), all},
			{"error of the predicted downtime", "CPU 2.4 (sic), WEB 6.4, SFS 0.1, MR 0.2 %",
				predictionError(downtime(), func(p *record.Prediction) (float64, bool) { return seconds(p.Downtime) }), all},
			{"time, measured / predicted", "CPU 5.8 / 5.7, WEB 7.5 / 7.4, SFS 14.8 / 14.9, MR 14.9 / 15.13 s", totalTime(), all},
			{"downtime, measured / predicted", "CPU 317.3 / 314.1, WEB 449.5 / 420.4, SFS 217.6 / 217.7, MR 348.9 / 348.1 ms",
				downtime(), all},
			{"least downtime at 1 Gbit/s", "314 ms", downtime(), all},
		}},
	}
}

func stageTime(name record.StageName) metric {
	return metric{string(name), string(name), timeKind, "duration of the stage " + string(name) + " (stages.duration_ns)",
		func(m *record.Migration) (float64, bool) {
			if s := m.Stage(name); s != nil {
				return s.Duration.Seconds(), true
			}
			return 0, false
		}}
}

// predictionError is how far the prediction was off, whichever way.
func predictionError(m metric, predicted func(*record.Prediction) (float64, bool)) metric {
	return metric{"error", "error of the predicted " + m.name, percent, "error: 100 x |predicted - measured| / measured",
		func(r *record.Migration) (float64, bool) {
			if r.Prediction == nil {
				return 0, false
			}
			p, ok := predicted(r.Prediction)
			v, measured := m.of(r)
			return 100 * math.Abs(p-v) / v, ok && measured && v > 0
		}}
}

func resent() metric {
	return metric{"resent", "segments sent again", none,
		"segments sent again: tcpi_total_retrans of the observer's connection (network.retransmits)",
		func(m *record.Migration) (float64, bool) {
			if m.Network == nil {
				return 0, false
			}
			return integer(m.Network.Retransmits)
		}}
}

// beside puts the study's own numbers beside ours, where the experiment is a study's and that gave any.
func beside(name string, parts []*set) (Table, bool) {
	i := slices.IndexFunc(studies(), func(x study) bool { return name == x.experiment })
	if i < 0 {
		return Table{}, false
	}
	t := Table{Key: "study", Title: "The study's own numbers beside these: " + studies()[i].title, Align: "lll",
		Head: []string{"what", "the study", "here"},
		Text: "Hardware, hypervisor and guest differ: the shape is to be compared, not the value. Here: the median of the " +
			"cell, or the least and the largest median of several cells."}
	for _, n := range studies()[i].numbers {
		t.Rows = append(t.Rows, []string{n.what, n.theirs, n.ours(parts)})
	}
	return t, true
}

// ours is the number from these records.
func (n number) ours(parts []*set) string {
	var medians []float64
	count := 0
	for _, s := range parts {
		for _, c := range groupBy(slices.DeleteFunc(slices.Clone(s.trials), func(t *trial) bool { return !n.of(t) }),
			s.factors) {
			if values, _ := n.metric.values(c.trials); len(values) > 0 {
				medians = append(medians, estimateOf(values).Value)
				count += len(values)
			}
		}
	}
	switch len(medians) {
	case 0:
		return "not in these records"
	case 1:
		return fmt.Sprintf("%s: %s (n = %d)", n.metric.name, format(n.metric.kind, medians[0]), count)
	}
	return fmt.Sprintf("%s: %s to %s (%d cells, n = %d)", n.metric.name, format(n.metric.kind, slices.Min(medians)),
		format(n.metric.kind, slices.Max(medians)), len(medians), count)
}
