package main

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"qmigrate/guest/wire"
)

func filled(t *testing.T, pages int, c content) *memory {
	t.Helper()
	m := &memory{}
	t.Cleanup(m.close)
	if err := m.fill(int64(pages)*wire.PageSize, c, 42); err != nil {
		t.Fatal(err)
	}
	return m
}

// writes are n page writes at random places, counted as the dirtier counts them.
func writes(m *memory, n, lines int) {
	r := rand.New(rand.NewPCG(1, 2))
	for range n {
		m.write(r.IntN(len(m.table)), lines)
	}
	m.claimed.Add(uint64(n))
}

func TestVerify(t *testing.T) {
	for _, c := range []content{random, compressible, zero} {
		m := filled(t, 50, c)
		for _, lines := range []int{1, 7, 63} { // workloads of different kinds follow each other on the same pages
			writes(m, 1000, lines)
			v := must[wire.Verified](t)(m.verify())
			if !v.OK() || v.Checked != 50 || v.First != nil {
				t.Fatalf("content %d, %d lines a write: %+v", c, lines, v)
			}
		}
		for other := random; other <= zero; other++ {
			m.rewrite(3, other)
			m.write(3, 2)
			m.claimed.Add(1)
			if v := must[wire.Verified](t)(m.verify()); !v.OK() {
				t.Fatalf("page 3 from content %d to %d: %+v", c, other, v)
			}
		}
	}
	if _, err := (&memory{}).verify(); err != errNoMemory {
		t.Errorf("verify of nothing: %v", err)
	}
}

// The check can fail: whichever byte of a page differs, it is found, and so is a page as it was one write ago.
func TestVerifyFindsWrongPages(t *testing.T) {
	for _, c := range []content{random, compressible, zero} {
		m := filled(t, 20, c)
		writes(m, 500, 3)
		for at := 0; at < wire.PageSize; at += 7 {
			m.data[5*wire.PageSize+at] ^= 0x40
			v := must[wire.Verified](t)(m.verify())
			if v.Wrong != 1 || v.OK() || len(v.First) != 1 || v.First[0].Page != 5 || v.First[0].Expected == v.First[0].Found {
				t.Fatalf("content %d, byte %d: %+v", c, at, v)
			}
			m.data[5*wire.PageSize+at] ^= 0x40
		}
		if c == zero {
			continue // stale and fresh are the same
		}
		stale := *m.page(9)
		m.write(9, 1)
		m.claimed.Add(1)
		fresh := *m.page(9)
		*m.page(9) = stale
		v := must[wire.Verified](t)(m.verify())
		if v.Wrong != 1 || v.First[0].Page != 9 || v.Found != v.Claimed-1 || v.Held != v.Claimed {
			t.Fatalf("content %d, stale page: %+v", c, v)
		}
		*m.page(9) = fresh
		*m.page(9), *m.page(10) = *m.page(10), *m.page(9)
		if v := must[wire.Verified](t)(m.verify()); v.Wrong != 2 {
			t.Fatalf("content %d, pages changed places: %+v", c, v)
		}
	}
}

// A claim that is too high shows in the sums, though every page is right.
func TestVerifyFindsWrongClaim(t *testing.T) {
	m := filled(t, 5, random)
	writes(m, 100, 1)
	m.claimed.Add(1)
	if v := must[wire.Verified](t)(m.verify()); v.OK() || v.Wrong != 0 || v.Found != 100 || v.Claimed != 101 {
		t.Errorf("%+v", v)
	}
}

func TestCorruptIsFound(t *testing.T) {
	a := testAgent(t, newMonotonic())
	ask := func(do, args string) (any, error) {
		return a.do(wire.Request{Do: do, Args: json.RawMessage(args)})
	}
	if _, err := ask(wire.DoCorrupt, `{"page":0}`); err != errNoMemory {
		t.Errorf("corrupt of nothing: %v", err)
	}
	f := must[any](t)(ask(wire.DoFill, `{"bytes":409601}`)).(wire.Filled)
	if f.Pages != 101 || f.Bytes != 101*wire.PageSize {
		t.Errorf("filled %+v", f)
	}
	for _, page := range []string{"-1", "101"} {
		if _, err := ask(wire.DoCorrupt, `{"page":`+page+`}`); err == nil || !strings.Contains(err.Error(), "there are 101") {
			t.Errorf("corrupt %s: %v", page, err)
		}
	}
	for i := range 10 {
		must[any](t)(ask(wire.DoCorrupt, `{"page":`+string(rune('0'+i))+`}`))
		if v := must[any](t)(ask(wire.DoVerify, "")).(wire.Verified); v.Wrong != int64(i+1) || len(v.First) != min(i+1, firstWrong) || v.OK() {
			t.Errorf("%d corrupted: %+v", i+1, v)
		}
	}
	must[any](t)(ask(wire.DoFill, `{"bytes":40960,"content":"zero"}`)) // filled anew, it is right again
	if v := must[any](t)(ask(wire.DoVerify, "")).(wire.Verified); !v.OK() || v.Zero != 10 {
		t.Errorf("%+v", v)
	}
}

// What content means for a page on the wire.
func TestContent(t *testing.T) {
	m := filled(t, 3, random)
	seen := map[uint64]int{}
	for i := range 3 {
		for _, l := range m.page(i)[1:] {
			for _, w := range l {
				seen[w]++
			}
		}
	}
	if len(seen) != 3*bodyLines*8 {
		t.Errorf("%d different words of random content, want %d", len(seen), 3*bodyLines*8)
	}
	m = filled(t, 1, compressible)
	for at, l := range m.page(0)[1:] {
		if l != (line{l[0], l[0], l[0], l[0], l[0], l[0], l[0], l[0]}) || l[0] == m.page(0)[1+(at+1)%bodyLines][0] {
			t.Errorf("compressible line %d: %x", at, l)
		}
	}
	m = filled(t, 1, zero)
	writes(m, 3, 1)
	if *m.page(0) != (image{}) {
		t.Error("a zero page has something in it")
	}
}

func TestFillRefuses(t *testing.T) {
	a := testAgent(t, newMonotonic())
	for args, want := range map[string]string{
		`{"bytes":1}`:                      "can be filled",
		`{"bytes":-4096}`:                  "can be filled",
		`{"bytes":9000000000000000000}`:    "can be filled",
		`{"bytes":4096,"content":"noise"}`: "there are random, compressible, zero",
		`{"byte":4096}`:                    `unknown field "byte"`,
		`{"bytes":"4096"}`:                 "read arguments",
	} {
		if _, err := a.do(wire.Request{Do: wire.DoFill, Args: json.RawMessage(args)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
	if f := a.defaultFill(); f < leastFill || f%wire.PageSize != 0 {
		t.Errorf("default fill %d", f)
	}
	must[any](t)(a.do(wire.Request{Do: wire.DoWorkloadStart, Args: json.RawMessage(`{"name":"idle"}`)}))
	if _, err := a.do(wire.Request{Do: wire.DoFill, Args: json.RawMessage(`{"bytes":4096}`)}); err == nil || !strings.Contains(err.Error(), "workload.stop comes first") {
		t.Errorf("fill under a workload: %v", err)
	}
	must[any](t)(a.do(wire.Request{Do: wire.DoWorkloadStop}))
}

func BenchmarkWrite(b *testing.B) {
	m := &memory{}
	defer m.close()
	if err := m.fill(16<<20, random, 1); err != nil {
		b.Fatal(err)
	}
	p := picker{set: len(m.table)}
	for b.Loop() {
		m.write(p.next(), 1)
	}
}

func BenchmarkBeat(b *testing.B) {
	bt, err := newBeats(newMonotonic(), wire.Boot{}.Beat, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		bt.beat(bt.clock.now())
	}
}
