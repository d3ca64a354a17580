package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/lab"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
)

// observed is one way to watch a guest from within: which of the agent's observers run.
type observed struct {
	name        string
	beats, loop bool
	turns       []agentTurnFigures
}

// agentTurnFigures are those of one turn.
type agentTurnFigures struct {
	used, span, events float64 // s of the vCPU's processor time, s of the guest's clock, Dhrystones
	done               float64 // beats, or looks of the clock loop where there are no beats
	beat, loop         float64 // what the guest itself accounts, share of its clock
}

const (
	agentTurn   = time.Second
	agentSettle = 100 * time.Millisecond // after a change, before a turn is counted
)

// agent is what the agent's observers cost the guest: how much of its vCPU's processor time the heartbeats (5 ms, by UDP) and the clock loop take from a loop that
// only computes. In turns with them and without, the Dhrystones done tell how much of the vCPU thread's time went to those:
//
//	c = (u - n / r) / (k i)
//
//	c  cost, share of a vCPU       u  processor time of the vCPU's thread in a turn, s      n  Dhrystones done in it
//	k  beats, or looks, in it      r  Dhrystones a second of processor time in the turn without, 1/s
//	i  their interval, s: a guest that gets little of the processor misses some, which cost nothing
//
// So it does not matter how much of the processor others take meanwhile.
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
	spec := guest.Spec{QEMU: q.Path, Image: b.image, Name: "bench-agent", Dir: filepath.Join(b.dir, "agent"), Memory: 256 << 20, NIC: guest.NIC{TAP: network.Spec().Hosts[0].TAPs[0].Name}}
	boot := wire.Boot{IP: netip.PrefixFrom(network.GuestAddress(0), network.Prefix().Bits()), Gateway: network.Gateway(), Beat: netip.AddrPortFrom(network.Gateway(), 7777)}
	spec.Image.Append = strings.TrimSpace(spec.Image.Append + " " + strings.Join(boot.Words(), " "))
	sink, err := network.Observer().ListenPacket(ctx, "udp", boot.Beat.String()) // or each beat would be answered with an error
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
	ways := []*observed{{name: "nothing"}, {name: "heartbeats", beats: true}, {name: "clock loop", loop: true}, {name: "heartbeats and clock loop", beats: true, loop: true}}
	var beatCPU, loopCPU []float64
	for i := range b.pick(4, 25) * len(ways) {
		w := ways[(i+i/len(ways))%len(ways)] // who comes first changes
		x, err := observedTurn(ctx, agent, vm, w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		w.turns = append(w.turns, x)
		if w.beats && w.loop {
			beatCPU, loopCPU = append(beatCPU, 100*x.beat), append(loopCPU, 100*x.loop)
		}
	}
	for _, w := range ways[1:] {
		target := ""
		if w.beats && w.loop {
			target = "< 1"
		}
		var cost []float64
		for i, x := range w.turns {
			without := ways[0].turns[i]
			cost = append(cost, 100*(x.used-x.events*without.used/without.events)/(x.done*wire.DefaultBeatInterval.Seconds()))
		}
		r.add("cost of "+w.name, "% of a vCPU", target, ofMedian(cost))
	}
	r.add("heartbeats, by the guest's own accounting", "% of its time", "", ofMedian(beatCPU))
	r.add("clock loop, by the guest's own accounting", "% of its time", "", ofMedian(loopCPU))
	var rates, shares []float64
	for _, x := range ways[0].turns {
		rates, shares = append(rates, x.events/x.used), append(shares, 100*x.used/x.span)
	}
	r.add("Dhrystones with nothing beside", "1/s of processor time", "", ofMedian(rates))
	r.add("processor that the vCPU got then", "% of a core", "", ofMedian(shares))
	r.note("QEMU %s, TCG, 1 vCPU, Dhrystone 2.1 in the agent, heartbeats and clock loop each 5 ms; a cost is the vCPU's processor time that did not go to Dhrystones, by neighbours in time, turns of %v, as if no beat was missed; the counting into bins is in all of them", q.Version, agentTurn)
	return nil
}

func observedTurn(ctx context.Context, agent *guest.Agent, vm *guest.VM, w *observed) (x agentTurnFigures, err error) {
	interval := time.Duration(0)
	if w.beats {
		interval = wire.DefaultBeatInterval
	}
	if err := agent.Call(ctx, wire.DoBeat, wire.BeatSet{Interval: &interval}, nil); err != nil {
		return x, err
	}
	if err := agent.Call(ctx, wire.DoClockReset, wire.ClockReset{Interval: lab.ClockInterval}, nil); err != nil {
		return x, err
	}
	if !w.loop {
		if err := agent.Call(ctx, wire.DoClockStop, nil, nil); err != nil {
			return x, err
		}
	}
	time.Sleep(agentSettle)
	type look struct {
		status wire.Status
		used   time.Duration
		beats  wire.BeatReport
		loop   wire.ClockReport
	}
	take := func() (l look, err error) {
		if err := agent.Call(ctx, wire.DoBeat, wire.BeatSet{}, &l.beats); err != nil {
			return l, err
		}
		if err := agent.Call(ctx, wire.DoClockReport, nil, &l.loop); err != nil {
			return l, err
		}
		if err := agent.Call(ctx, wire.DoWorkloadStatus, wire.Bins{Max: -1}, &l.status); err != nil {
			return l, err
		}
		l.used, err = vcpuTime(vm.Process().PID())
		return l, err
	}
	first, err := take()
	if err != nil {
		return x, err
	}
	select {
	case <-time.After(agentTurn):
	case <-ctx.Done():
		return x, context.Cause(ctx)
	}
	last, err := take()
	if err != nil {
		return x, err
	}
	if last.status.State != wire.Running || last.used <= first.used {
		return x, fmt.Errorf("the workload is %s, and its vCPU had %v: %s", last.status.State, last.used-first.used, last.status.Error)
	}
	x.span = (last.status.Elapsed - first.status.Elapsed).Seconds()
	x.used, x.events = (last.used - first.used).Seconds(), float64(last.status.Events-first.status.Events)
	x.beat, x.loop = (last.beats.CPU-first.beats.CPU).Seconds()/x.span, (last.loop.CPU-first.loop.CPU).Seconds()/x.span
	x.done = float64(last.loop.Turns - first.loop.Turns)
	if w.beats {
		x.done = float64(last.beats.Seq - first.beats.Seq)
	}
	if x.events == 0 || x.done == 0 && (w.beats || w.loop) {
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
			b, err := os.ReadFile(filepath.Join(filepath.Dir(name), "schedstat"))
			if err != nil {
				return 0, err
			}
			first, _, _ := strings.Cut(string(b), " ")
			ns, err := strconv.ParseInt(first, 10, 64)
			return time.Duration(ns), err
		}
	}
	return 0, fmt.Errorf("QEMU %d has no thread of the name CPU 0", pid)
}
