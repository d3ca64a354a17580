package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// secured is one way to protect a migration, and the throughput of each migration by it.
type secured struct {
	name   string
	tls    plan.TLSKind
	tunnel plan.TunnelKind
	values []float64 // MiB/s
}

// secure moves a guest with full memory over loopback as fast as it goes, in five ways that take turns: plain, QEMU's
// own TLS, our tunnels.
func (b *bench) secure(ctx context.Context, r *Result) (err error) {
	q := b.qemus[0]
	p, err := b.realGuest(ctx, q, "s")
	if err != nil {
		return err
	}
	defer p.close(&err)
	if err := p.fill(ctx); err != nil {
		return err
	}
	ways := []*secured{{name: "plain"}, {name: "TLS by QEMU, x509", tls: plan.X509},
		{name: "TLS by QEMU, psk", tls: plan.PSK},
		{name: "our TLS tunnel", tunnel: plan.TLSTunnel}, {name: "our SSH tunnel", tunnel: plan.SSHTunnel}}
	for i := range b.pick(2, 10) * len(ways) {
		w := ways[(i+i/len(ways))%len(ways)] // who comes first changes
		v, err := b.throughput(ctx, p, w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		w.values = append(w.values, v)
	}
	name := "QEMU " + guest.Series(q.Version) + " "
	ratios := func(a, b *secured) estimate {
		var all []float64
		for i := range min(len(a.values), len(b.values)) {
			all = append(all, a.values[i]/b.values[i])
		}
		return ofMedian(all)
	}
	for _, w := range ways {
		r.add(name+"throughput, "+w.name, "MiB/s", "", ofMedian(w.values))
	}
	for _, w := range ways[1:] {
		r.add(name+w.name+" / plain, throughput", "ratio", "", ratios(w, ways[0]))
	}
	for _, w := range ways[3:] {
		r.add(name+w.name+" / TLS by QEMU, x509, throughput", "ratio", "", ratios(w, ways[1]))
	}
	r.note("guest of 256 MiB under TCG without a workload, half of its memory random data, loopback, max-bandwidth " +
		"unlimited; throughput is the bytes that QEMU says it sent over pre-copy .. activation; a ratio is that of " +
		"neighbours in time")
	return nil
}

// fill writes random data to half of the guest's memory.
func (p *pingPong) fill(ctx context.Context) error {
	nc, err := p.vm.Dial(ctx, guest.AgentIO)
	if err != nil {
		return fmt.Errorf("reach the guest's agent: %w", err)
	}
	agent := guest.NewAgent(nc)
	defer agent.Close()
	if err := agent.Call(ctx, wire.DoWorkloadStop, wire.Bins{Max: -1}, nil); err != nil {
		return err
	}
	return agent.Call(ctx, wire.DoFill, wire.Fill{}, nil)
}

// throughput is that of one migration, in MiB/s.
func (b *bench) throughput(ctx context.Context, p *pingPong, w *secured) (_ float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "w")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	want := plan.Plan{MaxBandwidth: -1, Tunnel: w.tunnel}
	if w.tls != "" {
		t := &plan.TLS{Kind: w.tls, SourceDir: filepath.Join(dir, "a"), DestinationDir: filepath.Join(dir, "b")}
		source, destination, err := connect.Credentials(t, want.Hosts()...)
		if err == nil {
			err = errors.Join(connect.WriteCredentials(host.Local(), t.SourceDir, source),
				connect.WriteCredentials(host.Local(), t.DestinationDir, destination))
		}
		if err != nil {
			return 0, err
		}
		want.TLS = t
	}
	if w.tunnel != "" {
		s := connect.TunnelSpec{Kind: w.tunnel, Source: host.Local(), Destination: host.Local(), Address: "127.0.0.1",
			In: filepath.Join(dir, "in"), Out: filepath.Join(dir, "out")}
		t, err := connect.OpenTunnel(ctx, s)
		if err != nil {
			return 0, err
		}
		defer t.Close()
		want.Listen, want.Connect = "unix:"+s.Out, "unix:"+s.In
	}
	rec, err := p.migrate(ctx, want, plan.Options{}, nil)
	if err != nil {
		return 0, err
	}
	var took float64
	for _, s := range rec.Stages[2:] { // after reservation
		took += s.Duration.Seconds()
	}
	if rec.Total.Transferred == nil || took == 0 {
		return 0, errors.New("the record has no bytes or no time")
	}
	return float64(*rec.Total.Transferred) / (1 << 20) / took, nil
}
