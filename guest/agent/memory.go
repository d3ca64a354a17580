package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// A page of the filled memory is 64 lines of 64 bytes. Line 0 is its head: index, count, lines, seed, and four words
// mixed out of those. The other 63 lines are its body. With
//
//	c  count: the page writes since fill
//	n  lines: how many lines were ever written to this body, in order and round and round: line k is written to place k mod 63
//	p  the number of the line that stands in a place l (0..62) now: the largest p < n with p mod 63 = l
//
// the content of place l is a function of (seed, index, p) and so the whole page one of (seed, index, c, n): a page
// from which a single write is missing differs in its head and in at least one line. A fill writes lines 0 to 62, so n
// >= 63. A page write may thus alter as little as the head and one line and still be proved with the rest of the page.
//
// A zero page has no head: nothing but zeros in it, which is what QEMU sends in 9 bytes. Its count is in the table
// only.
const bodyLines = 63

type content uint8

const (
	random content = iota
	compressible
	zero
)

func contentOf(name string) (content, error) {
	switch name {
	case wire.Random, "":
		return random, nil
	case wire.Compressible:
		return compressible, nil
	case wire.Zero:
		return zero, nil
	}
	return 0, fmt.Errorf("no content %q: there are %s, %s, %s", name, wire.Random, wire.Compressible, wire.Zero)
}

// page is what the table expects of a page.
type page struct {
	count    uint64
	lines    uint64
	interval uint32 // in which it was written last
	content  content
}

// memory is the filled region and the table of what must stand in it. The table and the total lie apart from the
// region.
type memory struct {
	size atomic.Int64 // bytes of the region, for those who need not wait

	mu       sync.RWMutex // shared for a batch of writes to pages that no other writer writes; exclusive for all else
	data     []byte       // mapped
	table    []page
	seed     uint64
	claimed  atomic.Uint64 // page writes since fill, as the dirtier counted them
	interval uint32        // of the dirtier's claims, counted up; 0: before the first
}

var errNoMemory = errors.New("no memory is filled: fill comes first")

// fill maps a new region and writes every page of it.
func (m *memory) fill(size int64, c content, seed uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data != nil {
		if err := unix.Munmap(m.data); err != nil {
			return fmt.Errorf("unmap the old region: %w", err)
		}
		m.data, m.table = nil, nil
		m.size.Store(0)
	}
	pages := (size + wire.PageSize - 1) / wire.PageSize
	data, err := unix.Mmap(-1, 0, int(pages*wire.PageSize), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map %d bytes: %w", pages*wire.PageSize, err)
	}
	// Without huge pages the kernel moves none of ours behind our back: khugepaged would dirty what nobody claimed.
	_ = unix.Madvise(data, unix.MADV_NOHUGEPAGE) // a kernel without them refuses
	m.data = data
	m.table = make([]page, pages)
	m.seed, m.interval = seed, 0
	m.claimed.Store(0)
	for i := range m.table {
		m.rewrite(i, c)
	}
	m.size.Store(int64(len(data)))
	return nil
}

// close gives the region back.
func (m *memory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data != nil {
		_ = unix.Munmap(m.data)
		m.data, m.table = nil, nil
		m.size.Store(0)
	}
}

// rewrite writes a whole page anew, its count as it was.
func (m *memory) rewrite(i int, c content) {
	m.table[i].content = c
	if c == zero {
		*m.page(i) = image{}
		return
	}
	m.lines(i, bodyLines)
}

// write is one page write: n lines and the head.
func (m *memory) write(i, n int) {
	m.table[i].count++
	if m.table[i].content == zero {
		m.page(i)[0][0] = 0
		return
	}
	m.lines(i, n)
}

func (m *memory) lines(i, n int) {
	t, page := &m.table[i], m.page(i)
	for range n {
		m.putLine(&page[1+t.lines%bodyLines], i, t.content, t.lines)
		t.lines++
	}
	m.putHead(&page[0], i, t)
}

// A line is 64 bytes; a page, 64 of them.
type (
	line  [8]uint64
	image [1 + bodyLines]line
)

func (m *memory) page(i int) *image {
	return (*image)(unsafe.Pointer(&m.data[i*wire.PageSize]))
}

func (m *memory) putHead(l *line, i int, t *page) {
	index := uint64(i)
	*l = line{index, t.count, t.lines, m.seed,
		mix(index ^ m.seed), mix(t.count + m.seed), mix(t.lines - m.seed), mix(index ^ mix(t.count^mix(t.lines)))}
}

// putLine is the content of line p of page i. Random words come from x <- a*x + c mod 2^64 (Knuth's MMIX constants),
// each folded by x ^ x>>29.
func (m *memory) putLine(l *line, i int, c content, p uint64) {
	x := mix(m.seed ^ mix(uint64(i)<<32^p))
	if c == compressible {
		*l = line{x, x, x, x, x, x, x, x}
		return
	}
	for j := range l {
		l[j] = x ^ x>>29
		x = x*6364136223846793005 + 1442695040888963407
	}
}

// mix is splitmix64's output function: 64 bits to 64 bits, one to one, every bit on every bit.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// firstWrong is how many wrong pages are described; all are counted.
const firstWrong = 8

// verify checks every page's every byte against the table, and the sums. The dirtier stands still meanwhile, between
// two batches: nothing is written while the lock is held alone.
func (m *memory) verify() (wire.Verified, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data == nil {
		return wire.Verified{}, errNoMemory
	}
	v := wire.Verified{Checked: int64(len(m.table)), Claimed: m.claimed.Load()}
	for i := range m.table {
		t, found := &m.table[i], m.page(i)
		v.Held += t.count
		if t.content == zero {
			v.Zero++
			v.Found += t.count
		} else {
			v.Found += found[0][1]
		}
		at, ok := m.check(i, t, found)
		if ok {
			continue
		}
		v.Wrong++
		if len(v.First) < firstWrong {
			v.First = append(v.First, m.describe(i, t, found, at))
		}
	}
	return v, nil
}

// check compares a page with what the table says; at is the first line that differs.
func (m *memory) check(i int, t *page, found *image) (at int, ok bool) {
	if t.content == zero {
		for at := range found {
			if found[at] != (line{}) {
				return at, false
			}
		}
		return 0, true
	}
	var want line
	m.putHead(&want, i, t)
	if found[0] != want {
		return 0, false
	}
	last := t.lines - 1 // the newest line; it stands in place r
	r := last % bodyLines
	for l := range uint64(bodyLines) {
		p := last - r + l
		if l > r {
			p -= bodyLines
		}
		if m.putLine(&want, i, t.content, p); found[1+l] != want {
			return int(1 + l), false
		}
	}
	return 0, true
}

func (m *memory) describe(i int, t *page, found *image, at int) wire.WrongPage {
	w := wire.WrongPage{Page: int64(i)}
	switch f := found[0]; {
	case t.content == zero:
		w.Expected = "all zero"
		w.Found = fmt.Sprintf("line %d: %x", at, found[at])
	case at == 0:
		w.Expected = fmt.Sprintf("index %d count %d lines %d seed %d", i, t.count, t.lines, m.seed)
		w.Found = fmt.Sprintf("index %d count %d lines %d seed %d", f[0], f[1], f[2], f[3])
		if f[0] == uint64(i) && f[1] == t.count && f[2] == t.lines && f[3] == m.seed {
			var want line
			m.putHead(&want, i, t)
			w.Expected, w.Found = fmt.Sprintf("head %x", want), fmt.Sprintf("head %x", f)
		}
	default:
		w.Expected = fmt.Sprintf("index %d count %d and its content", i, t.count)
		w.Found = fmt.Sprintf("the same head, but another line %d: %x", at, found[at])
	}
	return w
}

// corrupt flips one bit of a page and tells the table nothing: the check must find it.
func (m *memory) corrupt(i int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data == nil {
		return errNoMemory
	}
	if i < 0 || i >= int64(len(m.table)) {
		return fmt.Errorf("no page %d: there are %d", i, len(m.table))
	}
	m.page(int(i))[bodyLines][0] ^= 1
	return nil
}
