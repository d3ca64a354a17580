package main

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"qmigrate/guest/wire"
)

// livermore runs McMahon's Livermore Fortran Kernels (F. H. McMahon, The Livermore Fortran Kernels: a computer test of
// the numerical performance range, UCRL-53745, 1986; version mf528), all 24, round and round. The data are the
// original's, by its generator SIGNEL and in the order of its COMMON blocks; so are the loops' lengths, the passes
// through each and the operations that a pass counts.
//
// Each kernel begins with the same data. When it has made its passes its checksum, as the original's TESTS makes it, is
// compared with a reference that livermore_reference_test.go computes with 200 bits instead of 53; then what it wrote
// is undone.
//
//	rate of kernel k, MFLOPS = flops of its passes / time in them / 10^6
//
// The means of the 24 rates are the benchmark's results; the geometric one is what the original calls the least biased.
type livermore struct {
	spoiled
	clock clock
	span  int // index into spans: long, medium, short
	d, at *lfk
	tests [24]kernel

	mu     sync.Mutex
	rounds uint64
	flops  [24]float64
	spent  [24]time.Duration
	worst  float64
}

// checksumTolerance is relative. Rounding moves none of the 72 checksums by more than 1.3e-15 (TestLivermoreReference,
// amd64). One wrong number among a thousand is found if it is off by a part in a million or so.
const checksumTolerance = 1e-12

func newLivermore(c clock, w wire.Workload) (*livermore, error) {
	l := &livermore{clock: c}
	for i, s := range spans {
		if s.name == w.Choice("span") {
			l.span = i
		}
	}
	l.d, l.at, l.tests = newLFK(l.span), newLFK(l.span), kernels()
	return l, nil
}

func (l *livermore) run(ctx context.Context, m *meter) error {
	for ctx.Err() == nil {
		for k := range l.tests {
			if ctx.Err() != nil {
				return nil
			}
			if l.spoilt() {
				l.d.y[3] *= 1 + 0x1p-10 // which kernel 1 reads
				l.at.y[3] = l.d.y[3]
			}
			flops, spent := l.pass(k)
			sum, want := l.tests[k].sum(l.d), livermoreSums[l.span][k]
			m.add(l.clock.now(), int(flops))
			off := math.Abs(sum-want) / math.Abs(want)
			if !(off <= checksumTolerance) {
				return fmt.Errorf("the result is wrong: checksum %.16g of kernel %d in round %d, want %.16g", sum, k+1, l.rounds+1,
					want)
			}
			l.undo(k)
			l.mu.Lock()
			l.flops[k] += flops
			l.spent[k] += spent
			l.worst = max(l.worst, off)
			l.mu.Unlock()
		}
		l.mu.Lock()
		l.rounds++
		l.mu.Unlock()
	}
	return nil
}

// pass runs the kernel's passes.
func (l *livermore) pass(k int) (flops float64, spent time.Duration) {
	t, d := &l.tests[k], l.d
	d.n = spans[l.span].length[k]
	if t.before != nil {
		t.before(d)
	}
	begin := l.clock.now()
	for range spans[l.span].passes[k] {
		t.pass(d)
	}
	spent = l.clock.now() - begin
	if t.flops == nil {
		return float64(2*d.k2 + 10*d.k3), spent // counted as it went
	}
	return float64(t.flops(d.n) * spans[l.span].passes[k]), spent
}

// undo gives what kernel k wrote its first values again.
func (l *livermore) undo(k int) {
	to, from := l.tests[k].wrote(l.d), l.tests[k].wrote(l.at)
	for i := range to {
		copy(to[i], from[i])
	}
	copy(l.d.scalars, l.at.scalars)
	l.d.k2, l.d.k3 = 0, 0
}

func (l *livermore) result() any {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := wire.Livermore{Rounds: l.rounds, WorstError: l.worst}
	sum, logs, inverse := 0.0, 0.0, 0.0
	for k, spent := range l.spent {
		if spent <= 0 {
			return r // the first round is not over
		}
		rate := l.flops[k] / spent.Seconds() / 1e6
		r.MFLOPS[k] = rate
		sum, logs, inverse = sum+rate, logs+math.Log(rate), inverse+1/rate
		r.Most = max(r.Most, rate)
		if r.Least == 0 || rate < r.Least {
			r.Least = rate
		}
	}
	r.Arithmetic, r.Geometric, r.Harmonic = sum/24, math.Exp(logs/24), 24/inverse
	return r
}

func (l *livermore) score() *wire.Score {
	if r := l.result().(wire.Livermore); r.Geometric > 0 {
		return &wire.Score{Value: r.Geometric, Unit: "MFLOPS"}
	}
	return nil
}

// spans are the original's three sets of loop lengths and passes (its subroutine SIZES), and the seed of its random
// integers.
var spans = [3]struct {
	name           string
	seed           float64
	length, passes [24]int
}{
	{"long", 256,
		[24]int{1001, 101, 1001, 1001, 1001, 64, 995, 100, 101, 101, 1001, 1000, 64, 1001, 101, 75, 101, 100, 101, 1000, 101,
			101, 100, 1001},
		[24]int{7, 67, 9, 14, 10, 3, 4, 10, 36, 34, 11, 12, 36, 2, 1, 25, 35, 2, 39, 1, 1, 11, 8, 5}},
	{"medium", 12491249,
		[24]int{101, 101, 101, 101, 101, 32, 101, 100, 101, 101, 101, 100, 32, 101, 101, 40, 101, 100, 101, 100, 50, 101, 100,
			101},
		[24]int{40, 40, 53, 70, 55, 7, 22, 6, 21, 19, 64, 68, 41, 10, 1, 27, 20, 1, 23, 8, 1, 7, 5, 31}},
	{"short", 1499352848,
		[24]int{27, 15, 27, 27, 27, 8, 21, 14, 15, 15, 27, 26, 8, 27, 15, 15, 15, 14, 15, 26, 20, 15, 14, 27},
		[24]int{28, 46, 37, 38, 40, 21, 20, 9, 26, 25, 46, 48, 31, 8, 1, 14, 26, 2, 28, 7, 1, 8, 7, 23}},
}

// lfk is the kernels' data. Fortran's arrays count from 1 and go by columns: P(4,512) is p[k][i] here, and its elements
// lie as there.
type lfk struct {
	n       int // length of the kernel's loop
	m       int // results of kernels 16 and 24, counted from 1
	j5      int
	k2, k3  int
	scalars []float64 // COMMON /SPACER/, by its names below

	a11, a12, a13, a21, a22, a23, a31, a32, a33, c0, dk, dm22, dm23, dm24, dm25, dm26, dm27, dm28, flx, q, r, s, sig,
	stb5, t, xnm *float64

	// COMMON /SPACE1/; xz and zx are x and z with what lies behind them, which kernels 4 and 1 read
	u, v, w, x, y, z, g, du1, du2, du3, grd, dex, xi, ex, ex1, dex1, vx, xx, rx, rh, vsp, vstp, vxne, vxnd, ve3, vlr,
	vlin, b5, plan, d, sa, sb, xz, zx []float64

	// COMMON /SPACE2/
	p                                              [][4]float64
	px, cx                                         [][25]float64
	vy                                             [][101]float64
	vh, vf, vg, vs, za, zp, zq, zr, zm, zb, zu, zv [][101]float64
	zz                                             [][101]float64
	b, c, h                                        [][64]float64
	u1, u2, u3                                     [][101][5]float64

	ix, ir, zone []int
	e, f         [96]int
}

// signel is the original's generator: numbers near 0.1 that come nearer and nearer to each other.
func signel(v []float64) {
	fuzz := 1.2345e-3
	buzz := 1 + fuzz
	fizz := 1.1 * fuzz
	scale := 1.0 / 10
	for i := range v {
		buzz = float64((1-fuzz)*buzz) + fuzz
		fuzz = -fuzz
		v[i] = (buzz - fizz) * scale
	}
}

// newLFK makes the data as the original's SUPPLY and VALUES do.
func newLFK(span int) *lfk {
	d := &lfk{scalars: make([]float64, 39), ix: make([]int, 1001), ir: make([]int, 1001), zone: make([]int, 300)}
	one, two := make([]float64, 19977), make([]float64, 34132)
	for _, v := range [][]float64{one, two, d.scalars} {
		signel(v)
	}
	for i, name := range []**float64{&d.a11, &d.a12, &d.a13, &d.a21, &d.a22, &d.a23, &d.a31, &d.a32, &d.a33, nil, nil,
		&d.c0, nil, nil, &d.dk, &d.dm22, &d.dm23, &d.dm24,
		&d.dm25, &d.dm26, &d.dm27, &d.dm28, nil, nil, nil, nil, &d.flx, &d.q, nil, &d.r, nil, &d.s, nil, &d.sig, &d.stb5,
		&d.t, nil, nil, &d.xnm} {
		if name != nil {
			*name = &d.scalars[i]
		}
	}
	rest := one
	for _, a := range []struct {
		to *[]float64
		n  int
	}{{&d.u, 1001}, {&d.v, 1001}, {&d.w, 1001}, {&d.x, 1001}, {&d.y, 1001}, {&d.z, 1001}, {&d.g, 1001}, {&d.du1,
		101}, {&d.du2, 101}, {&d.du3, 101}, {&d.grd, 1001},
		{&d.dex, 1001}, {&d.xi, 1001}, {&d.ex, 1001}, {&d.ex1, 1001}, {&d.dex1, 1001}, {&d.vx, 1001}, {&d.xx, 1001}, {&d.rx,
			1001}, {&d.rh, 2048}, {&d.vsp, 101},
		{&d.vstp, 101}, {&d.vxne, 101}, {&d.vxnd, 101}, {&d.ve3, 101}, {&d.vlr, 101}, {&d.vlin, 101}, {&d.b5, 101}, {&d.plan,
			300}, {&d.d, 300}, {&d.sa, 101}, {&d.sb, 101}} {
		if a.to == &d.x {
			d.xz = rest[:1500]
		}
		if a.to == &d.z {
			d.zx = rest[:1023]
		}
		*a.to, rest = rest[:a.n], rest[a.n:]
		if a.to == &d.rh {
			d.rh = d.rh[:2049] // kernel 14 may reach vsp's first
		}
	}
	rest = two
	d.p = rows[[4]float64](&rest, 512)
	d.px, d.cx = rows[[25]float64](&rest, 101), rows[[25]float64](&rest, 101)
	d.vy = rows[[101]float64](&rest, 25)
	for _, a := range []*[][101]float64{&d.vh, &d.vf, &d.vg, &d.vs, &d.za, &d.zp, &d.zq, &d.zr, &d.zm, &d.zb, &d.zu, &d.zv,
		&d.zz} {
		*a = rows[[101]float64](&rest, 7)
	}
	for _, a := range []*[][64]float64{&d.b, &d.c, &d.h} {
		*a = rows[[64]float64](&rest, 64)
	}
	for _, a := range []*[][101][5]float64{&d.u1, &d.u2, &d.u3} {
		*a = rows[[101][5]float64](&rest, 2)
	}

	ds := 1.0
	for j := range 4 {
		for k := range 512 {
			d.p[k][j] = ds
			ds += 0.5
		}
	}
	for i := range d.e {
		d.e[i], d.f[i] = 1, 1
	}
	d.random(spans[span].seed)
	for i := range d.dex {
		d.dex[i] *= -100
		d.grd[i] = float64(d.ix[i])
	}
	*d.flx = 0.001

	n := spans[span].length[15]
	d.d[0] = 1.01980486428764
	for i := 1; i < 300; i++ {
		d.d[i] = d.d[i-1] + 1e-4/d.d[i-1]
	}
	m := 0
	for range 2 * 2 {
		for k := 1; k <= n; k++ {
			d.plan[m] = d.d[n-1] * ((float64(k) + 1) / float64(k))
			d.zone[m] = k + k
			m++
		}
	}
	d.zone[2*n] = n
	return d
}

// random fills ix with the original's random integers of 1 to 1001 (IQRANF): Park and Miller's minimal generator.
func (d *lfk) random(seed float64) {
	const span, per = 1000, 2147483647
	for i := range d.ix {
		p := seed * 16807
		seed = p - math.Floor(p/per)*per
		d.ix[i] = 1 + int(seed*span/per)
	}
}
