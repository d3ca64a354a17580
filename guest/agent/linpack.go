package main

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"qmigrate/guest/wire"
)

// linpack is Dongarra's Linpack benchmark: A x = b with a dense A of order n, solved by LU factorisation with partial
// pivoting, by columns and with axpy steps, as DGEFA and DGESL are made, over and over. A comes from the original's
// generator and is the same each time; b are its row sums, so that all x are 1.
//
//	MFLOPS = (2/3 n^3 + 2 n^2) / t / 10^6     t  time of the factorisation and the solution, s; the making of A and the check are not in it
//
// Each solution is checked by the original's normalised residual
//
//	r = max |A x - b| / (n max |a_ij| max |x_i| eps)          eps = 2^-52
//
// which is of order 1 when the arithmetic was right.
type linpack struct {
	spoiled
	clock clock
	n     int
	a     []float64 // by columns: a[j*n+i] is row i, column j
	b     []float64
	pivot []int

	mu     sync.Mutex
	solves uint64
	spent  time.Duration
	best   time.Duration
	worst  float64
}

// residualLimit is what HPL takes as its threshold too: rounding alone stays far below, and one wrong bit in a leading
// digit is far above.
const residualLimit = 16

func newLinpack(c clock, n int) *linpack {
	return &linpack{clock: c, n: n, a: make([]float64, n*n), b: make([]float64, n), pivot: make([]int, n)}
}

// flops of one solution, as they are counted.
func (l *linpack) flops() float64 {
	n := float64(l.n)
	return 2.0/3*n*n*n + 2*n*n
}

func (l *linpack) run(ctx context.Context, m *meter) error {
	for ctx.Err() == nil {
		norm := l.generate()
		total, credited := l.flops(), 0
		begin := l.clock.now()
		singular := l.factor(func(left int) bool {
			// The work that is done by when left of n columns are left: all but left^3 of n^3.
			f := float64(left) / float64(l.n)
			if done := int(total * (1 - f*f*f)); done-credited >= linpackStep {
				m.add(l.clock.now(), done-credited)
				credited = done
			}
			return ctx.Err() == nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if singular >= 0 {
			return fmt.Errorf("the result is wrong: no pivot in column %d of a matrix that has one", singular)
		}
		if l.spoilt() {
			l.a[0] *= 1 + 0x1p-20
		}
		l.solve()
		end := l.clock.now()
		m.add(end, int(total)-credited)
		r := l.residual(norm)
		if !(r <= residualLimit) { // NaN is wrong too
			return fmt.Errorf("the result is wrong: normalised residual %.3g of solution %d, at most %d is right", r, l.solves+1,
				residualLimit)
		}
		l.mu.Lock()
		l.solves++
		l.spent += end - begin
		l.worst = max(l.worst, r)
		if l.best == 0 || end-begin < l.best {
			l.best = end - begin
		}
		l.mu.Unlock()
	}
	return nil
}

// linpackStep is how many operations are done between two looks at the clock: about 1 ms of them under TCG.
const linpackStep = 50_000

func (l *linpack) result() any {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := wire.Linpack{N: l.n, Solves: l.solves, WorstResidual: l.worst}
	if l.solves > 0 && l.best > 0 {
		r.MFLOPS = l.flops() * float64(l.solves) / l.spent.Seconds() / 1e6
		r.Best = l.flops() / l.best.Seconds() / 1e6
	}
	return r
}

func (l *linpack) score() *wire.Score {
	if r := l.result().(wire.Linpack); r.MFLOPS > 0 {
		return &wire.Score{Value: r.MFLOPS, Unit: "MFLOPS"}
	}
	return nil
}

// generate makes A and b, and returns A's largest element, by the original's generator: s <- 3125 s mod 65536 from
// 1325, element (s - 32768) / 16384. Its period is 16384: for some orders, such as 512, columns would repeat and A be
// singular; for 100 and 1000 they do not.
func (l *linpack) generate() (norm float64) {
	clear(l.b)
	s := 1325
	for j := range l.n {
		column := l.a[j*l.n : (j+1)*l.n]
		for i := range column {
			s = 3125 * s % 65536
			x := float64(s-32768) / 16384
			column[i] = x
			norm = max(norm, x)
			l.b[i] += x
		}
	}
	return norm
}

// factor makes L and U in place of A, and asks before each column whether to go on; singular is the column that has no
// pivot, or -1.
func (l *linpack) factor(next func(left int) bool) (singular int) {
	n, singular := l.n, -1
	for k := 0; k < n-1; k++ {
		if !next(n - k) {
			return singular
		}
		column := l.a[k*n : (k+1)*n]
		p := k
		for i := k + 1; i < n; i++ {
			if math.Abs(column[i]) > math.Abs(column[p]) {
				p = i
			}
		}
		l.pivot[k] = p
		if column[p] == 0 {
			singular = k
			continue
		}
		column[p], column[k] = column[k], column[p]
		t := -1 / column[k]
		for i := k + 1; i < n; i++ {
			column[i] *= t
		}
		for j := k + 1; j < n; j++ {
			other := l.a[j*n : (j+1)*n]
			t := other[p]
			other[p], other[k] = other[k], t
			axpy(t, column[k+1:], other[k+1:])
		}
	}
	l.pivot[n-1] = n - 1
	if l.a[n*n-1] == 0 {
		singular = n - 1
	}
	return singular
}

// solve puts x in place of b: forward through L, back through U.
func (l *linpack) solve() {
	n := l.n
	for k := 0; k < n-1; k++ {
		p := l.pivot[k]
		t := l.b[p]
		l.b[p], l.b[k] = l.b[k], t
		axpy(t, l.a[k*n+k+1:(k+1)*n], l.b[k+1:])
	}
	for k := n - 1; k >= 0; k-- {
		l.b[k] /= l.a[k*n+k]
		axpy(-l.b[k], l.a[k*n:k*n+k], l.b[:k])
	}
}

// axpy is y <- t x + y.
func axpy(t float64, x, y []float64) {
	if t == 0 {
		return
	}
	y = y[:len(x)]
	for i, v := range x {
		y[i] += t * v
	}
}

// residual is the normalised residual of the x that stands in b; A is made anew for it.
func (l *linpack) residual(norm float64) float64 {
	x := append([]float64(nil), l.b...)
	l.generate() // A and b again
	most := 0.0
	for _, v := range x {
		most = max(most, math.Abs(v))
	}
	for j := range l.n {
		axpy(-x[j], l.a[j*l.n:(j+1)*l.n], l.b)
	}
	worst := 0.0
	for _, v := range l.b {
		if worst = max(worst, math.Abs(v)); math.IsNaN(v) {
			return v
		}
	}
	return worst / (float64(l.n) * norm * most * 0x1p-52)
}
