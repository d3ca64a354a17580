package main

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"qmigrate/guest/wire"
)

// until polls a workload's status until f is content, and gives up after a minute or when the workload has ended.
func until(t *testing.T, a *agent, f func(wire.Status) bool) wire.Status {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; a.clock.sleep(time.Millisecond) {
		j := must[*job](t)(a.currentJob())
		s := j.status(a.clock, wire.Bins{})
		if f(s) {
			return s
		}
		if s.State != wire.Running || time.Now().After(deadline) {
			t.Fatalf("waited in vain: %+v", s)
		}
	}
}

var compute = []string{"livermore", "livermore:span=medium", "livermore:span=short", "dhrystone", "linpack", "linpack:n=1000"}

// Each runs, is right, counts its events as its result counts them, and has a score in its own unit.
func TestComputeWorkloads(t *testing.T) {
	for _, spec := range compute {
		a := testAgent(t, newMonotonic())
		must[wire.Status](t)(a.startWorkload(must[wire.Workload](t)(wire.ParseWorkload(spec))))
		until(t, a, func(s wire.Status) bool { return s.Score != nil && s.Score.Value > 0 })
		s := must[wire.Status](t)(a.stopWorkload(wire.Bins{}))
		if s.State != wire.Done || s.Score == nil || s.Events == 0 {
			t.Errorf("%s: %+v", spec, s)
			continue
		}
		within := func(what string, got, least, most float64) {
			if !(got >= least && got <= most) {
				t.Errorf("%s: %s is %v, not between %v and %v", spec, what, got, least, most)
			}
		}
		switch s.Name {
		case "livermore":
			var r wire.Livermore
			must[any](t)(nil, json.Unmarshal(s.Result, &r))
			if !(r.Least <= r.Harmonic && r.Harmonic <= r.Geometric && r.Geometric <= r.Arithmetic && r.Arithmetic <= r.Most) || r.Least <= 0 || r.Rounds == 0 {
				t.Errorf("%s: the means are not in order: %+v", spec, r)
			}
			within("score", s.Score.Value, r.Geometric, r.Geometric)
			within("worst error", r.WorstError, 0, checksumTolerance/100)
		case "dhrystone":
			var r wire.Dhrystones
			must[any](t)(nil, json.Unmarshal(s.Result, &r))
			if r.Runs != s.Events || r.VAXMIPS*vaxDhrystones-r.PerSecond > 1e-6*r.PerSecond {
				t.Errorf("%s: %d events, %+v", spec, s.Events, r)
			}
			within("Dhrystones/s against events/s", r.PerSecond, float64(s.Events)/s.Elapsed.Seconds(), math.Inf(1)) // the loop alone is timed
		case "linpack":
			var r wire.Linpack
			must[any](t)(nil, json.Unmarshal(s.Result, &r))
			n := float64(r.N)
			flops := 2*n*n*n/3 + 2*n*n
			within("events", float64(s.Events), float64(r.Solves)*math.Floor(flops), float64(r.Solves+1)*flops)
			within("worst residual", r.WorstResidual, 1e-3, residualLimit)
			within("mean against the best", r.MFLOPS, 0, r.Best*1.000001)
		}
	}
}

// A result that is wrong in one value makes the workload fail, in words that say what was wrong.
func TestComputeWorkloadsFail(t *testing.T) {
	for _, spec := range compute {
		a := testAgent(t, newMonotonic())
		must[wire.Status](t)(a.startWorkload(must[wire.Workload](t)(wire.ParseWorkload(spec))))
		must[any](t)(a.do(wire.Request{Do: wire.DoWorkloadSpoil}))
		s := until(t, a, func(s wire.Status) bool { return s.State == wire.Failed })
		if !strings.HasPrefix(s.Error, "the result is wrong") {
			t.Errorf("%s: %q", spec, s.Error)
		}
		t.Logf("%s: %s", spec, s.Error)
	}
	a := testAgent(t, newMonotonic())
	must[wire.Status](t)(a.startWorkload(wire.Workload{Name: "idle"}))
	if _, err := a.do(wire.Request{Do: wire.DoWorkloadSpoil}); err == nil || !strings.Contains(err.Error(), "idle does not check itself") {
		t.Errorf("idle: %v", err)
	}
}

// Linpack of order 100 is the original's: its C version prints a normalised residual of 1.7, and a first and a last x of 1 - 1.49880108e-14 and
// 1 - 1.89848137e-14, on machines with IEEE doubles.
func TestLinpackPublished(t *testing.T) {
	l := newLinpack(newMonotonic(), 100)
	norm := l.generate()
	if singular := l.factor(func(int) bool { return true }); singular >= 0 {
		t.Fatal("singular ", singular)
	}
	l.solve()
	if first, last := l.b[0]-1, l.b[99]-1; math.Abs(first+1.49880108e-14) > 1e-22 || math.Abs(last+1.89848137e-14) > 1e-22 {
		t.Errorf("x[0] - 1 = %.8e, x[99] - 1 = %.8e", first, last)
	}
	if r := l.residual(norm); math.Abs(r-1.7) > 0.05 {
		t.Errorf("normalised residual %.3f", r)
	}
	l = newLinpack(newMonotonic(), 100)
	l.generate()
	clear(l.a[:100])
	if singular := l.factor(func(int) bool { return true }); singular != 0 {
		t.Error("a column of zeros has a pivot: ", singular)
	}
}

// Each of the values that Dhrystone prints is compared.
func TestDhrystoneCheck(t *testing.T) {
	for name, spoil := range map[string]func(*dhryVars){
		"Int_Glob":                func(v *dhryVars) { v.num = 6 },
		"Bool_Glob":               func(v *dhryVars) { v.flag = false },
		"Ch_1_Glob":               func(v *dhryVars) { v.ch1 = 'B' },
		"Ch_2_Glob":               func(v *dhryVars) { v.ch2 = 'C' },
		"Arr_1_Glob[8]":           func(v *dhryVars) { v.arr1[8] = 0 },
		"Arr_2_Glob[8][7]":        func(v *dhryVars) { v.arr2[8][7]-- },
		"Ptr_Glob->Discr":         func(v *dhryVars) { v.ptr.discr = ident2 },
		"Ptr_Glob->Enum_Comp":     func(v *dhryVars) { v.ptr.enum = ident2 },
		"Ptr_Glob->Int_Comp":      func(v *dhryVars) { v.ptr.num++ },
		"Ptr_Glob->Str_Comp":      func(v *dhryVars) { v.ptr.text[29]++ },
		"Ptr_Glob->Ptr_Comp":      func(v *dhryVars) { v.ptr.next = v.ptr },
		"Next_Ptr_Glob->Discr":    func(v *dhryVars) { v.nextPtr.discr = ident2 },
		"Next_Ptr_Glob->Int_Comp": func(v *dhryVars) { v.nextPtr.num++ },
		"Int_1_Loc":               func(v *dhryVars) { v.num1++ },
		"Int_2_Loc":               func(v *dhryVars) { v.num2++ },
		"Int_3_Loc":               func(v *dhryVars) { v.num3++ },
		"Enum_Loc":                func(v *dhryVars) { v.enum = ident1 },
		"Str_1_Loc":               func(v *dhryVars) { v.str1[0]++ },
		"Str_2_Loc":               func(v *dhryVars) { v.str2 = dhryThird },
	} {
		var v dhryVars
		v.init()
		v.loop(3)
		if err := v.check(); err != nil {
			t.Fatal(err)
		}
		spoil(&v)
		if err := v.check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkDhrystone(b *testing.B) {
	var v dhryVars
	v.init()
	for b.Loop() {
		v.loop(1)
	}
}
