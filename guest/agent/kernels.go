package main

import (
	"math"
	"unsafe"
)

// kernel is one of the 24.
type kernel struct {
	before func(*lfk) // what is done once, outside of the measured time; nil: nothing
	pass   func(*lfk) // one pass
	// of a pass, as the original counts them: + - * 1, / and sqrt 4, exp 8, a comparison 1; nil: as in kernel 16
	flops func(n int) int
	sum   func(*lfk) float64     // the checksum
	wrote func(*lfk) [][]float64 // the arrays that the kernel alters
}

// rows takes n rows from the front of a slab, without a copy.
func rows[R any](slab *[]float64, n int) []R {
	size := n * int(unsafe.Sizeof(*new(R))/8)
	r := unsafe.Slice((*R)(unsafe.Pointer(&(*slab)[0])), n)
	*slab = (*slab)[size:]
	return r
}

// flat is a table as the slab that it was cut from.
func flat[R any](r []R) []float64 {
	return unsafe.Slice((*float64)(unsafe.Pointer(&r[0])), len(r)*int(unsafe.Sizeof(r[0])/8))
}

// sumo is the original's checksum, each number times its place.
func sumo(v []float64) (s float64) {
	for i, x := range v {
		s += float64(i+1) * x
	}
	return s
}

// kernels are the 24, in their order. The bodies follow the Fortran line by line; arrays count from 0.
func kernels() [24]kernel {
	x := func(d *lfk) [][]float64 { return [][]float64{d.x} }
	return [24]kernel{
		{pass: kernel1, wrote: x, flops: func(n int) int { return 5 * n },
			sum: func(d *lfk) float64 { return sumo(d.x[:d.n]) }},
		{pass: kernel2, wrote: x, flops: func(n int) int { return 4 * (n - 4) },
			sum: func(d *lfk) float64 { return sumo(d.x[:2*d.n]) }},
		{pass: kernel3, wrote: func(*lfk) [][]float64 { return nil }, flops: func(n int) int { return 2 * n },
			sum: func(d *lfk) float64 { return *d.q }},
		{pass: kernel4, wrote: x, flops: func(n int) int { return 2 * ((n-5)/5 + 1) * 3 },
			sum: func(d *lfk) float64 { return sumo([]float64{d.x[5], d.x[502], d.x[999]}) }},
		{pass: kernel5, wrote: x, flops: func(n int) int { return 2 * (n - 1) },
			sum: func(d *lfk) float64 { return sumo(d.x[1:d.n]) }},
		{pass: kernel6, wrote: func(d *lfk) [][]float64 { return [][]float64{d.w} },
			flops: func(n int) int { return 2 * n * ((n - 1) / 2) }, sum: func(d *lfk) float64 { return sumo(d.w[:d.n]) }},
		{pass: kernel7, wrote: x, flops: func(n int) int { return 16 * n },
			sum: func(d *lfk) float64 { return sumo(d.x[:d.n]) }},
		{pass: kernel8, flops: func(n int) int { return 36 * 2 * (n - 1) },
			wrote: func(d *lfk) [][]float64 { return [][]float64{flat(d.u1), flat(d.u2), flat(d.u3), d.du1, d.du2, d.du3} },
			sum: func(d *lfk) float64 {
				return sumo(flat(d.u1)[:10*d.n]) + sumo(flat(d.u2)[:10*d.n]) + sumo(flat(d.u3)[:10*d.n])
			}},
		{pass: kernel9, wrote: wrotePX, flops: func(n int) int { return 17 * n },
			sum: func(d *lfk) float64 { return sumo(flat(d.px)[:15*d.n]) }},
		{pass: kernel10, wrote: wrotePX, flops: func(n int) int { return 9 * n },
			sum: func(d *lfk) float64 { return sumo(flat(d.px)[:15*d.n]) }},
		{pass: kernel11, wrote: x, flops: func(n int) int { return n - 1 },
			sum: func(d *lfk) float64 { return sumo(d.x[1:d.n]) }},
		{pass: kernel12, wrote: x, flops: func(n int) int { return n },
			sum: func(d *lfk) float64 { return sumo(d.x[:d.n-1]) }},
		{pass: kernel13, wrote: func(d *lfk) [][]float64 { return [][]float64{flat(d.p), flat(d.h)} },
			flops: func(n int) int { return 7 * n },
			sum:   func(d *lfk) float64 { return sumo(flat(d.p)[:8*d.n]) + sumo(flat(d.h)[:8*d.n]) }},
		{pass: kernel14, wrote: func(d *lfk) [][]float64 { return [][]float64{d.vx, d.xx, d.xi, d.ex1, d.dex1, d.rx, d.rh} },
			flops: func(n int) int { return 11 * n },
			sum:   func(d *lfk) float64 { return sumo(d.vx[:d.n]) + sumo(d.xx[:d.n]) + sumo(d.rh[:67]) }},
		{pass: kernel15, wrote: func(d *lfk) [][]float64 { return [][]float64{flat(d.vy), flat(d.vs)} },
			flops: func(n int) int { return 33 * (n - 1) * 5 },
			sum:   func(d *lfk) float64 { return sumo(flat(d.vy)[:7*d.n]) + sumo(flat(d.vs)[:7*d.n]) }},
		{pass: kernel16, wrote: func(*lfk) [][]float64 { return nil },
			before: func(d *lfk) { *d.r, *d.s, *d.t = d.d[d.n-1], d.d[d.n-2], d.d[d.n-3] },
			sum:    func(d *lfk) float64 { return float64(d.k3 + d.k2 + d.j5 + d.m) }},
		{pass: kernel17, wrote: func(d *lfk) [][]float64 { return [][]float64{d.vxne, d.vxnd, d.ve3} },
			flops: func(n int) int { return 9 * n },
			sum:   func(d *lfk) float64 { return sumo(d.vxne[:d.n]) + sumo(d.vxnd[:d.n]) + *d.xnm }},
		{pass: kernel18, flops: func(n int) int { return 44 * (n - 1) * 5 },
			wrote: func(d *lfk) [][]float64 {
				return [][]float64{flat(d.za), flat(d.zb), flat(d.zu), flat(d.zv), flat(d.zr), flat(d.zz)}
			},
			sum: func(d *lfk) float64 { return sumo(flat(d.zr)[:7*d.n]) + sumo(flat(d.zz)[:7*d.n]) }},
		{pass: kernel19, wrote: func(d *lfk) [][]float64 { return [][]float64{d.b5} },
			flops: func(n int) int { return 6 * n }, sum: func(d *lfk) float64 { return sumo(d.b5[:d.n]) + *d.stb5 }},
		{pass: kernel20, wrote: func(d *lfk) [][]float64 { return [][]float64{d.x, d.xx} },
			flops: func(n int) int { return 26 * n }, sum: func(d *lfk) float64 { return sumo(d.xx[1 : d.n+1]) }},
		{pass: kernel21, wrote: wrotePX, flops: func(n int) int { return 2 * 25 * 25 * n },
			sum: func(d *lfk) float64 { return sumo(flat(d.px)[:25*d.n]) }},
		{pass: kernel22, wrote: func(d *lfk) [][]float64 { return [][]float64{d.u, d.y, d.w} },
			flops:  func(n int) int { return 17 * n },
			before: func(d *lfk) { d.u[d.n-1] = 0.99 * 20 * d.v[d.n-1] }, sum: func(d *lfk) float64 { return sumo(d.w[:d.n]) }},
		{pass: kernel23, wrote: func(d *lfk) [][]float64 { return [][]float64{flat(d.za)} },
			flops: func(n int) int { return 11 * (n - 1) * 5 }, sum: func(d *lfk) float64 { return sumo(flat(d.za)[:7*d.n]) }},
		{pass: kernel24, wrote: x, flops: func(n int) int { return n - 1 }, before: func(d *lfk) { d.x[d.n/2-1] = -1e10 },
			sum: func(d *lfk) float64 { return float64(d.m) }},
	}
}

func wrotePX(d *lfk) [][]float64 { return [][]float64{flat(d.px)} }

// Kernel 1: hydrodynamics fragment.
func kernel1(d *lfk) {
	x, y, z, q, r, t := d.x, d.y, d.zx, *d.q, *d.r, *d.t
	for k := range d.n {
		x[k] = q + y[k]*(r*z[k+10]+t*z[k+11])
	}
}

// Kernel 2: incomplete Cholesky, conjugate gradient.
func kernel2(d *lfk) {
	x, v := d.x, d.v
	for from, left := 0, d.n; left > 1 || from == 0; {
		to := from + left
		left /= 2
		i := to
		for k := from + 1; k < to; k += 2 {
			i++
			x[i] = x[k] - v[k]*x[k-1] - v[k+1]*x[k+1]
		}
		from = to
	}
}

// Kernel 3: inner product.
func kernel3(d *lfk) {
	q := 0.0
	x := d.x
	for k, z := range d.z[:d.n] {
		q += z * x[k]
	}
	*d.q = q
}

// Kernel 4: banded linear equations.
func kernel4(d *lfk) {
	xz, y := d.xz, d.y
	for k := 6; k < 1001; k += (1001 - 7) / 2 {
		lw := k - 6
		temp := xz[k-1]
		for j := 4; j < d.n; j += 5 {
			temp -= xz[lw] * y[j]
			lw++
		}
		xz[k-1] = y[4] * temp
	}
}

// Kernel 5: tri-diagonal elimination below the diagonal.
func kernel5(d *lfk) {
	x, y, z := d.x, d.y, d.z
	for i := 1; i < d.n; i++ {
		x[i] = z[i] * (y[i] - x[i-1])
	}
}

// Kernel 6: general linear recurrence equations.
func kernel6(d *lfk) {
	w, b := d.w, d.b
	for i := 1; i < d.n; i++ {
		w[i] = 0.01
		for k := range i {
			w[i] += b[k][i] * w[i-k-1]
		}
	}
}

// Kernel 7: equation of state fragment.
func kernel7(d *lfk) {
	x, y, z, u, q, r, t := d.x, d.y, d.z, d.u, *d.q, *d.r, *d.t
	for k := range d.n {
		x[k] = u[k] + r*(z[k]+r*y[k]) + t*(u[k+3]+r*(u[k+2]+r*u[k+1])+t*(u[k+6]+q*(u[k+5]+q*u[k+4])))
	}
}

// Kernel 8: alternating direction implicit integration.
func kernel8(d *lfk) {
	u1, u2, u3, sig := d.u1, d.u2, d.u3, *d.sig
	a11, a12, a13, a21, a22, a23, a31, a32, a33 := *d.a11, *d.a12, *d.a13, *d.a21, *d.a22, *d.a23, *d.a31, *d.a32, *d.a33
	for x := 1; x < 3; x++ {
		for y := 1; y < d.n; y++ {
			du1 := u1[0][y+1][x] - u1[0][y-1][x]
			du2 := u2[0][y+1][x] - u2[0][y-1][x]
			du3 := u3[0][y+1][x] - u3[0][y-1][x]
			d.du1[y], d.du2[y], d.du3[y] = du1, du2, du3
			u1[1][y][x] = u1[0][y][x] + a11*du1 + a12*du2 + a13*du3 + sig*(u1[0][y][x+1]-2*u1[0][y][x]+u1[0][y][x-1])
			u2[1][y][x] = u2[0][y][x] + a21*du1 + a22*du2 + a23*du3 + sig*(u2[0][y][x+1]-2*u2[0][y][x]+u2[0][y][x-1])
			u3[1][y][x] = u3[0][y][x] + a31*du1 + a32*du2 + a33*du3 + sig*(u3[0][y][x+1]-2*u3[0][y][x]+u3[0][y][x-1])
		}
	}
}

// Kernel 9: integrate predictors.
func kernel9(d *lfk) {
	c0, m22, m23, m24, m25, m26, m27, m28 := *d.c0, *d.dm22, *d.dm23, *d.dm24, *d.dm25, *d.dm26, *d.dm27, *d.dm28
	for k := range d.n {
		p := &d.px[k]
		p[0] = m28*p[12] + m27*p[11] + m26*p[10] + m25*p[9] + m24*p[8] + m23*p[7] + m22*p[6] + c0*(p[4]+p[5]) + p[2]
	}
}

// Kernel 10: difference predictors.
func kernel10(d *lfk) {
	for k := range d.n {
		p, a := &d.px[k], d.cx[k][4]
		for i := 4; i < 13; i++ { // the original is written out
			a, p[i] = a-p[i], a
		}
		p[13] = a
	}
}

// Kernel 11: first sum.
func kernel11(d *lfk) {
	x, y := d.x, d.y
	x[0] = y[0]
	for k := 1; k < d.n; k++ {
		x[k] = x[k-1] + y[k]
	}
}

// Kernel 12: first difference.
func kernel12(d *lfk) {
	x, y := d.x, d.y
	for k := range d.n {
		x[k] = y[k+1] - y[k]
	}
}

// Kernel 13: two-dimensional particles in a cell.
func kernel13(d *lfk) {
	for k := range d.n {
		p := &d.p[k]
		i1, j1 := int(p[0])&63, int(p[1])&63
		p[2] += d.b[j1][i1]
		p[3] += d.c[j1][i1]
		p[0] += p[2]
		p[1] += p[3]
		i2, j2 := int(p[0])&63, int(p[1])&63
		p[0] += d.y[i2+31]
		p[1] += d.z[j2+31]
		i2 += d.e[i2+31]
		j2 += d.f[j2+31]
		d.h[j2-1][i2-1]++
	}
}

// Kernel 14: one-dimensional particles in a cell.
func kernel14(d *lfk) {
	vx, xx, xi, ex1, dex1, rx, rh, flx := d.vx, d.xx, d.xi, d.ex1, d.dex1, d.rx, d.rh, *d.flx
	for k := range d.n {
		vx[k], xx[k] = 0, 0
		d.ix[k] = int(d.grd[k])
		xi[k] = float64(d.ix[k])
		ex1[k] = d.ex[d.ix[k]-1]
		dex1[k] = d.dex[d.ix[k]-1]
	}
	for k := range d.n {
		vx[k] = vx[k] + ex1[k] + (xx[k]-xi[k])*dex1[k]
		xx[k] = xx[k] + vx[k] + flx
		i := int(xx[k])
		rx[k] = xx[k] - float64(i)
		d.ir[k] = i&2047 + 1
		xx[k] = rx[k] + float64(d.ir[k])
	}
	for k := range d.n {
		rh[d.ir[k]-1] += 1 - rx[k]
		rh[d.ir[k]] += rx[k]
	}
}

// Kernel 15: casual Fortran.
func kernel15(d *lfk) {
	const ng, ar, br = 7, 0.053, 0.073
	vy, vh, vf, vg, vs, nz := d.vy, d.vh, d.vf, d.vg, d.vs, d.n
	for j := 1; j < ng; j++ {
		for k := 1; k < nz; k++ {
			if j >= ng-1 {
				vy[j][k] = 0
				continue
			}
			t := br
			if vh[j+1][k] > vh[j][k] {
				t = ar
			}
			r, s := max(vh[j][k], vh[j+1][k]), vf[j][k]
			if vf[j][k] < vf[j][k-1] {
				r, s = max(vh[j][k-1], vh[j+1][k-1]), vf[j][k-1]
			}
			vy[j][k] = math.Sqrt(vg[j][k]*vg[j][k]+r*r) * t / s
			if k >= nz-1 {
				vs[j][k] = 0
				continue
			}
			if vf[j][k] < vf[j-1][k] {
				r, s, t = max(vg[j-1][k], vg[j-1][k+1]), vf[j-1][k], br
			} else {
				r, s, t = max(vg[j][k], vg[j][k+1]), vf[j][k], ar
			}
			vs[j][k] = math.Sqrt(vh[j][k]*vh[j][k]+r*r) * t / s
		}
	}
}

// Kernel 16: Monte Carlo search loop.
func kernel16(d *lfk) {
	n, zone, plan, v, r, s, t := d.n, d.zone, d.plan, d.d, *d.r, *d.s, *d.t
	third := n / 3
	for first, m := 1, 1; ; {
		j2 := 2*n*(m-1) + 1
		again := false
		for k := 1; k <= n; k++ {
			d.k2++
			j4 := j2 + 2*k
			j5 := zone[j4-1]
			d.j5 = j5
			var x float64
			switch {
			case j5 < n-2*third:
				x = plan[j5-1] - t
			case j5 < n-third:
				x = plan[j5-1] - s
			case j5 < n:
				x = plan[j5-1] - r
			case j5 > n:
				d.k3++
				x = v[j5-1] - (v[j5-2]*((t-v[j5-3])*(t-v[j5-3])) + (s-v[j5-4])*(s-v[j5-4]) + (r-v[j5-5])*(r-v[j5-5]))
			}
			way := zone[j4-2]
			if x < 0 {
				way = -way
			}
			if j5 == n || x == 0 || way == 0 {
				break
			}
			if way > 0 {
				continue
			}
			if m++; m > zone[0] {
				m = 1
			}
			again = m != first
			break
		}
		d.m = m
		if !again {
			return
		}
	}
}

// Kernel 17: implicit, conditional computation.
func kernel17(d *lfk) {
	const scale = 5.0 / 3
	xnm, e6 := 1.0/3, 1.03/3.07
	for k := d.n - 1; k > 0; k-- {
		e3 := xnm*d.vlr[k] + d.vlin[k]
		xnei := d.vxne[k]
		d.vxnd[k] = e6
		if xnc := scale * e3; xnm > xnc || xnei > xnc {
			e6 = xnm*d.vsp[k] + d.vstp[k]
			d.vxne[k] = e6
			d.ve3[k] = e6
		} else {
			d.ve3[k] = e3
			e6 = e3 + e3 - xnm
			d.vxne[k] = e3 + e3 - xnei
		}
		xnm = e6
	}
	*d.xnm = xnm
}

// Kernel 18: two-dimensional explicit hydrodynamics fragment.
func kernel18(d *lfk) {
	const t, s = 0.0037, 0.0041
	za, zp, zq, zr, zm, zb, zu, zv, zz := d.za, d.zp, d.zq, d.zr, d.zm, d.zb, d.zu, d.zv, d.zz
	for k := 1; k < 6; k++ {
		for j := 1; j < d.n; j++ {
			za[k][j] = (zp[k+1][j-1] + zq[k+1][j-1] - zp[k][j-1] - zq[k][j-1]) * (zr[k][j] + zr[k][j-1]) / (zm[k][j-1] +
				zm[k+1][j-1])
			zb[k][j] = (zp[k][j-1] + zq[k][j-1] - zp[k][j] - zq[k][j]) * (zr[k][j] + zr[k-1][j]) / (zm[k][j] + zm[k][j-1])
		}
	}
	for k := 1; k < 6; k++ {
		for j := 1; j < d.n; j++ {
			zu[k][j] += s * (za[k][j]*(zz[k][j]-zz[k][j+1]) - za[k][j-1]*(zz[k][j]-zz[k][j-1]) -
				zb[k][j]*(zz[k][j]-zz[k-1][j]) + zb[k+1][j]*(zz[k][j]-zz[k+1][j]))
			zv[k][j] += s * (za[k][j]*(zr[k][j]-zr[k][j+1]) - za[k][j-1]*(zr[k][j]-zr[k][j-1]) -
				zb[k][j]*(zr[k][j]-zr[k-1][j]) + zb[k+1][j]*(zr[k][j]-zr[k+1][j]))
		}
	}
	for k := 1; k < 6; k++ {
		for j := 1; j < d.n; j++ {
			zr[k][j] += t * zu[k][j]
			zz[k][j] += t * zv[k][j]
		}
	}
}

// Kernel 19: general linear recurrence equations.
func kernel19(d *lfk) {
	b5, sa, sb, stb5 := d.b5, d.sa, d.sb, *d.stb5
	for k := range d.n {
		b5[k] = sa[k] + stb5*sb[k]
		stb5 = b5[k] - stb5
	}
	for k := d.n - 1; k >= 0; k-- {
		b5[k] = sa[k] + stb5*sb[k]
		stb5 = b5[k] - stb5
	}
	*d.stb5 = stb5
}

// Kernel 20: discrete ordinates transport.
func kernel20(d *lfk) {
	x, y, z, u, v, w, g, xx, vx, dk, s, t := d.x, d.y, d.z, d.u, d.v, d.w, d.g, d.xx, d.vx, *d.dk, *d.s, *d.t
	for k := range d.n {
		di := y[k] - g[k]/(xx[k]+dk)
		dn := 0.2
		if di != 0 {
			dn = max(s, min(z[k]/di, t))
		}
		x[k] = ((w[k]+v[k]*dn)*xx[k] + u[k]) / (vx[k] + v[k]*dn)
		xx[k+1] = (x[k]-xx[k])*dn + xx[k]
	}
}

// Kernel 21: matrix product.
func kernel21(d *lfk) {
	px, vy, cx := d.px, d.vy, d.cx
	for k := range 25 {
		for i := range 25 {
			for j := range d.n {
				px[j][i] += vy[k][i] * cx[j][k]
			}
		}
	}
}

// Kernel 22: Planckian distribution.
func kernel22(d *lfk) {
	x, y, u, v, w := d.x, d.y, d.u, d.v, d.w
	for k := range d.n {
		y[k] = u[k] / v[k]
		w[k] = x[k] / (math.Exp(y[k]) - 1)
	}
}

// Kernel 23: two-dimensional implicit hydrodynamics fragment.
func kernel23(d *lfk) {
	za, zr, zb, zu, zv, zz := d.za, d.zr, d.zb, d.zu, d.zv, d.zz
	for j := 1; j < 6; j++ {
		for k := 1; k < d.n; k++ {
			qa := za[j+1][k]*zr[j][k] + za[j-1][k]*zb[j][k] + za[j][k+1]*zu[j][k] + za[j][k-1]*zv[j][k] + zz[j][k]
			za[j][k] += 0.175 * (qa - za[j][k])
		}
	}
}

// Kernel 24: location of the first minimum.
func kernel24(d *lfk) {
	x, m := d.x, 0
	for k := 1; k < d.n; k++ {
		if x[k] < x[m] {
			m = k
		}
	}
	d.m = m + 1
}
