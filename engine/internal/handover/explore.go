package handover

import (
	"fmt"
	"slices"
	"strings"
)

// version is one of the three whose rules are known.
type version uint8

const (
	v7 version = iota
	v10
	v11
)

func (v version) String() string { return [...]string{"7.2", "10.0", "11.1"}[v] }

// mode is how the guest moves.
type mode uint8

const (
	preCopy mode = iota
	stopAndCopy
	postCopy
)

func (m mode) String() string { return [...]string{"pre-copy", "stop-and-copy", "post-copy"}[m] }

// Config is what is explored: who takes part, what may happen, and how often.
type Config struct {
	Source, Destination version
	Mode                mode
	ReturnPath          bool
	Late                bool // late-block-activate, on a 7.2 destination
	NoLocks             bool // the disks know no locks (NFS, iSCSI)
	Release             bool // release-ram
	Unknown             bool // the processes are not known
	Elsewhere           bool // the source connects to another QEMU than --destination, which starts by itself
	Arrived             bool // the source's guest has once arrived there
	Hangs               bool // a fault may be a QEMU that hangs
	Sick                bool // a fault may be a disk that the destination cannot open
	Stranger            bool // --recover is given a destination with another guest, that came from elsewhere
	IntoSwitch          bool // the guest runs until post-copy stops it; else we stop it just before
	PowersOff           bool // a fault may be that the guest powers itself off
	Theirs              bool // somebody else may migrate the source elsewhere

	Faults, Slow, Third, Asks, Crashes, Recovers uint8 // how often at most

	Former former // what is put back
	Want   string // the invariant that is looked for; of others only what follows is left out. "": any
	Limit  int    // states at most; 0 is 3,000,000
}

// model is the rules of a Config.
type model struct{ Config }

// Result is what an exploration has found.
type Result struct {
	States, Depth, Ends int
	Cut                 bool // Limit was reached
	Wrong               string
	Trace               []string
}

func (r Result) String() string {
	s := fmt.Sprintf("%d states, depth %d, %d ends", r.States, r.Depth, r.Ends)
	if r.Cut {
		s += ", CUT"
	}
	if r.Wrong == "" {
		return s
	}
	return fmt.Sprintf("%s: %s, after %d steps:\n  %s", s, r.Wrong, len(r.Trace), strings.Join(r.Trace, "\n  "))
}

// node is a state that was reached, and how.
type node struct {
	state  State
	parent int32
	step   string
}

// Explore visits every state that can be reached, those that need fewer steps first, and ends at a wrong one.
func Explore(c Config) Result {
	m := &model{c}
	limit := c.Limit
	if limit == 0 {
		limit = 3_000_000
	}
	start := m.tidy(m.start())
	nodes := []node{{state: start, parent: -1, step: "start"}}
	seen := map[State]int32{start: 0}
	var edges [][]int32 // of each node, the nodes that follow without the adversary
	r := Result{Depth: -1}
	wrong := func(i int32, what string) Result {
		r.Wrong, r.States = what, len(nodes)
		r.Trace = trace(nodes, i)
		r.Depth = len(r.Trace)
		return r
	}
	for level, i := 0, 0; i < len(nodes); i++ {
		if i == level {
			r.Depth++
			level = len(nodes)
		}
		st := nodes[i].state
		if what := m.wrongNow(&st); what != "" {
			if strings.HasPrefix(what, c.Want) {
				return wrong(int32(i), what)
			}
			edges = append(edges, nil)
			continue
		}
		var out []int32
		goesOn := m.next(st, func(what string, t State) {
			j, known := seen[t]
			if !known {
				if len(nodes) >= limit {
					r.Cut = true
					return
				}
				j = int32(len(nodes))
				seen[t] = j
				nodes = append(nodes, node{t, int32(i), what})
			}
			out = append(out, j)
		})
		edges = append(edges, out)
		if goesOn {
			continue
		}
		switch st.k.at {
		case pEnd:
			r.Ends++
			if what := m.wrongAtRest(&st); what != "" && strings.HasPrefix(what, c.Want) {
				return wrong(int32(i), what)
			}
		case pGone:
			r.Ends++
		default:
			if strings.HasPrefix("5:", c.Want) {
				return wrong(int32(i), "5: qmigrate waits for ever")
			}
		}
	}
	r.States = len(nodes)
	if round := circle(edges); round != nil && strings.HasPrefix("5:", c.Want) {
		r = wrong(round[0], "5: qmigrate goes round in a circle")
		for _, i := range round[1:] {
			r.Trace = append(r.Trace, "round: "+nodes[i].step)
		}
	}
	return r
}

// circle finds nodes that follow each other in a circle; nil if there is none.
func circle(edges [][]int32) []int32 {
	in := make([]int32, len(edges)) // how many go there that may be on a circle, or after one
	for _, out := range edges {
		for _, j := range out {
			in[j]++
		}
	}
	var free []int32
	for i, n := range in {
		if n == 0 {
			free = append(free, int32(i))
		}
	}
	for done := 0; done < len(free); done++ {
		for _, j := range edges[free[done]] {
			if in[j]--; in[j] == 0 {
				free = append(free, j)
			}
		}
	}
	if len(free) == len(edges) {
		return nil
	}
	before := make([]int32, len(edges)) // one that goes there, plus 1
	at := int32(-1)
	for i, out := range edges {
		if in[i] == 0 {
			continue
		}
		for _, j := range out {
			before[j], at = int32(i)+1, j
		}
	}
	place := map[int32]int{}
	var back []int32
	for ; ; at = before[at] - 1 { // each that is left has one before it that is left, so this comes round
		if i, ok := place[at]; ok {
			back = back[i:]
			break
		}
		place[at] = len(back)
		back = append(back, at)
	}
	slices.Reverse(back)
	return back
}

func trace(nodes []node, i int32) []string {
	var steps []string
	for ; i >= 0; i = nodes[i].parent {
		steps = append(steps, nodes[i].step)
	}
	slices.Reverse(steps)
	return steps
}
