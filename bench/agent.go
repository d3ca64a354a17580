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

	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
)

// observed is one way to watch a guest from within: which of the agent's observers run.
type observed struct {
	name        string
	beats, loop bool
	rates       []float64 // Dhrystones per second of the vCPU's processor time
}

const (
	agentTurn   = time.Second
	agentSettle = 100 * time.Millisecond // after a change, before a turn is counted
)

// agent is what the agent's observers cost the guest: what a loop that only computes gets done in a second of its vCPU's processor time, with the heartbeats
// (5 ms, by UDP and on the port) and the clock loop (1 ms) and without them, in turns. Processor time and not the clock's, for what others
// take of the machine is none of the agent's.
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
		rate, beat, loop, err := agentRate(ctx, agent, vm, w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		w.rates = append(w.rates, rate)
		if w.beats && w.loop {
			beatCPU, loopCPU = append(beatCPU, beat), append(loopCPU, loop)
		}
	}
	for _, w := range ways[1:] {
		target := ""
		if w.beats && w.loop {
			target = "< 1"
		}
		var cost []float64
		for i, v := range w.rates {
			cost = append(cost, 100*(1-v/ways[0].rates[i]))
		}
		r.add("cost of "+w.name+" to the guest's vCPU", "percent", target, ofMedian(cost))
	}
	r.add("heartbeats, by the guest's own accounting", "% of its time", "", ofMedian(beatCPU))
	r.add("clock loop, by the guest's own accounting", "% of its time", "", ofMedian(loopCPU))
	r.add("Dhrystones with nothing beside", "1/s of the vCPU's CPU time", "", ofMedian(ways[0].rates))
	r.note("QEMU %s, TCG, 1 vCPU, Dhrystone 2.1 in the agent; a cost is 1 - (Dhrystones per second of the vCPU thread's schedstat with / without) of neighbours in time, turns of %v; the counting into bins is in all of them", q.Version, agentTurn)
	return nil
}

// agentRate is one turn.
func agentRate(ctx context.Context, agent *guest.Agent, vm *guest.VM, w *observed) (rate, beat, loop float64, err error) {
	interval := time.Duration(0)
	if w.beats {
		interval = wire.DefaultBeatInterval
	}
	if err := agent.Call(ctx, wire.DoBeat, wire.BeatSet{Interval: &interval}, nil); err != nil {
		return 0, 0, 0, err
	}
	if err := agent.Call(ctx, wire.DoClockReset, wire.ClockReset{}, nil); err != nil {
		return 0, 0, 0, err
	}
	if !w.loop {
		if err := agent.Call(ctx, wire.DoClockStop, nil, nil); err != nil {
			return 0, 0, 0, err
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
		return 0, 0, 0, err
	}
	select {
	case <-time.After(agentTurn):
	case <-ctx.Done():
		return 0, 0, 0, context.Cause(ctx)
	}
	last, err := take()
	if err != nil {
		return 0, 0, 0, err
	}
	if last.status.State != wire.Running || last.used <= first.used {
		return 0, 0, 0, fmt.Errorf("the workload is %s, and its vCPU had %v: %s", last.status.State, last.used-first.used, last.status.Error)
	}
	span := last.status.Elapsed - first.status.Elapsed
	return float64(last.status.Events-first.status.Events) / (last.used - first.used).Seconds(),
		100 * float64(last.beats.CPU-first.beats.CPU) / float64(span), 100 * float64(last.loop.CPU-first.loop.CPU) / float64(span), nil
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
