package stats

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// Reference values come from R 4.2.2 (Debian 12, r-base-core) and its package coin 1.4.2; the calls stand beside them. Data without another source are
// from R's own examples.

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if !(math.Abs(got-want) <= within*max(1, math.Abs(want))) {
		t.Errorf("%s is %.15g, want %.15g", what, got, want)
	}
}

// hollander is ?wilcox.test's first example: permeability constants, Hollander and Wolfe (1973), page 69f.
func hollander() (x, y []float64) {
	return []float64{0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46}, []float64{1.15, 0.88, 0.90, 0.74, 1.21}
}

// ozone is na.omit(airquality$Ozone) of May and of August, ?wilcox.test's last example: it has ties.
func ozone() (may, august []float64) {
	return []float64{41, 36, 12, 18, 28, 23, 19, 8, 7, 16, 11, 14, 18, 14, 34, 6, 30, 11, 1, 11, 4, 32, 23, 45, 115, 37},
		[]float64{39, 9, 16, 78, 35, 66, 122, 89, 110, 44, 28, 65, 22, 59, 23, 31, 44, 21, 9, 45, 168, 73, 76, 118, 84, 85}
}

// large is set.seed(1); x <- round(rnorm(60),6); y <- round(rnorm(70,0.4),6): no ties, and more than is counted out.
func large() (x, y []float64) {
	return []float64{-0.626454, 0.183643, -0.835629, 1.595281, 0.329508, -0.820468, 0.487429, 0.738325, 0.575781, -0.305388, 1.511781, 0.389843, -0.621241,
			-2.2147, 1.124931, -0.044934, -0.01619, 0.943836, 0.821221, 0.593901, 0.918977, 0.782136, 0.074565, -1.989352, 0.619826, -0.056129, -0.155796,
			-1.470752, -0.47815, 0.417942, 1.35868, -0.102788, 0.387672, -0.053805, -1.37706, -0.414995, -0.39429, -0.059313, 1.100025, 0.763176, -0.164524,
			-0.253362, 0.696963, 0.556663, -0.688756, -0.707495, 0.364582, 0.768533, -0.112346, 0.881108, 0.398106, -0.612026, 0.34112, -1.129363, 1.433024,
			1.9804, -0.367221, -1.044135, 0.56972, -0.135055},
		[]float64{2.801618, 0.36076, 1.089739, 0.428002, -0.343273, 0.588792, -1.404959, 1.865555, 0.553253, 2.572612, 0.87551, -0.309946, 1.010726, -0.534098,
			-0.853633, 0.691446, -0.043292, 0.401105, 0.474341, -0.189521, -0.168669, 0.264821, 1.578087, -1.123567, 0.993946, 0.73295, 1.4631, 0.095816,
			0.770019, 0.667099, -0.14252, 1.607868, 1.560403, 1.100214, 1.986833, 0.958486, -0.876592, -0.173265, -0.824613, -0.073401, -0.220367, 0.442116,
			-0.510922, 0.558029, -0.254585, 2.167287, 1.116707, 1.310174, 0.784185, 2.082176, -0.235736, -0.061645, 1.832282, -0.250696, 0.192619, 0.007192,
			0.080007, 0.120887, 0.894188, 0.22267, -0.105957, 1.743039, 0.185421, 0.220443, 0.299809, 1.112666, 0.326436, 0.362366, -0.28166, 0.07573}
}

func TestMannWhitney(t *testing.T) {
	x, y := hollander()
	may, august := ozone()
	lx, ly := large()
	for _, c := range []struct {
		name   string
		a, b   []float64
		u, p   float64
		method string
	}{
		{"wilcox.test(x, y)", y, x, 35, 0.254412254412254, Exact},
		{"wilcox.test(y, x)", x, y, 15, 0.254412254412254, Exact},
		{"coin: wilcox_test(Ozone ~ Month, distribution = \"exact\"), ties", may, august, 548.5, 6.10873518880372e-05, Exact},
		{"coin: {1,1,1,2}, {3}", []float64{1, 1, 1, 2}, []float64{3}, 4, 0.2, Exact},
		{"coin: {3}, {1,1,1,2}", []float64{3}, []float64{1, 1, 1, 2}, 0, 0.2, Exact},
		{"coin: {1,1,1,2,2}, {2,3,4}", []float64{1, 1, 1, 2, 2}, []float64{2, 3, 4}, 14, 0.0714285714285714, Exact},
		{"coin: {1,2,2,2,5,5,7}, {2,5,7,7,9}", []float64{1, 2, 2, 2, 5, 5, 7}, []float64{2, 5, 7, 7, 9}, 27.5, 0.132575757575758, Exact},
		{"coin: {1,1,1,5}, {2,4,2}", []float64{1, 1, 1, 5}, []float64{2, 4, 2}, 9, 0.4, Exact},
		{"wilcox.test(y, x, exact = FALSE)", lx, ly, 2530, 0.044874696487171, Normal},
		{"three and three apart: 2 / choose(6, 3)", []float64{1, 2, 3}, []float64{4, 5, 6}, 9, 0.1, Exact},
		{"all the same", []float64{1, 1}, []float64{1, 1, 1}, 3, 1, Equal},
		{"none", nil, []float64{1}, 0, 1, Equal},
		{"one each", []float64{1}, []float64{2}, 1, 1, Exact},
	} {
		got := MannWhitney(c.a, c.b)
		if got.Method != c.method || got.Statistic != c.u {
			t.Errorf("%s: %+v, want U %v, %s", c.name, got, c.u, c.method)
		}
		near(t, c.name, got.P, c.p, 1e-12)
	}
	// wilcox.test(august, may, exact = FALSE): the approximation with ties, beside what both groups four times over give
	four := func(v []float64) []float64 { return slices.Repeat(v, 4) }
	if got := MannWhitney(four(may), four(august)); got.Method != Normal || got.Statistic != 16*548.5 {
		t.Errorf("%+v", got)
	}
	approximate := func(a, b []float64) float64 { // the formula of docs/statistics.md
		_, sum, ties := doubledRanks(a, b)
		m, n := float64(len(a)), float64(len(b))
		u := (float64(sum) - n*(n+1)) / 2
		sd := math.Sqrt(m * n / 12 * (m + n + 1 - ties/((m+n)*(m+n-1))))
		return math.Erfc((math.Abs(u-m*n/2) - 0.5) / sd / math.Sqrt2)
	}
	near(t, "wilcox.test(august, may, exact = FALSE)", approximate(may, august), 0.000120807830768774, 1e-12)
	near(t, "four times over", MannWhitney(four(may), four(august)).P, approximate(four(may), four(august)), 1e-12)
}

// TestMannWhitneyCounted: the exact p is what laying out every way to deal the values gives, for groups of unlike size with many ties.
func TestMannWhitneyCounted(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 1))
	for range 300 {
		a, b := make([]float64, 1+random.IntN(6)), make([]float64, 1+random.IntN(6))
		for _, v := range [][]float64{a, b} {
			for i := range v {
				v[i] = float64(random.IntN(5))
			}
		}
		u := func(a, b []float64) (u float64) {
			for _, x := range a {
				for _, y := range b {
					switch {
					case y > x:
						u++
					case y == x:
						u += 0.5
					}
				}
			}
			return u
		}
		all := append(slices.Clone(a), b...)
		mean := float64(len(a)*len(b)) / 2
		off := math.Abs(u(a, b) - mean)
		far, ways := 0, 0
		for mask := range 1 << len(all) {
			var x, y []float64
			for i, v := range all {
				if mask>>i&1 == 1 {
					y = append(y, v)
				} else {
					x = append(x, v)
				}
			}
			if len(y) != len(b) {
				continue
			}
			ways++
			if math.Abs(u(x, y)-mean) >= off-1e-9 {
				far++
			}
		}
		got := MannWhitney(a, b)
		if got.Statistic != u(a, b) {
			t.Fatalf("%v %v: U %v, want %v", a, b, got.Statistic, u(a, b))
		}
		near(t, "p", got.P, float64(far)/float64(ways), 1e-12)
	}
}

// TestLevel: of two groups from one population a difference is called at most as often as the level says, and for large groups about as often.
func TestLevel(t *testing.T) {
	const times = 2000
	draws := map[string]func(*rand.Rand) float64{
		"normal":            func(r *rand.Rand) float64 { return r.NormFloat64() },
		"skewed":            func(r *rand.Rand) float64 { return math.Exp(2 * r.NormFloat64()) },
		"whole ms, as QEMU": func(r *rand.Rand) float64 { return math.Round(5 + 2*r.NormFloat64()) },
	}
	for name, draw := range draws {
		for _, n := range [][2]int{{4, 4}, {6, 9}, {10, 10}, {60, 55}} {
			random := rand.New(rand.NewPCG(17, uint64(n[0])))
			called := 0
			for range times {
				a, b := make([]float64, n[0]), make([]float64, n[1])
				for _, v := range [][]float64{a, b} {
					for i := range v {
						v[i] = draw(random)
					}
				}
				if MannWhitney(a, b).P < 1-Level {
					called++
				}
			}
			// a binomial count of 2,000 at 5 % passes 130 once in 1,000: the draws are seeded, so that this one never does by chance
			if called > 130 {
				t.Errorf("%s, n %v: a difference was called in %d of %d", name, n, called, times)
			}
			if n[0] >= 10 && called < times/50 {
				t.Errorf("%s, n %v: a difference was called in %d of %d: the test has no power left", name, n, called, times)
			}
		}
	}
}

// TestFamilyLevel: of a table of ten comparisons without a difference, at most one in twenty calls any.
func TestFamilyLevel(t *testing.T) {
	const times, n = 2000, 8
	random := rand.New(rand.NewPCG(17, 3))
	called, uncorrected := 0, 0
	for range times {
		var all []*Comparison
		for range 10 {
			a, b := make([]float64, n), make([]float64, n)
			for i := range n {
				a[i], b[i] = random.ExpFloat64(), random.ExpFloat64()
			}
			all = append(all, &Comparison{Test: MannWhitney(a, b)})
		}
		Family(all)
		if slices.ContainsFunc(all, func(c *Comparison) bool { return c.Holm < 1-Level }) {
			called++
		}
		if slices.ContainsFunc(all, func(c *Comparison) bool { return c.Test.P < 1-Level }) {
			uncorrected++
		}
	}
	if called > 130 || uncorrected < 4*times/10-200 {
		t.Errorf("of %d tables %d call a difference, and %d would without the correction", times, called, uncorrected)
	}
}

func TestShift(t *testing.T) {
	x, y := hollander()
	may, august := ozone()
	lx, ly := large()
	for _, c := range []struct {
		name                    string
		a, b                    []float64
		value, low, high, level float64
		within                  float64
	}{
		{"wilcox.test(x, y, conf.int = TRUE)", y, x, 0.305, -0.15, 0.76, 0.96003996003996, 1e-12},
		{"wilcox.test(y, x, conf.int = TRUE)", x, y, -0.305, -0.76, 0.15, 0.96003996003996, 1e-12},
		{"sort(outer(august, may, \"-\"))[c(k, 677-k)], k <- qwilcox(0.025, 26, 26)", may, august, 32, 15, 53, 0.951457266325675, 1e-12},
		{"wilcox.test(y, x, exact = TRUE, conf.int = TRUE), 60 and 70: the approximation is one rank off", lx, ly, 0.3185165, 0.005796, 0.613211, 0.95, 1e-3},
	} {
		e := Shift(c.a, c.b, Level)
		if e.Interval == nil {
			t.Errorf("%s: no interval", c.name)
			continue
		}
		near(t, c.name, e.Value, c.value, 1e-12)
		near(t, c.name+": low", e.Interval.Low, c.low, c.within)
		near(t, c.name+": high", e.Interval.High, c.high, c.within)
		near(t, c.name+": level", e.Interval.Level, c.level, 1e-3)
	}
	if e := Shift([]float64{1, 2, 3}, []float64{4, 5, 6}, Level); e.Interval != nil || e.Value != 3 || e.Need != 4 || e.Note() != "needs n >= 4" {
		t.Errorf("three and three have %+v", e)
	}
	if e := Shift([]float64{1, 2, 3, 4}, []float64{5, 6, 7, 8}, Level); e.Interval == nil || *e.Interval != (Interval{Low: 1, High: 7, Level: 1 - 2/70.0}) || e.Note() != "" {
		t.Errorf("four and four have %+v", e)
	}
	if e := Shift(nil, x, Level); !math.IsNaN(e.Value) || e.Interval != nil {
		t.Errorf("none and ten have %+v", e)
	}
	near(t, "Cliff's delta, 2 W / (n1 n2) - 1", Cliff(y, x), 2*35.0/50-1, 1e-12)
	if Cliff([]float64{1, 2}, []float64{3, 4}) != 1 || Cliff([]float64{3, 4}, []float64{1, 2}) != -1 || Cliff(x, x) != 0 {
		t.Error("Cliff's delta of groups apart is 1, of the same 0")
	}
}

// TestDifferences: the k-th difference is found without laying all out.
func TestDifferences(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 9))
	for range 200 {
		d := differences{make([]float64, 1+random.IntN(9)), make([]float64, 1+random.IntN(9))}
		var all []float64
		for _, v := range [][]float64{d.a, d.b} {
			for i := range v {
				v[i] = math.Round(random.NormFloat64()*4) * 1.1
			}
			slices.Sort(v)
		}
		for _, a := range d.a {
			for _, b := range d.b {
				all = append(all, b-a)
			}
		}
		slices.Sort(all)
		for k := range all {
			if got := d.kth(k + 1); got != all[k] {
				t.Fatalf("%v: the %d-th is %v, want %v", d, k+1, got, all[k])
			}
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct { // k <- qbinom(0.025, n, 0.5); 1 - 2*pbinom(k-1, n, 0.5)
		n, k  int
		level float64
	}{
		{6, 1, 0.96875}, {7, 1, 0.984375}, {8, 1, 0.9921875}, {9, 2, 0.9609375}, {10, 2, 0.978515625}, {15, 4, 0.96484375}, {20, 6, 0.958610534667969},
		{25, 8, 0.956714749336243}, {30, 10, 0.957226054742932}, {50, 18, 0.967160862435731}, {100, 40, 0.964799799782295}, {1000, 469, 0.953708802639502},
	} {
		v := make([]float64, c.n)
		for i := range v {
			v[i] = float64((i*7)%c.n + 1)
		}
		if c.n%7 == 0 {
			slices.Reverse(v)
			for i := range v {
				v[i] = float64(c.n - i)
			}
		}
		e := Median(v, Level)
		if e.Interval == nil || e.N != c.n || e.Value != float64(c.n+1)/2 || e.Interval.Low != float64(c.k) || e.Interval.High != float64(c.n+1-c.k) {
			t.Errorf("n %d: %+v %+v", c.n, e, e.Interval)
			continue
		}
		near(t, "level", e.Interval.Level, c.level, 1e-9)
	}
	for n := range 6 {
		if e := Median(make([]float64, n), Level); e.Interval != nil || e.Need != 6 || e.Note() != "needs n >= 6" || e.N != n {
			t.Errorf("n %d: %+v", n, e)
		}
	}
	if e := Median(make([]float64, 7), 0.99); e.Need != 8 || e.Interval != nil {
		t.Errorf("at 0.99: %+v", e)
	}
	if e := Median(nil, Level); !math.IsNaN(e.Value) {
		t.Errorf("of none: %+v", e)
	}
	if e := Median([]float64{3, 1}, Level); e.Value != 2 {
		t.Errorf("of two: %+v", e)
	}
}

// TestMedianCovers: the interval holds the true median at least as often as it says.
func TestMedianCovers(t *testing.T) {
	random := rand.New(rand.NewPCG(17, 4))
	for _, n := range []int{6, 9, 20} {
		held := 0
		for range 2000 {
			v := make([]float64, n)
			for i := range v {
				v[i] = random.ExpFloat64()
			}
			if in := Median(v, Level).Interval; in.Low <= math.Ln2 && math.Ln2 <= in.High {
				held++
			}
		}
		if held < 1870 { // at 95 % fewer come once in 1,000
			t.Errorf("n %d: %d of 2,000 intervals hold the median", n, held)
		}
	}
}

func TestHolm(t *testing.T) {
	// ?p.adjust: set.seed(123); x <- rnorm(50, mean = c(rep(0, 25), rep(3, 25))); p <- 2*pnorm(sort(-abs(x))); p.adjust(p, "holm")
	p := []float64{2.3540535079793408e-07, 2.1015902407242859e-05, 2.5768418740401113e-05, 9.8147833236073584e-05, 1.0526095883054314e-04, 1.2414807289280150e-04,
		1.3259880192358452e-04, 1.5685033125567761e-04, 2.2545573276267595e-04, 3.7953803092710003e-04, 6.1149431534094181e-04, 1.6139537290707732e-03,
		3.3024296231373793e-03, 3.5383417761100746e-03, 5.2369965805745761e-03, 6.8319089314331019e-03, 7.0592256589326078e-03, 8.8051286010114201e-03,
		9.4010398396727739e-03, 1.1297980832288860e-02, 2.1150168138838837e-02, 4.9227364030420349e-02, 6.0532977505307090e-02, 6.2622394673603865e-02,
		7.3951528932168428e-02, 8.2811032824038747e-02, 8.6333312789586975e-02, 1.1906543306177111e-01, 1.8907962539672907e-01, 2.0584937780834683e-01,
		2.2092137198443099e-01, 2.8560004255989702e-01, 3.0488948730835402e-01, 4.6606820025984125e-01, 4.8308093523371298e-01, 4.9217546048849120e-01,
		5.3194528606277292e-01, 5.7515504640795490e-01, 5.7831946234574394e-01, 6.1858943409521261e-01, 6.3636200475135141e-01, 6.4485872428665469e-01,
		6.5584143928443872e-01, 6.8858840005799427e-01, 7.1898636230424384e-01, 8.1795385305609414e-01, 8.2744865669079792e-01, 8.9712997590579502e-01,
		9.1186795243409247e-01, 9.4378902178378343e-01}
	want := []float64{1.1770267539896705e-05, 1.0297792179549000e-03, 1.2368840995392533e-03, 4.6129481620954581e-03, 4.8420041062049845e-03, 5.5866632801760676e-03,
		5.8343472846377189e-03, 6.7445642439941372e-03, 9.4691407760323903e-03, 1.5561059268011102e-02, 2.4459772613637673e-02, 6.2944195433760147e-02,
		1.2549232567922042e-01, 1.3091864571607276e-01, 1.8853187690068474e-01, 2.3911681260015857e-01, 2.4001367240370866e-01, 2.9056924383337684e-01,
		3.0083327486952877e-01, 3.5023740580095469e-01, 6.3450504416516507e-01}
	want = append(want, slices.Repeat([]float64{1}, 50-len(want))...)
	order := rand.New(rand.NewPCG(1, 1)).Perm(len(p)) // any order will do
	mixed := make([]float64, len(p))
	for to, from := range order {
		mixed[to] = p[from]
	}
	for to, got := range Holm(mixed) {
		near(t, "p.adjust", got, want[order[to]], 1e-14)
	}
	if got := Holm([]float64{0.04, 0.001, 0.03}); !slices.Equal(got, []float64{0.06, 0.003, 0.06}) { // p.adjust(c(0.04, 0.001, 0.03), "holm")
		t.Error(got)
	}
	if got := Holm(nil); len(got) != 0 {
		t.Error(got)
	}
}

func TestDrift(t *testing.T) {
	// ?cor.test, Hollander and Wolfe (1973), page 185f, the second quality in the order of the first: cor.test(x, y, method = "kendall")
	d := Drift([]float64{2.5, 4, 2.6, 3.6, 2.8, 3.1, 5.2, 5, 3.8})
	near(t, "tau", d.Statistic, 0.444444444444445, 1e-12)
	near(t, "p", d.P, 0.1194389329806, 1e-12)
	// cor.test(1:100, as.numeric(Nile), method = "kendall", exact = FALSE, continuity = TRUE): ties, and a known fall (Cobb 1978)
	d = Drift([]float64{1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140, 1100, 1210, 1150, 1250, 1260,
		1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969, 831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845,
		744, 796, 1040, 759, 781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890, 744, 749, 838, 1050, 918, 986, 797,
		923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740})
	near(t, "tau-b of the Nile", d.Statistic, -0.280741334724613, 1e-12)
	near(t, "p of the Nile", d.P, 3.65826292166434e-05, 1e-12)
	if d.Method != Normal {
		t.Error(d.Method)
	}
	for _, v := range [][]float64{nil, {1}, {2, 2, 2}} {
		if d := Drift(v); d.P != 1 || d.Method != Equal {
			t.Errorf("%v: %+v", v, d)
		}
	}
	if d := Drift([]float64{1, 2, 3, 4, 5}); d.Statistic != 1 || math.Abs(d.P-2.0/120) > 1e-15 {
		t.Errorf("five that rise: %+v", d)
	}
	random := rand.New(rand.NewPCG(17, 8))
	for _, n := range []int{5, 12, 80} {
		called := 0
		for range 2000 {
			v := make([]float64, n)
			for i := range v {
				v[i] = math.Round(50 * random.ExpFloat64())
			}
			if Drift(v).P < 1-Level {
				called++
			}
		}
		if called > 130 {
			t.Errorf("n %d: of 2,000 orders by chance %d are called a drift", n, called)
		}
	}
}

func TestResiduals(t *testing.T) {
	// two cells that took turns, one a hundred times the other, and both a little slower each time
	got := Residuals([]float64{1, 100, 2, 101, 3, 102}, []string{"a", "b", "a", "b", "a", "b"})
	if !slices.Equal(got, []float64{-1, -1, 0, 0, 1, 1}) {
		t.Error(got)
	}
}

func TestOutliers(t *testing.T) {
	if got := Outliers([]float64{1, 2, 3, 30, 4, 5, 6, 7, 8, 9}); !slices.Equal(got, []int{3}) { // boxplot.stats(...)$out
		t.Error(got)
	}
	if got := Outliers([]float64{5, 5, 5}); got != nil {
		t.Error(got)
	}
	x, _ := hollander()
	for q, want := range map[float64]float64{0.1: 0.793, 0.25: 0.8825, 0.5: 1.415, 0.75: 1.595, 0.9: 1.892, 0: 0.73, 1: 1.91} { // quantile(x)
		near(t, "quantile", Quantile(x, q), want, 1e-12)
	}
}

func TestCompare(t *testing.T) {
	a, b := []float64{10, 11, 12, 13, 14, 15}, []float64{20, 21, 22, 23, 24, 25}
	c := Compare(a, b, Level)
	if c.A.Value != 12.5 || c.B.Value != 22.5 || c.Shift.Value != 10 || *c.Relative != 80 || c.Cliff != 1 || c.Holm != c.Test.P || c.Need != 4 {
		t.Errorf("%+v", c)
	}
	near(t, "2 / choose(12, 6)", c.Test.P, 2/924.0, 1e-12)
	c = Compare([]float64{0, 0, 0}, []float64{0, 0, 1}, Level)
	if c.Relative != nil {
		t.Error("a change of nothing has no percentage")
	}
	if _, err := json.Marshal(c); err != nil {
		t.Error(err)
	}
}

func BenchmarkMannWhitney50(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 1))
	x, y := make([]float64, 50), make([]float64, 50)
	for i := range x {
		x[i], y[i] = random.NormFloat64(), random.NormFloat64()
	}
	for b.Loop() {
		MannWhitney(x, y)
	}
}
