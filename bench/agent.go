package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/engine/lab"
	"qmigrate/engine/lab/observe"
	"qmigrate/engine/record/units"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
	"qmigrate/internal/procfs"
)

// observed is one way to watch a guest.
type observed struct {
	name        string
	beat, every time.Duration // intervals of the heartbeats, and of the pings and TCP echoes; 0: none
	turns       []agentTurnFigures
}

// agentTurnFigures are those of one turn.
type agentTurnFigures struct {
	used, span, events float64 // s of the vCPU's processor time, s of the guest's clock, Dhrystones
	done               float64 // beats, or pings
	rate               float64 // of the two turns with nothing around this one, 1/s of processor time
}

const (
	agentTurn   = 500 * time.Millisecond
	agentSettle = 100 * time.Millisecond // after a change, before a turn is counted
)

// agent is what the observers cost the guest: how much of its vCPU's processor time the heartbeats (by UDP, with the
// look at the clock) and the answers to pings and TCP echoes take from a loop that only computes. In turns without them
// and with, the Dhrystones done tell how much of the vCPU thread's time went to those:
//
//	c = (u - n / r) / (k i)
//
//	c  cost, share of a vCPU       u  processor time of the vCPU's thread in a turn, s      n  Dhrystones done in it
//	k  beats, or pings, in it      r  Dhrystones a second of processor time in the two turns without around it, 1/s
//	i  their interval, s: a guest that gets little of the processor misses some, which cost nothing
//
// So it does not matter how much of the processor others take meanwhile.
//
// It is one function because the equation above is read beside its turns.
func (b *bench) agent(ctx context.Context, r *Result) (err error) {
	if os.Geteuid() != 0 {
		r.note("not measured: the heartbeats need a network, and making namespaces needs root")
		return nil
	}
	q := b.qemus[0]
	network, err := hostnet.Spec{Owner: fmt.Sprintf("bench%d", os.Getpid()%10000)}.Apply(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, network.Close()) }()
	spec := guest.Spec{QEMU: q.Path, Image: b.image, Name: "bench-agent", Dir: filepath.Join(b.dir, "agent"),
		Memory: 256 << 20, NIC: guest.NIC{TAP: network.Spec().Hosts[0].TAPs[0].Name}}
	boot := wire.Boot{IP: netip.PrefixFrom(network.GuestAddress(0), network.Prefix().Bits()), Gateway: network.Gateway(),
		Beat: netip.AddrPortFrom(network.Gateway(), 7777)}
	spec.Image.Append = strings.TrimSpace(spec.Image.Append + " " + strings.Join(boot.Words(), " "))
	// or each beat would be answered with an error
	sink, err := network.Observer().ListenPacket(ctx, "udp", boot.Beat.String())
	if err != nil {
		return err
	}
	defer sink.Close()
	vm, err := guest.Start(ctx, network.Host("a"), spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	nc, err := vm.Dial(ctx, guest.AgentIO)
	if err != nil {
		return fmt.Errorf("reach the guest's agent: %w", err)
	}
	agent := guest.NewAgent(nc)
	defer agent.Close()
	go func() {
		for range agent.Beats() { // read, as a lab does
		}
	}()
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := agent.Ready(ready); err != nil {
		return fmt.Errorf("wait for the guest: %w", err)
	}
	if err := agent.Call(ctx, wire.DoWorkloadStart, wire.Workload{Name: "dhrystone"}, nil); err != nil {
		return err
	}
	nothing := &observed{name: "nothing"}
	ways := []*observed{
		{name: "heartbeats, " + units.FormatDuration(lab.BeatIntervalTCG), beat: lab.BeatIntervalTCG},
		{name: "heartbeats, " + units.FormatDuration(lab.BeatInterval), beat: lab.BeatInterval},
		{name: "pings and TCP echoes, " + units.FormatDuration(lab.PingInterval), every: lab.PingInterval},
		{name: "pings and TCP echoes, " + units.FormatDuration(lab.PingIntervalTCG), every: lab.PingIntervalTCG},
	}
	turn := func(w *observed) (x agentTurnFigures, err error) {
		if x, err = w.turn(ctx, agent, vm, network); err != nil {
			return x, fmt.Errorf("%s: %w", w.name, err)
		}
		return x, nil
	}
	before, err := turn(nothing)
	if err != nil {
		return err
	}
	for i := range b.pick(4, 120) {
		for _, w := range ways {
			if w.beat != lab.BeatIntervalTCG && i%4 != 0 { // the one with a target is small beside the noise of one turn
				continue
			}
			x, err := turn(w)
			if err != nil {
				return err
			}
			after, err := turn(nothing)
			if err != nil {
				return err
			}
			x.rate = (before.events + after.events) / (before.used + after.used)
			w.turns, nothing.turns, before = append(w.turns, x), append(nothing.turns, after), after
		}
	}
	for _, w := range ways {
		target := ""
		if w.beat == lab.BeatIntervalTCG {
			target = "< 1"
		}
		var cost []float64
		for _, x := range w.turns {
			cost = append(cost, 100*(x.used-x.events/x.rate)/(x.done*max(w.beat, w.every).Seconds()))
		}
		r.add("cost of "+w.name, "% of a vCPU", target, ofMedian(cost))
	}
	var rates, shares []float64
	for _, x := range nothing.turns {
		rates, shares = append(rates, x.events/x.used), append(shares, 100*x.used/x.span)
	}
	r.add("Dhrystones with nothing beside", "1/s of processor time", "", ofMedian(rates))
	r.add("processor that the vCPU got then", "% of a core", "", ofMedian(shares))
	r.note("QEMU %s, TCG, 1 vCPU, Dhrystone 2.1 in the agent; the longer intervals are those of a lab under TCG; a cost "+
		"is the vCPU's processor time that did not go to Dhrystones, by neighbours in time, turns of %v, as if none was "+
		"missed; the counting into bins is in all of them", q.Version, agentTurn)
	return nil
}

// turn is one turn of this way.
func (w *observed) turn(ctx context.Context, agent *guest.Agent, vm *guest.VM,
	network *hostnet.Network) (x agentTurnFigures, err error) {
	if err := agent.Call(ctx, wire.DoBeat, wire.BeatSet{Interval: &w.beat}, nil); err != nil {
		return x, err
	}
	pings := func() int { return 0 }
	if w.every > 0 {
		if pings, err = observe.Pings(ctx, network.Observer(), network.GuestAddress(0), w.every); err != nil {
			return x, err
		}
	}
	time.Sleep(agentSettle)
	type look struct {
		status wire.Status
		used   time.Duration
		beats  wire.BeatReport
	}
	take := func() (l look, err error) {
		if err := agent.Call(ctx, wire.DoBeat, wire.BeatSet{}, &l.beats); err != nil {
			return l, err
		}
		if err := agent.Call(ctx, wire.DoWorkloadStatus, wire.Bins{Max: -1}, &l.status); err != nil {
			return l, err
		}
		l.used, err = vcpuTime(vm.Process().PID())
		return l, err
	}
	begin := time.Now()
	first, err := take()
	if err == nil {
		select {
		case <-time.After(agentTurn):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	var last look
	if err == nil {
		last, err = take()
	}
	end := time.Now()
	sent := float64(pings())
	if err != nil {
		return x, err
	}
	if last.status.State != wire.Running || last.used <= first.used {
		return x, fmt.Errorf("the workload is %s, and its vCPU had %v: %s", last.status.State, last.used-first.used,
			last.status.Error)
	}
	x.span = (last.status.Elapsed - first.status.Elapsed).Seconds()
	x.used, x.events = (last.used - first.used).Seconds(), float64(last.status.Events-first.status.Events)
	x.done = float64(last.beats.Seq - first.beats.Seq)
	if w.every > 0 {
		x.done = sent * end.Sub(begin).Seconds() / (end.Sub(begin) + agentSettle).Seconds()
	}
	if x.events == 0 || x.done == 0 && w.beat+w.every > 0 {
		return x, errors.New("the guest got nothing done")
	}
	return x, nil
}

// vcpuTime is what a QEMU's first vCPU has had of the processors: the thread that -name debug-threads=on calls CPU 0.
func vcpuTime(pid int) (time.Duration, error) {
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", pid))
	if err != nil {
		return 0, err
	}
	for _, name := range all {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), "CPU 0/") {
			s, err := procfs.Dir(filepath.Dir(name)).Schedule(os.ReadFile)
			return s.Ran, err
		}
	}
	return 0, fmt.Errorf("QEMU %d has no thread of the name CPU 0", pid)
}
