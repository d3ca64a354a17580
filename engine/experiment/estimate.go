package experiment

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"qmigrate/engine/record"
	"qmigrate/guest/wire"
)

// Estimate is what the trials that are left will cost, before they are run.
type Estimate struct {
	WarmUp  int // trials of it that are not recorded
	Time    time.Duration
	Bytes   int64 // over the link
	Memory  int64 // of the two QEMUs of the largest trial, bytes
	Records int   // from which it was learnt; 0: by rule alone
}

// What a trial takes beside its migration, under TCG on the machine that docs/experiments.md names. They are only the
// beginning: records correct them.
const (
	bootGuess   = 2500 * time.Millisecond // network, two QEMUs, Linux, agent
	fillGuess   = 150 << 20               // bytes/s, to fill and to check the guest's pages
	aroundGuess = 2500 * time.Millisecond // the observation before and after, settling, the lab's end
	watchGuess  = 1500 * time.Millisecond // of which for the observation, if the file does not say how long
	// times as long as the tiny guest's boot and end: seen 1.4 to 2.2 times (studies lxc-lab and openstack, small)
	debianGuess = 2
	streamGuess = 400 << 20 // bytes/s of a stream that nothing bounds
	passesGuess = 30        // of a migration that does not converge
)

// guess is the rule: how long a trial of the cell takes, and what it sends.
func (c *Cell) guess(limit time.Duration) (time.Duration, int64) {
	memory := c.memory()
	filled := float64(cmp.Or(c.Lab.Fill, memory/2))
	rate := float64(streamGuess)
	if b := cmp.Or(c.Plan.MaxBandwidth, 128<<20); b > 0 {
		rate = min(rate, float64(b))
	}
	if c.Lab.LinkRate > 0 {
		rate = min(rate, float64(c.Lab.LinkRate))
	}
	sent := filled + 40<<20 // and what Linux itself has in memory
	if c.Plan.Mode == record.PreCopyMode || c.Plan.Mode == record.HybridMode || c.Plan.Mode == "" {
		dirty, set := 4096*c.Lab.Workload.Number("rate"), c.Lab.Workload.Number("working-set")
		if set > 0 && dirty == 0 { // as fast as it can
			dirty = rate
		}
		goal := rate * cmp.Or(c.Plan.DowntimeLimit, 300*time.Millisecond).Seconds()
		passes := passesGuess
		if c.Plan.Mode == record.HybridMode {
			passes = 2
		}
		for left := min(set, dirty*sent/rate); left > goal && passes > 0; passes-- {
			sent += left
			left = min(set, dirty*left/rate)
		}
	}
	migration := seconds(sent / rate)
	if c.Plan.Timeout > 0 {
		migration = min(migration, c.Plan.Timeout)
	}
	beside := bootGuess + aroundGuess
	if c.Lab.Image.Guest == wire.DebianGuest {
		beside *= debianGuess
	}
	if c.Lab.Observe > 0 {
		beside += 2*c.Lab.Observe - watchGuess
	}
	return min(beside+seconds(2*filled/fillGuess)+migration, limit), int64(sent)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// estimator learns from records how long trials take.
type estimator struct {
	limit time.Duration
	took  map[string][]time.Duration // by cell
	sum   time.Duration              // of all that was learnt
	rule  time.Duration              // what the rule says of the same trials
	known int
}

func newEstimator(e *Experiment, records []*record.Migration) *estimator {
	x := &estimator{limit: e.TrialTimeout, took: map[string][]time.Duration{}}
	cells := map[string]*Cell{}
	for _, c := range e.Cells {
		cells[c.values()] = c
	}
	for _, r := range records {
		if b, _ := json.Marshal(r.Factors); r.Boot != nil && cells[string(b)] != nil {
			x.learn(cells[string(b)], r.Boot.Trial)
		}
	}
	return x
}

// values are a cell's factors as one text.
func (c *Cell) values() string {
	b, _ := json.Marshal(c.Factors) // texts and numbers
	return string(b)
}

func (x *estimator) learn(c *Cell, took time.Duration) {
	rule, _ := c.guess(x.limit)
	x.took[c.Name] = append(x.took[c.Name], took)
	x.sum, x.rule = x.sum+took, x.rule+rule
	x.known++
}

// trial is how long one of the cell will take: as long as others of it took, else the rule as far as it has been right.
// Means, for they add up to the time of a run, and medians do not.
func (x *estimator) trial(c *Cell) time.Duration {
	if took := x.took[c.Name]; len(took) > 0 {
		var sum time.Duration
		for _, one := range took {
			sum += one
		}
		return sum / time.Duration(len(took))
	}
	rule, _ := c.guess(x.limit)
	if x.known > 0 {
		rule = seconds(rule.Seconds() * x.sum.Seconds() / x.rule.Seconds())
	}
	return rule
}

// all is what the trials that are left cost, those included that are run first for warm-up.
func (x *estimator) all(warmUp, trials []Trial) Estimate {
	e := Estimate{WarmUp: len(warmUp), Records: x.known}
	for _, t := range slices.Concat(warmUp, trials) {
		_, sent := t.guess(x.limit)
		e.Time += x.trial(t.Cell)
		e.Bytes += sent
		e.Memory = max(e.Memory, 2*t.memory())
	}
	return e
}

func median[T cmp.Ordered](of []T) T {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
