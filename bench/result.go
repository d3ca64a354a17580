package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/internal/atomicfile"
	"qmigrate/internal/procfs"
)

// Result is one section as its file has it.
type Result struct {
	Schema  string    `json:"schema"`
	Name    string    `json:"name"`
	Started time.Time `json:"started_at"`
	Seconds float64   `json:"seconds"`
	Quick   bool      `json:"quick"`
	Machine string    `json:"machine"`
	Load    Load      `json:"load"`
	Figures []Figure  `json:"figures"`
	Notes   []string  `json:"notes,omitempty"` // how it was measured, and where time goes

	before cpu
}

// Load is what else the machine did meanwhile.
type Load struct {
	Before float64 `json:"average_before"` // the kernel's one-minute load average
	After  float64 `json:"average_after"`
	// processor time of all cores that went to processes which are not ours; -1: not known
	Others float64 `json:"others_percent"`
}

// Figure is one number with its uncertainty.
type Figure struct {
	Name   string  `json:"name"` // what it is: section, QEMU, quantity
	Unit   string  `json:"unit"` // ratio, us, ms, s, MiB, percent, allocations, lines
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Low    float64 `json:"low"` // of the interval for the median
	High   float64 `json:"high"`
	Level  float64 `json:"level"`            // the interval's confidence; what n allows where that is less than 0.95
	Method string  `json:"method"`           // order statistics, or bootstrap
	Target string  `json:"target,omitempty"` // "<= 1.1"; empty: told to compare
	Met    *bool   `json:"met,omitempty"`    // by the median

	Values []float64 `json:"values"`
}

func newResult(name string, quick bool) *Result {
	r := &Result{Schema: "qmigrate/bench/1", Name: name, Started: time.Now(), Quick: quick, Machine: machine(),
		before: readCPU()}
	r.Load.Before = loadAverage()
	return r
}

func (r *Result) finish() {
	r.Seconds = math.Round(time.Since(r.Started).Seconds()*10) / 10
	r.Load.After, r.Load.Others = loadAverage(), readCPU().others(r.before)
}

func (r *Result) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// add appends a figure. A target is "< 5", "<= 1.1" or "= 0", in the figure's unit.
func (r *Result) add(name, unit, target string, e estimate) {
	if len(e.values) == 0 {
		r.note("%s: not measured", name)
		return
	}
	f := Figure{
		Name: r.Name + ": " + name, Unit: unit, N: e.n, Median: e.median, Low: e.low, High: e.high, Level: e.level,
		Method: e.method,
		Target: target, Values: e.values,
	}
	if op, limit, ok := strings.Cut(target, " "); ok {
		x, err := strconv.ParseFloat(limit, 64)
		met := err == nil && (op == "<" && f.Median < x || op == "<=" && f.Median <= x || op == "=" && f.Median == x)
		f.Met = &met
	}
	r.Figures = append(r.Figures, f)
}

// print writes the table; what was measured only to compare has no target.
func (r *Result) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s (%.0f s; load average %.2f to %.2f on %s; others had %s of all cores)\n", r.Name, r.Seconds,
		r.Load.Before, r.Load.After, r.Machine, percent(r.Load.Others))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tn\tmedian\tinterval\ttarget\t")
	for _, f := range r.Figures {
		fmt.Fprintf(t, "%s\t%d\t%s %s\t%s .. %s%s\t%s\t%s\n", strings.TrimPrefix(f.Name, r.Name+": "), f.N, digits(f.Median),
			f.Unit, digits(f.Low), digits(f.High), f.doubt(), f.Target, f.verdict())
	}
	t.Flush()
	for _, n := range r.Notes {
		fmt.Fprintln(w, n)
	}
}

// doubt says which confidence an interval has that could not reach 95 %.
func (f Figure) doubt() string {
	if f.Level < 0.95 {
		return fmt.Sprintf(" (%.0f %%)", 100*f.Level)
	}
	return ""
}

// verdict is met or not met by the median, and whether the interval leaves that open.
func (f Figure) verdict() string {
	if f.Met == nil {
		return ""
	}
	_, limit, _ := strings.Cut(f.Target, " ")
	x, _ := strconv.ParseFloat(limit, 64)
	text := "met"
	if !*f.Met {
		text = "NOT MET"
	}
	if f.Low < x && x < f.High {
		text += ", but the interval holds the target"
	}
	return text
}

// summary prints the targets alone.
func summary(w io.Writer, all []Figure) {
	met, n := 0, 0
	for _, f := range all {
		if f.Met == nil {
			continue
		}
		n++
		if *f.Met {
			met++
		}
	}
	fmt.Fprintf(w, "\n%d of %d targets met\n", met, n)
	for _, f := range all {
		if f.Met != nil && !*f.Met {
			fmt.Fprintf(w, "not met: %s is %s %s, target %s\n", f.Name, digits(f.Median), f.Unit, f.Target)
		}
	}
}

func (r *Result) write(name string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	if err := atomicfile.Write(name, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return nil
}

// digits prints three significant digits, and no more than a thousandth.
func digits(v float64) string {
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

func percent(v float64) string {
	if v < 0 {
		return "an unknown share"
	}
	return fmt.Sprintf("%.0f %%", v)
}

// machine is the processor and how many of it.
func machine() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	if model := procfs.Value(b, "model name"); model != "" {
		return fmt.Sprintf("%d x %s", runtime.NumCPU(), model)
	}
	return fmt.Sprintf("%d cores", runtime.NumCPU())
}

func loadAverage() float64 {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	v, _ := strconv.ParseFloat(first, 64)
	return v
}

// cpu is a reading of who had the processors so far.
type cpu struct {
	busy, all float64       // of the machine, in clock ticks, summed over its cores
	ours      time.Duration // this process and its children that have ended
}

const ticksPerSecond = 100 // USER_HZ, which /proc/stat counts in on every Linux

func readCPU() cpu {
	var c cpu
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line) { // cpu user nice system idle iowait irq softirq steal guest guest_nice
		v, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 8 {
			continue
		}
		c.all += v
		if i != 4 && i != 5 {
			c.busy += v
		}
	}
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			c.ours += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return c
}

// others is the share, in percent of all cores, of processes that are not ours, stolen time included; -1 if it cannot
// be known.
func (c cpu) others(before cpu) float64 {
	all := c.all - before.all
	if all <= 0 {
		return -1
	}
	return max(0, 100*(c.busy-before.busy-(c.ours-before.ours).Seconds()*ticksPerSecond)/all)
}
