package connect

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/tunnel"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/host/hosttest"
	"qmigrate/qmp"
)

// TestTunnelKilled: a tunnel that goes in pre-copy leaves the guest on the source.
func TestTunnelKilled(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, kind := range []plan.TunnelKind{plan.TLSTunnel, plan.SSHTunnel} {
			t.Run(string(kind), func(t *testing.T) {
				dir := guesttest.Dir(t)
				start := func(name string, incoming bool) *guest.VM {
					vm, err := guest.Start(within.Context(t), host.Local(),
						guest.Spec{Name: name, QEMU: qemu, Memory: 64 << 20, Dir: filepath.Join(dir, name), Incoming: incoming,
							Paused: incoming})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() {
						if err := vm.Close(); err != nil {
							t.Error(err)
						}
					})
					return vm
				}
				src, dst := start("a", false), start("b", true)
				tun, err := OpenTunnel(within.Context(t),
					TunnelSpec{Kind: kind, Source: host.Local(), Destination: host.Local(), Address: "127.0.0.1",
						In: filepath.Join(dir, "in"), Out: filepath.Join(dir, "out")})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(within.Context(t), time.Minute)
				defer cancel()
				killed := false
				r, err := engine.Migrate(ctx, Endpoint(src), Endpoint(dst), plan.Plan{
					Tunnel: kind, Listen: "unix:" + filepath.Join(dir, "out"), Connect: "unix:" +
						filepath.Join(dir, "in"), MaxBandwidth: 32 << 10,
				}, plan.Options{Sampled: func(s record.Sample) {
					if !killed && s.Transferred != nil && *s.Transferred > 16<<10 {
						killed = true
						tun.Close()
					}
				}})
				tun.Close()
				var stage *record.StageError
				if !killed || !errors.As(err, &stage) || stage.Guest != record.Source || ctx.Err() != nil {
					t.Fatalf("killed %v: %v", killed, err)
				}
				if r.GuestOn != record.Source {
					t.Errorf("guest on %s", r.GuestOn)
				}
				if status := runState(t, src); status != "running" {
					t.Errorf("source is %s", status)
				}
			})
		}
	})
}

// runState asks a QEMU.
func runState(t *testing.T, vm *guest.VM) string {
	t.Helper()
	e := Endpoint(vm)
	c, err := e.Talk(within.Context(t), e.Control, "", qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var status struct {
		Status string `json:"status"`
	}
	if err := c.Execute(within.Context(t), "query-status", nil, &status); err != nil {
		t.Fatal(err)
	}
	return status.Status
}

// TestTunnelFar: each half on a host of its own; a migration goes through. A stream goes on when the channels close, and
// the halves end when nothing is in them any more.
func TestTunnelFar(t *testing.T) {
	hosts := hosttest.New(t, nil)
	var at [2]host.Host
	for i, name := range []string{"ssh://a", "ssh://b"} {
		var err error
		if at[i], err = hosts.Pool.Find(within.Context(t), name); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []plan.TunnelKind{plan.TLSTunnel, plan.SSHTunnel} {
		dir := guesttest.Dir(t)
		folder := func(name string) *tunnel.Folder {
			return &tunnel.Folder{Path: filepath.Join(dir, name), UID: os.Geteuid(), GID: os.Getegid()}
		}
		spec := TunnelSpec{Kind: kind, Source: at[0], Destination: at[1], Address: "127.0.0.1",
			In: filepath.Join(dir, "in/s"), Out: filepath.Join(dir, "out/s"), InFolder: folder("in"), OutFolder: folder("out")}
		tun, err := OpenTunnel(within.Context(t), spec)
		if err != nil {
			t.Fatal(err)
		}
		qemu := guesttest.QEMU(t, "10.0")
		var vms [2]*guest.VM
		for i, name := range []string{"a", "b"} {
			if vms[i], err = guest.Start(within.Context(t), host.Local(), guest.Spec{Name: name, QEMU: qemu, Memory: 16 << 20,
				Dir: filepath.Join(dir, name), Incoming: i == 1, Paused: i == 1}); err != nil {
				t.Fatal(err)
			}
			defer vms[i].Close()
		}
		rec, err := engine.Migrate(within.Context(t), Endpoint(vms[0]), Endpoint(vms[1]), plan.Plan{Tunnel: kind,
			Listen: "unix:" + spec.Out, Connect: "unix:" + spec.In}, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		tun.Note(rec)
		if rec.Tunnel.Bytes < 1<<10 || rec.Tunnel.CPU == 0 || len(rec.Warnings) > 0 {
			t.Errorf("%s: %+v, %q", kind, rec.Tunnel, rec.Warnings)
		}
		for _, f := range []string{"in", "out"} {
			if _, err := os.Stat(filepath.Join(dir, f)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", f, err)
			}
		}
	}
	dir := guesttest.Dir(t)
	out, err := net.Listen("unix", filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	tun, err := OpenTunnel(within.Context(t), TunnelSpec{Kind: plan.TLSTunnel, Source: at[0], Destination: at[1], Address: "127.0.0.1",
		In: filepath.Join(dir, "in/s"), Out: out.Addr().String(),
		InFolder: &tunnel.Folder{Path: filepath.Join(dir, "in"), UID: os.Geteuid(), GID: os.Getegid()}})
	if err != nil {
		t.Fatal(err)
	}
	near, err := net.Dial("unix", filepath.Join(dir, "in/s"))
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	say := func(text string) {
		t.Helper()
		if _, err := near.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	say("before")
	far, err := out.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	for _, nc := range []net.Conn{near, far} {
		_ = nc.SetDeadline(time.Now().Add(within.Limit))
	}
	hear := func(want string) {
		t.Helper()
		b := make([]byte, len(want))
		if _, err := io.ReadFull(far, b); err != nil || string(b) != want {
			t.Errorf("%q, %v", b, err)
		}
	}
	hear("before")
	for _, name := range []string{"a", "b"} {
		hosts.Channel(name).KillSSH()
	}
	for _, h := range at {
		within.Receive(t, "the channel's end", h.(*host.Far).Closed())
	}
	if _, trouble := tun.Close(); !strings.Contains(trouble, "goes on by itself") {
		t.Errorf("%q", trouble)
	}
	say("after")
	hear("after")
	near.Close() // and the helpers end, for which hosttest waits
}
