package hosts

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
)

// Report is what Check found.
type Report struct {
	File  string       `json:"file"`
	Hosts []HostReport `json:"hosts"`
	Pairs []PairReport `json:"pairs"`
}

// HostReport is one host, as it was found.
type HostReport struct {
	Name        string        `json:"name"`
	At          string        `json:"at"`
	Reached     bool          `json:"reached"`
	Took        time.Duration `json:"reached_after_ns,omitempty"` // to reach it, helper and all
	User        string        `json:"user,omitempty"`             // who we are there
	Root        bool          `json:"root"`
	Kernel      string        `json:"kernel,omitempty"`
	Processor   string        `json:"cpu,omitempty"`
	LinkAddress string        `json:"link_address,omitempty"`
	QEMU        string        `json:"qemu,omitempty"` // its version
	QEMUPath    string        `json:"qemu_path,omitempty"`
	KVM         bool          `json:"kvm"`
	TAP         bool          `json:"tap"` // there is one for the guest, or one can be made
	Bridge      bool          `json:"bridge"`
	Offset      time.Duration `json:"clock_offset_ns"` // of its realtime clock from ours
	OffsetError time.Duration `json:"clock_error_ns"`
	Memory      int64         `json:"memory_available_bytes,omitempty"`
	Problems    []Problem     `json:"problems,omitempty"`
}

// PairReport is one pair, as it was found.
type PairReport struct {
	Source      string        `json:"source"`
	Destination string        `json:"destination"`
	Observer    string        `json:"observer"` // "" is this machine
	Guest       string        `json:"guest_address"`
	Throughput  float64       `json:"throughput_bytes_per_s,omitempty"` // of TCP, from the source to the destination
	RoundTrip   time.Duration `json:"round_trip_ns,omitempty"`
	Problems    []Problem     `json:"problems,omitempty"`
	OK          bool          `json:"ok"` // a migration could run
}

// Problem is what is in a migration's way, or what makes it slow.
type Problem struct {
	Text     string `json:"text"`
	Mend     string `json:"mend,omitempty"`
	Harmless bool   `json:"harmless,omitempty"` // a migration runs all the same
}

func (p Problem) String() string {
	if p.Mend == "" {
		return p.Text
	}
	return p.Text + ": " + p.Mend
}

// FindQEMU finds the QEMU of a host: path if that is given.
type FindQEMU func(ctx context.Context, at host.Host, path string) (found, version string, err error)

// checked is a host of the file on its way into a report.
type checked struct {
	end
	report *HostReport
	err    error // it was not reached
}

// Check tries everything that a migration between the hosts needs: all hosts, then the ways between those of the pairs.
// Nothing is made but connections.
func (f *File) Check(ctx context.Context, pool *host.Pool, find FindQEMU) *Report {
	f.In(pool)
	r := &Report{File: f.Name, Hosts: make([]HostReport, len(f.Hosts))}
	all := make([]*checked, len(f.Hosts))
	var each sync.WaitGroup
	for i := range f.Hosts {
		h := &f.Hosts[i]
		all[i] = &checked{end: end{entry: h}, report: &r.Hosts[i]}
		*all[i].report = HostReport{Name: h.Name, At: h.At}
		each.Go(func() { all[i].check(ctx, pool, f.guest(h), find) })
	}
	each.Wait()
	byName := map[string]*checked{}
	for _, c := range all {
		byName[c.entry.Name] = c
	}
	for _, p := range f.Pairs { // one after the other: they would share a link
		r.Pairs = append(r.Pairs, f.checkWay(ctx, p, byName))
	}
	return r
}

// guest tells whether a host is to have a guest: the source or the destination of a pair.
func (f *File) guest(h *Host) bool {
	for _, p := range f.Pairs {
		if p.Source == h.Name || p.Destination == h.Name {
			return true
		}
	}
	return len(f.Pairs) == 0
}

func (c *checked) problem(text, mend string, harmless bool) {
	c.report.Problems = append(c.report.Problems, Problem{text, mend, harmless})
}

func (c *checked) check(ctx context.Context, pool *host.Pool, guest bool, find FindQEMU) {
	begin := time.Now()
	r := c.report
	if c.at, c.err = pool.Find(ctx, c.entry.At); c.err != nil {
		c.problem(c.err.Error(), "", false)
		return
	}
	r.Reached, r.Took = true, time.Since(begin)
	look := hostnet.Look{Overlay: c.entry.Overlay}
	if guest {
		look = c.entry.look()
	}
	if c.look, c.err = hostnet.LookTask().Ask(ctx, c.at, look); c.err != nil {
		c.problem(c.err.Error(), "", false)
		return
	}
	l := c.look
	r.User, r.Root, r.Kernel, r.Processor, r.Memory = l.User, l.Root, l.Kernel, l.Processor, l.Memory
	r.KVM, r.TAP, r.Bridge = l.KVM.OK, l.TUN.OK, l.Bridge.OK
	if clock, err := c.at.Clock(ctx); err != nil {
		c.problem(fmt.Sprintf("its clock is not known: %v", err), "", false)
	} else {
		r.Offset, r.OffsetError = clock.Offset, clock.Error
	}
	if !guest {
		return
	}
	for _, one := range []hostnet.Capability{l.Bridge, l.TUN, l.KVM} {
		if !one.OK {
			c.problem(one.Reason, one.Mend, one.Optional)
		}
	}
	var err error
	if c.link, err = c.entry.linkAddress(c.at, l); err != nil {
		c.problem(err.Error(), "", false)
	} else {
		r.LinkAddress = c.link.String()
	}
	if r.QEMUPath, r.QEMU, err = find(ctx, c.at, c.entry.QEMU); err != nil {
		c.problem(err.Error(), "", false)
	}
}

// usable tells whether nothing of the host is in a migration's way.
func (c *checked) usable() bool {
	for _, p := range c.report.Problems {
		if !p.Harmless {
			return false
		}
	}
	return true
}

// checkWay tries the way between the hosts of a pair.
func (f *File) checkWay(ctx context.Context, p Pair, hosts map[string]*checked) PairReport {
	r := PairReport{Source: p.Source, Destination: p.Destination, Observer: p.Observer, Guest: p.guest().String()}
	problem := func(text, mend string) { r.Problems = append(r.Problems, Problem{Text: text, Mend: mend}) }
	from, to, observer := hosts[p.Source], hosts[p.Destination], hosts[p.Observer]
	if observer == nil {
		observer = &checked{end: end{at: host.Local()}, report: &HostReport{}}
		if observer.look, observer.err = hostnet.LookTask().Ask(ctx, observer.at, hostnet.Look{}); observer.err != nil {
			problem(observer.err.Error(), "")
		}
	}
	if from.err == nil && to.err == nil && to.link.IsValid() {
		switch s, err := hostnet.TrySpeed(ctx, from.at, to.at, to.link); {
		case err != nil:
			problem(err.Error(), "see the routes between the link addresses, and firewalls")
		default:
			r.Throughput, r.RoundTrip = s.BytesPerSecond, s.RoundTrip
		}
	}
	switch overlay := from.entry.Overlay; {
	case observer.err != nil:
	case overlay && !observer.look.Root:
		problem("only root can make an overlay, and "+observer.name()+" is not root's", "log in as root there")
	case !overlay:
		if _, _, ok := observer.onNetwork(p.guest()); !ok {
			problem(noObserver(&observer.end, p.guest(), from.entry.Bridge).Error(), "")
		}
	}
	r.OK = len(r.Problems) == 0 && from.usable() && to.usable() && observer.usable()
	return r
}

// Err is nil where every pair could migrate.
func (r *Report) Err() error {
	if len(r.Pairs) == 0 {
		return &Error{r.File, 1, "no pairs: add [[pair]] with source and destination"}
	}
	var errs []error
	for _, p := range r.Pairs {
		if !p.OK {
			errs = append(errs, fmt.Errorf("no guest can migrate from %s to %s", p.Source, p.Destination))
		}
	}
	return errors.Join(errs...)
}
