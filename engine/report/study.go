package report

import (
	"fmt"
	"slices"
	"strings"

	"qmigrate/engine/record"
)

// study is a published study that an experiment of the same name repeats: what it showed, and its own numbers.
type study struct {
	experiment string
	title      string
	items      []item
	numbers    []number
}

// item is one figure or table of a study: the figures here that answer it.
type item struct {
	what    string
	figures func(*set) []*Figure
	key     string // begins the keys of general figures that answer it, where there are no figures of its own
	needs   string // what the records have to have
}

// number is a value that the study gave, and the same from these records.
type number struct {
	what, theirs string
	metric       metric
	of           func(*trial) bool
}

// The factors that studies vary, by each name that an experiment may give them.
func bandwidth() []string { return []string{bandwidthFactor, "link-rate"} }
func dirtyRate() []string { return []string{paramFactor("rate"), "rate", "dirty-rate", "dirty rate"} }
func memory() []string    { return []string{"memory", "flavor"} }

func inMode(mode record.Mode) func(*trial) bool {
	return func(t *trial) bool { return t.Mode == mode }
}

func all(*trial) bool { return true }

func runs(workload string) func(*trial) bool {
	return func(t *trial) bool { return strings.HasPrefix(t.Workload, workload) }
}

// varied are the figures of the trials against the first of the factors that varies.
func varied(key, title string, names []string, of func(*trial) bool, metrics ...metric) func(*set) []*Figure {
	return func(s *set) []*Figure {
		var out []*Figure
		trials := slices.DeleteFunc(slices.Clone(s.trials), func(t *trial) bool { return !of(t) })
		for _, name := range names {
			f, ok := find(s.factors, name)
			if !ok {
				continue
			}
			for _, part := range splitFor(f, trials, without(s.factors, f.name), curveLimit) {
				words, k := title, key
				if part.name != "" {
					words, k = title+" ("+part.name+")", key+"-"+slug(part.name)
				}
				if fig := against(k, words, part.trials, f, part.by, metrics); fig.drawn() {
					out = append(out, fig)
				}
			}
			if len(out) > 0 {
				break
			}
		}
		return out
	}
}

// first is the figures of the first way that gives any.
func first(ways ...func(*set) []*Figure) func(*set) []*Figure {
	return func(s *set) []*Figure {
		for _, way := range ways {
			if out := way(s); len(out) > 0 {
				return out
			}
		}
		return nil
	}
}

func studies() []study {
	preCopy, stopped := inMode(record.PreCopyMode), inMode(record.StopAndCopyMode)
	return []study{
		{
			experiment: "kvm-precopy", title: "Study K: pre-copy against stop-and-copy under KVM",
			items: []item{
				{what: "1. stop-and-copy: time and downtime against bandwidth", needs: "mode stop-and-copy at two values of max-bandwidth or link-rate",
					figures: varied("k1-stop-and-copy-by-bandwidth", "K1. Stop-and-copy: time and downtime against bandwidth", bandwidth(), stopped, totalTime(), downtime())},
				{what: "2. pre-copy: total time against bandwidth", needs: "mode pre-copy at two values of max-bandwidth or link-rate",
					figures: varied("k2-time-by-bandwidth", "K2. Pre-copy: total time against bandwidth", bandwidth(), preCopy, totalTime())},
				{what: "3. pre-copy: downtime against bandwidth", needs: "mode pre-copy at two values of max-bandwidth or link-rate",
					figures: varied("k3-downtime-by-bandwidth", "K3. Pre-copy: downtime against bandwidth", bandwidth(), preCopy, downtime())},
				{what: "4. time and downtime against dirty pages", needs: "mode pre-copy at two rates of the workload, or passes with samples",
					figures: first(varied("k4-by-dirty-pages", "K4. Time and downtime against the rate of dirtied pages", dirtyRate(), preCopy, totalTime(), downtime()), func(s *set) []*Figure {
						return []*Figure{scatter(only(s.trials, preCopy), s.factors, seenPages(), []metric{totalTime(), downtime()}, "k4-by-dirty-pages", "K4. Time and downtime against dirty pages")}
					})},
				{what: "5. proof that the load generator dirties what it claims", needs: "a workload with a rate", figures: func(s *set) []*Figure {
					f, ok := firstOf(s, dirtyRate())
					if !ok {
						return nil
					}
					return renamed(proof(s, f), "k5-load-generator", "K5. The load generator: claimed against seen")
				}},
				{what: "6. number of pre-copy iterations against dirty rate", needs: "mode pre-copy at two rates of the workload, or passes with samples",
					figures: first(varied("k6-passes-by-dirty-rate", "K6. Passes of pre-copy against the dirty rate", dirtyRate(), preCopy, passes()), func(s *set) []*Figure {
						return []*Figure{scatter(only(s.trials, preCopy), s.factors, seenRate(), []metric{passes()}, "k6-passes-by-dirty-rate", "K6. Passes of pre-copy against the dirty rate that QEMU saw")}
					})},
				{what: "7. pre-copy beside stop-and-copy", needs: "modes pre-copy and stop-and-copy in cells that agree otherwise",
					figures: varied("k7-pre-copy-and-stop-and-copy", "K7. Pre-copy beside stop-and-copy", []string{modeFactor}, func(t *trial) bool { return preCopy(t) || stopped(t) }, totalTime(), downtime(), sentBytes())},
			},
			numbers: []number{
				{"pre-copy, one run: live copy of 2 GB or 4 GB, from migrate to running", "17.7 s", totalTime(), preCopy},
				{"the same run: stopped to running", "1.2 s", downtime(), preCopy},
			},
		},
		{
			experiment: "xen-cpu", title: "Study X: processor-bound workloads on Xen, with a policy (IJERT 2013)",
			items: []item{
				{what: "tables 1 to 3: use of the processor against the cap, by memory", needs: "a factor cap, and records with cpu",
					figures: varied("x1-cpu-by-cap", "X1 to X3. Processor of the guest's QEMU against its cap", []string{"cap"}, all, hostCPU())},
				{what: "table 4: host's processor by cores and workload", needs: "a factor vcpus, and records with cpu",
					figures: varied("x4-cpu-by-cores", "X4. Processor of the guest's QEMU by vCPUs", []string{"vcpus"}, all, hostCPU())},
				{what: "equation 1: total time as the sum of the stages", key: "stages", needs: "completed migrations"},
				{what: "table 5: total time and downtime by workload", needs: "a factor workload",
					figures: varied("x5-by-workload", "X5. Total time and downtime by workload", []string{workloadFactor}, all, totalTime(), downtime())},
				{what: "their grid: time and downtime by memory", needs: "a factor memory",
					figures: varied("x6-by-memory", "X6. Total time and downtime by memory", memory(), all, totalTime(), downtime())},
			},
			numbers: []number{
				{"Livermore loops: total time", "63 s", totalTime(), runs("livermore")}, {"Livermore loops: downtime", "18 s", downtime(), runs("livermore")},
				{"Dhrystone: total time", "64 s", totalTime(), runs("dhrystone")}, {"Dhrystone: downtime", "28 s", downtime(), runs("dhrystone")},
				{"Linpack: total time", "64 s", totalTime(), runs("linpack")}, {"Linpack: downtime", "19 s", downtime(), runs("linpack")},
				{"processor at caps 25, 50, 75, 100 with 1 vCPU, in % of their machine", "6.2, 12.5, 18.7, 24.8 %; flat beyond", hostCPU(), all},
			},
		},
		{
			experiment: "lxc-lab", title: "Study L: two LXC containers as hosts",
			items: []item{
				{what: "the guest's events across the migration, dashed line where it starts", key: "timeline-", needs: "records with a timeline"},
				{what: "throughput of a connection across the migration", key: "timeline-", needs: "records with a timeline"},
				{what: "virtio against e1000", needs: "a factor nic", figures: varied("l3-by-nic", "L3. Time and downtime by network card", []string{"nic"}, all, totalTime(), downtime())},
				{what: "with and without KVM", needs: "a factor accelerator", figures: varied("l4-by-accelerator", "L4. Time, downtime and the guest's speed by accelerator", []string{"accelerator"}, all, totalTime(), downtime(), before())},
			},
			numbers: []number{
				{"sysbench in the guest, 1 s: before", "1,848 events", before(), runs("sysbench")},
				{"sysbench in the guest: during the migration", "1,801 events (2.4 % slower)", slowdown(), runs("sysbench")},
				{"iperf across the migration: retransmissions", "0", resent(), all},
			},
		},
		{
			experiment: "prediction", title: "Study P: predicting time and downtime (Akoush and others, MASCOTS 2010; Xen)",
			items: []item{
				{what: "downtime and time against page dirty rate", needs: "two rates of the workload",
					figures: varied("p1-by-dirty-rate", "P1. Time and downtime against the dirty rate", dirtyRate(), all, totalTime(), downtime())},
				{what: "the same against link bandwidth", needs: "two values of max-bandwidth or link-rate",
					figures: varied("p2-by-bandwidth", "P2. Time and downtime against bandwidth", bandwidth(), all, totalTime(), downtime())},
				{what: "measured and predicted", key: "predicted", needs: "records with a prediction"},
			},
			numbers: []number{
				{"CPU: measured / predicted time; downtime", "5.8 / 5.7 s; 317.3 / 314.1 ms", totalTime(), runs("cpu")},
				{"WEB: measured / predicted time; downtime", "7.5 / 7.4 s; 449.5 / 420.4 ms", totalTime(), runs("web")},
				{"SFS: measured / predicted time; downtime", "14.8 / 14.9 s; 217.6 / 217.7 ms", totalTime(), runs("sfs")},
				{"MR: measured / predicted time; downtime", "14.9 / 15.13 s; 348.9 / 348.1 ms", totalTime(), runs("mr")},
				{"floor of the downtime at 1 Gbit/s", "314 ms", downtime(), all},
			},
		},
		{
			experiment: "openstack", title: "Study O: OpenStack live migration (ICCLab)",
			items: []item{
				{what: "duration, downtime and bytes by flavor, each mode", needs: "a factor memory or flavor",
					figures: varied("o1-by-flavor", "O1. Duration, downtime and bytes by flavor", memory(), all, totalTime(), downtime(), sentBytes())},
				{what: "modes beside each other: pre-copy, post-copy, hybrid", needs: "a factor mode",
					figures: varied("o2-by-mode", "O2. Duration, downtime and bytes by mode", []string{modeFactor}, all, totalTime(), downtime(), sentBytes())},
				{what: "idle and under load", needs: "a factor workload",
					figures: first(varied("o3-by-load", "O3. Duration, downtime and bytes by load", []string{workloadFactor}, all, totalTime(), downtime(), sentBytes()),
						varied("o3-by-load", "O3. Duration, downtime and bytes by load", dirtyRate(), all, totalTime(), downtime(), sentBytes()))},
				{what: "shared storage and block migration", needs: "a factor storage",
					figures: varied("o4-by-storage", "O4. Duration, downtime and bytes by storage", []string{"storage"}, all, totalTime(), downtime(), sentBytes())},
				{what: "1 and 10 Gbit/s", needs: "a factor link-rate", figures: varied("o5-by-link", "O5. Duration, downtime and bytes by link rate", bandwidth(), all, totalTime(), downtime(), sentBytes())},
			},
		},
	}
}

// before is the guest's own speed.
func before() metric {
	m := ownRate()
	m.key, m.name = "before", "the guest's events before"
	return m
}

func resent() metric {
	return metric{"resent", "segments sent again", none, "segments sent again: tcpi_total_retrans of the observer's connection (network.retransmits)",
		func(m *record.Migration) (float64, bool) {
			if m.Network == nil {
				return 0, false
			}
			return integer(m.Network.Retransmits)
		}}
}

func only(trials []*trial, of func(*trial) bool) []*trial {
	return slices.DeleteFunc(slices.Clone(trials), func(t *trial) bool { return !of(t) })
}

func firstOf(s *set, names []string) (factor, bool) {
	for _, name := range names {
		if f, ok := find(s.factors, name); ok && f.numeric {
			return f, true
		}
	}
	return factor{}, false
}

func renamed(figures []*Figure, key, title string) []*Figure {
	for _, f := range figures {
		f.Key, f.Title = key, title
	}
	return figures
}

// studied makes the tables and figures of the study that the records' experiment repeats; none for another experiment. A scale in the experiment's name is not
// looked at: kvm-precopy-small is kvm-precopy.
func studied(s *set) ([]Table, []*Figure) {
	name := s.trials[0].Experiment
	for _, t := range s.trials {
		if t.Experiment != name {
			return nil, nil
		}
	}
	i := slices.IndexFunc(studies(), func(x study) bool {
		return name == x.experiment || strings.HasPrefix(name, x.experiment+"-") || strings.HasPrefix(name, x.experiment+" ")
	})
	if i < 0 {
		return nil, nil
	}
	x := studies()[i]
	table := Table{Key: "study", Title: x.title, Text: "What the study showed, and where it is here.", Align: "ll", Head: []string{"of the study", "here"}}
	var figures []*Figure
	for _, it := range x.items {
		var mine []*Figure
		if it.figures != nil {
			mine = slices.DeleteFunc(it.figures(s), func(f *Figure) bool { return !f.drawn() })
		}
		var titles []string
		for _, f := range mine {
			titles = append(titles, f.Title)
		}
		switch {
		case len(mine) > 0:
		case it.key == "stages" && len(completed(s.trials)) > 0:
			titles = []string{"Stages"}
		case it.key == "timeline-" && slices.ContainsFunc(s.trials, func(t *trial) bool { return len(t.Timeline) > 0 }):
			titles = []string{"The guest across one migration"}
		case it.key == "predicted" && predicted(s).drawn():
			titles = []string{"Predicted against measured"}
		default:
			titles = []string{"not in these records: it needs " + it.needs}
		}
		figures = append(figures, mine...)
		table.Rows = append(table.Rows, []string{it.what, strings.Join(titles, "; ")})
	}
	tables := []Table{table}
	if len(x.numbers) > 0 {
		t := Table{Key: "study-numbers", Title: "The study's numbers beside these", Align: "lll", Head: []string{"what", "the study", "here"},
			Text: "Hardware, hypervisor and guest differ: the shape is to be compared, not the value. Here: the median of the cell, or the least and the largest median of several cells."}
		for _, n := range x.numbers {
			t.Rows = append(t.Rows, []string{n.what, n.theirs, n.ours(s)})
		}
		tables = append(tables, t)
	}
	return tables, figures
}

// ours is the number from these records.
func (n number) ours(s *set) string {
	var medians []float64
	count := 0
	for _, c := range groupBy(only(s.trials, n.of), s.factors) {
		if values, _ := n.metric.values(c.trials); len(values) > 0 {
			medians = append(medians, estimateOf(values).Value)
			count += len(values)
		}
	}
	switch len(medians) {
	case 0:
		return "not in these records"
	case 1:
		return fmt.Sprintf("%s: %s (n = %d)", n.metric.name, format(n.metric.kind, medians[0]), count)
	}
	return fmt.Sprintf("%s: %s to %s (%d cells, n = %d)", n.metric.name, format(n.metric.kind, slices.Min(medians)), format(n.metric.kind, slices.Max(medians)), len(medians), count)
}
