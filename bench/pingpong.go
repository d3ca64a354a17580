package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// pingPong is a guest that is booted once and then migrated again and again, each time to a new QEMU.
type pingPong struct {
	base string
	host host.Host
	spec guest.Spec
	vm   *guest.VM // the one that has the guest
	made int
	boot string // the guest's boot id, if it has an agent
}

// settle is how long a new QEMU is left alone before it is migrated to.
const settle = 100 * time.Millisecond

// realGuest boots the lab's guest, idle, on this machine itself and without a network card: what a network would add is
// none of the engine's.
func (b *bench) realGuest(ctx context.Context, q guest.Binary, name string) (*pingPong, error) {
	p := &pingPong{
		base: filepath.Join(b.dir, name+guest.Series(q.Version)),
		spec: guest.Spec{QEMU: q.Path, Image: b.image, Memory: guest.SafeMemory(q.Version, "tcg", 256<<20)},
	}
	err := p.start(ctx, host.Local())
	if err == nil {
		err = p.hello(ctx)
	}
	if err != nil {
		p.close(&err)
	}
	return p, err
}

func (p *pingPong) start(ctx context.Context, h host.Host) error {
	p.host = h
	vm, err := p.begin(ctx, false)
	p.vm = vm
	return err
}

// begin starts one more QEMU.
func (p *pingPong) begin(ctx context.Context, incoming bool) (*guest.VM, error) {
	s := p.spec
	p.made++
	s.Name = fmt.Sprintf("bench-%d", p.made)
	s.Dir = filepath.Join(p.base, fmt.Sprint(p.made))
	s.Incoming, s.Paused = incoming, incoming
	return guest.Start(ctx, p.host, s)
}

// next starts a destination.
func (p *pingPong) next(ctx context.Context) (*guest.VM, error) {
	vm, err := p.begin(ctx, true)
	if err == nil {
		time.Sleep(settle)
	}
	return vm, err
}

// hello asks the guest whether it is there, and still the same one.
func (p *pingPong) hello(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	nc, err := p.vm.Dial(ctx, guest.AgentIO)
	if err != nil {
		return fmt.Errorf("reach the guest's agent: %w", err)
	}
	agent := guest.NewAgent(nc)
	defer agent.Close()
	hello, err := agent.Ready(ctx)
	if err != nil {
		return fmt.Errorf("wait for the guest: %w", err)
	}
	if p.boot == "" {
		p.boot = hello.BootID
		return agent.Call(ctx, wire.DoWorkloadStart, wire.Workload{Name: "idle"}, nil)
	}
	if hello.BootID != p.boot {
		return errors.New("the guest has rebooted on its way")
	}
	return nil
}

// migrate moves the guest to a new QEMU and ends the old one. Around may alter the endpoints.
func (p *pingPong) migrate(ctx context.Context, planned plan.Plan, o plan.Options,
	around func(src, dst *endpoint.Endpoint)) (*record.Migration, error) {
	destination, err := p.next(ctx)
	if err != nil {
		return nil, err
	}
	src, dst := connect.Endpoint(p.vm), connect.Endpoint(destination)
	if around != nil {
		around(src, dst)
	}
	rec, err := engine.Migrate(ctx, src, dst, planned, o)
	return rec, errors.Join(err, p.moved(destination, err))
}

// moved goes on from the destination, or from the source if the migration failed.
func (p *pingPong) moved(destination *guest.VM, failed error) error {
	old := destination
	if failed == nil {
		old, p.vm = p.vm, destination
	}
	return old.Close()
}

// close ends the QEMU; its error joins the caller's.
func (p *pingPong) close(err *error) {
	if p.vm != nil {
		*err = errors.Join(*err, p.vm.Close())
		p.vm = nil
	}
}
