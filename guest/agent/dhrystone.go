package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"qmigrate/guest/wire"
)

// dhrystone is Weicker's Dhrystone, version 2.1 (SIGPLAN Notices 23(8), August 1988): the statement mix of its C
// version, each statement in its place, with the same calls (not inlined, as the rules ask), the same records, arrays
// and strings. Integers have 32 bits and strings are arrays of 31 bytes that end in zero, as in C; the comparison and
// the copies of strings go byte by byte, because there is no strcpy of a library to call.
//
// The original runs once and prints each variable beside its final value. Here the same comparison is made after every
// chunk of runs.
type dhrystone struct {
	spoiled
	clock clock

	mu    sync.Mutex
	runs  uint64
	spent time.Duration // in the loop alone

	v dhryVars // the running workload's own
}

// dhryChunk is how many runs are done between two looks at the clock and checks: about 1 ms of them under TCG.
const dhryChunk = 500

func newDhrystone(c clock) *dhrystone {
	d := &dhrystone{clock: c}
	d.v.init()
	return d
}

func (d *dhrystone) run(ctx context.Context, m *meter) error {
	for ctx.Err() == nil {
		begin := d.clock.now()
		d.v.loop(dhryChunk)
		end := d.clock.now()
		if d.spoilt() {
			d.v.arr2[8][7]++
		}
		if err := d.v.check(); err != nil {
			return err
		}
		d.mu.Lock()
		d.runs += dhryChunk
		d.spent += end - begin
		d.mu.Unlock()
		m.add(end, dhryChunk)
	}
	return nil
}

// vaxDhrystones is what a VAX 11/780, the machine of one MIPS, does a second.
const vaxDhrystones = 1757

func (d *dhrystone) result() any {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := wire.Dhrystones{Runs: d.runs}
	if d.spent > 0 {
		r.PerSecond = float64(d.runs) / d.spent.Seconds()
		r.VAXMIPS = r.PerSecond / vaxDhrystones
	}
	return r
}

func (d *dhrystone) score() *wire.Score {
	if r := d.result().(wire.Dhrystones); r.Runs > 0 {
		return &wire.Score{Value: r.PerSecond, Unit: "Dhrystones/s"}
	}
	return nil
}

type dhryEnum int32

const (
	ident1 dhryEnum = iota
	ident2
	ident3
	ident4
	ident5
)

type dhryString [31]byte

func dhryText(s string) (t dhryString) { copy(t[:], s); return t }

// dhryRecord is the original's variant record in its first variant, the only one that is used.
type dhryRecord struct {
	next  *dhryRecord
	discr dhryEnum
	enum  dhryEnum
	num   int32
	text  dhryString
}

// dhryVars are the program's global variables, and those of its main procedure.
type dhryVars struct {
	ptr, nextPtr *dhryRecord
	num          int32
	flag         bool
	ch1, ch2     byte
	arr1         [50]int32
	arr2         [50][50]int32

	num1, num2, num3 int32
	enum             dhryEnum
	str1, str2       dhryString
	runs             int32 // modulo 2^32, as arr2[8][7]
}

var (
	dhryFirst  = dhryText("DHRYSTONE PROGRAM, 1'ST STRING")
	dhrySecond = dhryText("DHRYSTONE PROGRAM, 2'ND STRING")
	dhryThird  = dhryText("DHRYSTONE PROGRAM, 3'RD STRING")
	dhrySome   = dhryText("DHRYSTONE PROGRAM, SOME STRING")
)

func (v *dhryVars) init() {
	v.nextPtr = &dhryRecord{}
	v.ptr = &dhryRecord{next: v.nextPtr, discr: ident1, enum: ident3, num: 40, text: dhrySome}
	v.str1 = dhryFirst
	v.arr2[8][7] = 10
}

// loop is the measured loop.
func (v *dhryVars) loop(n int) {
	for range n {
		v.runs++
		v.proc5()
		v.proc4()
		v.num1, v.num2 = 2, 3
		dhryCopy(&v.str2, &dhrySecond)
		v.enum = ident2
		v.flag = !v.func2(&v.str1, &v.str2)
		for v.num1 < v.num2 { // once
			v.num3 = 5*v.num1 - v.num2
			dhryProc7(v.num1, v.num2, &v.num3)
			v.num1++
		}
		v.proc8(&v.arr1, &v.arr2, v.num1, v.num3)
		v.proc1(v.ptr)
		for c := byte('A'); c <= v.ch2; c++ { // twice
			if v.enum == v.func1(c, 'C') { // never
				v.proc6(ident1, &v.enum)
				dhryCopy(&v.str2, &dhryThird)
				v.num2, v.num = v.runs, v.runs
			}
		}
		v.num2 *= v.num1
		v.num1 = v.num2 / v.num3
		v.num2 = 7*(v.num2-v.num3) - v.num1
		v.proc2(&v.num1)
	}
}

// check compares every variable with the value that the original prints beside it as the right one.
func (v *dhryVars) check() error {
	var wrong []string
	number := func(name string, got, want int32) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%s is %d and should be %d", name, got, want))
		}
	}
	text := func(name string, got, want dhryString) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%s is %.30q and should be %.30q", name, got[:30], want[:30]))
		}
	}
	flag := int32(0)
	if v.flag {
		flag = 1
	}
	number("Int_Glob", v.num, 5)
	number("Bool_Glob", flag, 1)
	number("Ch_1_Glob", int32(v.ch1), 'A')
	number("Ch_2_Glob", int32(v.ch2), 'B')
	number("Arr_1_Glob[8]", v.arr1[8], 7)
	number("Arr_2_Glob[8][7]", v.arr2[8][7], v.runs+10)
	number("Ptr_Glob->Discr", int32(v.ptr.discr), 0)
	number("Ptr_Glob->Enum_Comp", int32(v.ptr.enum), 2)
	number("Ptr_Glob->Int_Comp", v.ptr.num, 17)
	text("Ptr_Glob->Str_Comp", v.ptr.text, dhrySome)
	number("Next_Ptr_Glob->Discr", int32(v.nextPtr.discr), 0)
	number("Next_Ptr_Glob->Enum_Comp", int32(v.nextPtr.enum), 1)
	number("Next_Ptr_Glob->Int_Comp", v.nextPtr.num, 18)
	text("Next_Ptr_Glob->Str_Comp", v.nextPtr.text, dhrySome)
	if v.ptr.next != v.nextPtr || v.nextPtr.next != v.nextPtr {
		wrong = append(wrong, "Ptr_Glob->Ptr_Comp and Next_Ptr_Glob->Ptr_Comp should be the same")
	}
	number("Int_1_Loc", v.num1, 5)
	number("Int_2_Loc", v.num2, 13)
	number("Int_3_Loc", v.num3, 7)
	number("Enum_Loc", int32(v.enum), 1)
	text("Str_1_Loc", v.str1, dhryFirst)
	text("Str_2_Loc", v.str2, dhrySecond)
	if len(wrong) > 0 {
		return fmt.Errorf("the result is wrong after %d runs: %s", v.runs, strings.Join(wrong, "; "))
	}
	return nil
}

// dhryCopy is strcpy: up to the zero and with it.
//
//go:noinline
func dhryCopy(to, from *dhryString) {
	for i, c := range from {
		if to[i] = c; c == 0 {
			return
		}
	}
}

// dhryGreater is strcmp(a, b) > 0.
//
//go:noinline
func dhryGreater(a, b *dhryString) bool {
	for i := range a {
		if a[i] != b[i] || a[i] == 0 {
			return a[i] > b[i]
		}
	}
	return false
}

//go:noinline
func (v *dhryVars) proc1(p *dhryRecord) {
	next := p.next
	*p.next = *v.ptr
	p.num = 5
	next.num = p.num
	next.next = p.next
	v.proc3(&next.next)
	if next.discr == ident1 { // always
		next.num = 6
		v.proc6(p.enum, &next.enum)
		next.next = v.ptr.next
		dhryProc7(next.num, 10, &next.num)
	} else {
		*p = *p.next
	}
}

//go:noinline
func (v *dhryVars) proc2(num *int32) {
	n, e := *num+10, ident5
	for {
		if v.ch1 == 'A' { // always
			n--
			*num = n - v.num
			e = ident1
		}
		if e == ident1 {
			return
		}
	}
}

//go:noinline
func (v *dhryVars) proc3(p **dhryRecord) {
	if v.ptr != nil { // always
		*p = v.ptr.next
	}
	dhryProc7(10, v.num, &v.ptr.num)
}

//go:noinline
func (v *dhryVars) proc4() {
	b := v.ch1 == 'A'
	v.flag = b || v.flag
	v.ch2 = 'B'
}

//go:noinline
func (v *dhryVars) proc5() {
	v.ch1 = 'A'
	v.flag = false
}

//go:noinline
func (v *dhryVars) proc6(e dhryEnum, to *dhryEnum) {
	*to = e
	if !dhryFunc3(e) { // never
		*to = ident4
	}
	switch e {
	case ident1:
		*to = ident1
	case ident2:
		if v.num > 100 {
			*to = ident1
		} else {
			*to = ident4
		}
	case ident3: // always
		*to = ident2
	case ident4:
	case ident5:
		*to = ident3
	}
}

//go:noinline
func dhryProc7(a, b int32, to *int32) {
	n := a + 2
	*to = b + n
}

//go:noinline
func (v *dhryVars) proc8(one *[50]int32, two *[50][50]int32, a, b int32) {
	n := a + 5
	one[n] = b
	one[n+1] = one[n]
	one[n+30] = n
	for i := n; i <= n+1; i++ {
		two[n][i] = n
	}
	two[n][n-1]++
	two[n+20][n] = one[n]
	v.num = 5
}

//go:noinline
func (v *dhryVars) func1(a, b byte) dhryEnum {
	c1 := a
	c2 := c1
	if c2 != b { // always
		return ident1
	}
	v.ch1 = c1
	return ident2
}

//go:noinline
func (v *dhryVars) func2(a, b *dhryString) bool {
	n, c := 2, byte(0)
	for n <= 2 { // once
		if v.func1(a[n], b[n+1]) == ident1 { // always
			c = 'A'
			n++
		}
	}
	if c >= 'W' && c < 'Z' { // never
		n = 7
	}
	if c == 'R' { // never
		return true
	}
	if dhryGreater(a, b) { // never
		n += 7
		v.num = int32(n)
		return true
	}
	return false
}

//go:noinline
func dhryFunc3(e dhryEnum) bool {
	one := e
	return one == ident3
}
