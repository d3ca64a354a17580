package lab

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/plan"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
)

// TestPolicies moves a guest that outruns its bandwidth under one policy after the other, and prints the table: 256 MiB, 48 MiB of it
// rewritten for ever, max-bandwidth 16 MiB/s, downtime limit 300 ms. Asserted is what must hold of every run: a moved guest has its memory, one
// that was not moved is on the source and has it too, and the recorded decisions are those that the policy makes again over the
// recorded series. Figures are for people.
//
// By itself it takes the policies that end soon, once. QMIGRATE_POLICY_REPEATS=10 takes all of them ten times, in turns;
// QMIGRATE_POLICIES="a;b" only these; QMIGRATE_POLICY_LINK=1Gbit/s shapes the link; QMIGRATE_POLICY_QEMU=7.2 takes another pair.
func TestPolicies(t *testing.T) {
	needRoot(t)
	texts, repeats := []string{"switchover", "post-copy-on-stall"}, 1
	if text := os.Getenv("QMIGRATE_POLICY_REPEATS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("QMIGRATE_POLICY_REPEATS=%q is not a number of repeats", text)
		}
		repeats, texts = n, append(policy.Names(), "timeout:action=stop")
	}
	if text := os.Getenv("QMIGRATE_POLICIES"); text != "" {
		texts = strings.Split(text, ";")
	}
	var link int64
	if text := os.Getenv("QMIGRATE_POLICY_LINK"); text != "" {
		var err error
		if link, err = units.Rate(text); err != nil {
			t.Fatal(err)
		}
	}
	qemu := guesttest.QEMU(t, cmp.Or(os.Getenv("QMIGRATE_POLICY_QEMU"), "10.0"))
	seen := map[string][]*record.Migration{}
	for i := range repeats {
		for _, text := range texts {
			t.Run(fmt.Sprintf("%s_%d", text, i+1), func(t *testing.T) { seen[text] = append(seen[text], underPolicy(t, text, qemu, link)) })
		}
	}

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "policy\tmoved\ttime s\tdowntime ms\tsent MiB\tslowdown %\tworst beat ms")
	for _, text := range texts {
		var moved int
		var wall, down, sent, slow, beat []float64
		for _, rec := range seen[text] {
			if rec == nil {
				continue
			}
			var bytes int64
			for _, p := range rec.Passes { // total.transferred is of those that completed
				if p.Transferred != nil {
					bytes += *p.Transferred
				}
			}
			wall, sent = append(wall, rec.Total.Wall.Seconds()), append(sent, float64(bytes)/(1<<20))
			var stopped float64 // share of the time: the downtime has a column of its own
			if rec.Outcome == record.Completed && rec.Downtime.Wire != nil {
				moved++
				down = append(down, ms(*rec.Downtime.Wire))
				stopped = rec.Downtime.Wire.Seconds() / rec.Total.Wall.Seconds()
			}
			if g := rec.Guest; g != nil && g.EventsBefore != nil && g.EventsDuring != nil {
				slow = append(slow, 100*(1 - *g.EventsDuring / *g.EventsBefore / (1-stopped)))
			}
			if rec.Downtime.Heartbeat != nil {
				beat = append(beat, ms(*rec.Downtime.Heartbeat))
			}
		}
		fmt.Fprintf(w, "%s\t%d/%d\t%s\t%s\t%s\t%s\t%s\n", text, moved, len(seen[text]), spread(wall), spread(down), spread(sent), spread(slow), spread(beat))
	}
	_ = w.Flush()
	t.Logf("median [interval: order statistics, 95 %% from 6 runs on, the extremes below]; slowdown without the downtime; of those that did not move it: until they gave up\n%s", table.String())
}

// underPolicy is one migration under a policy, in a lab of its own.
func underPolicy(t *testing.T, text string, qemu string, link int64) *record.Migration {
	spec, err := policy.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	workload, err := wire.ParseWorkload("dirty:rate=20000/s,working-set=48MiB")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Up(within.Context(t), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: qemu, DestinationQEMU: qemu, Accelerator: "tcg", Workload: workload, LinkRate: link})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	}()
	rec, err := l.Migrate(within.Context(t),
		plan.Plan{Policy: spec, MaxBandwidth: 16 << 20, DowntimeLimit: 300 * time.Millisecond,
			Timeout: 100 * time.Second}, plan.Options{})
	if rec == nil {
		t.Fatal(err)
	}
	if (err == nil) != (rec.Outcome == record.Completed) || err != nil && rec.GuestOn != record.Source {
		t.Errorf("%s, the guest is on %s: %v", rec.Outcome, rec.GuestOn, err)
	}
	if c := rec.MemoryCheck; c == nil || c.PagesChecked <= 10000 || c.PagesWrong != 0 {
		t.Errorf("memory check %+v; warnings %q", c, rec.Warnings)
	}
	if limits, ok := rec.Plan["policy_limits"].(policy.Limits); ok {
		if again, err := engine.Replay(rec, spec, limits); err != nil || !slices.Equal(again, rec.Decisions) {
			t.Errorf("decided live %+v\nand again %+v, %v", rec.Decisions, again, err)
		}
	} else if spec.Name != "none" {
		t.Error("the record does not say within which limits the policy decided")
	}
	for _, d := range rec.Decisions {
		t.Logf("%v %s", d.At.Round(time.Millisecond), d.Text)
	}
	t.Logf("%s after %v, %v", rec.Outcome, rec.Total.Wall.Round(time.Millisecond), err)
	return rec
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// spread prints the median, and the narrowest pair of order statistics, as far from one end as from the other, that holds the true median with
// at least 95 %: P = 1 - 2 P(Binomial(n, 1/2) < k) for the k-th from each end. Below 6 values no pair does, and the extremes stand.
func spread(values []float64) string {
	n := len(values)
	if n == 0 {
		return "-"
	}
	s := slices.Sorted(slices.Values(values))
	k, tail, p := 1, math.Pow(0.5, float64(n)), math.Pow(0.5, float64(n)) // tail is P(Binomial < k), p its last term
	for ; k < n/2; k++ {
		if p *= float64(n-k+1) / float64(k); 1-2*(tail+p) < 0.95 {
			break
		}
		tail += p
	}
	return fmt.Sprintf("%.1f [%.1f, %.1f]", (s[(n-1)/2]+s[n/2])/2, s[k-1], s[n-k])
}

func TestSpread(t *testing.T) {
	var values []float64
	for i, want := range []string{"1.0 [1.0, 1.0]", "1.5 [1.0, 2.0]", "2.0 [1.0, 3.0]", "2.5 [1.0, 4.0]", "3.0 [1.0, 5.0]", "3.5 [1.0, 6.0]", "4.0 [1.0, 7.0]", "4.5 [1.0, 8.0]", "5.0 [2.0, 8.0]", "5.5 [2.0, 9.0]"} {
		values = append(values, float64(i+1))
		if got := spread(values); got != want {
			t.Errorf("of %d: %s, want %s", i+1, got, want)
		}
	}
}
