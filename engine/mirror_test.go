package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/qmp"
)

const mirrorSize = 8 << 20

// mirrored gives the two sides of a pair a disk each, the source's with content.
func mirrored(t *testing.T, change func(a, b *guest.Spec)) func(a, b *guest.Spec) {
	t.Helper()
	dir := guesttest.Dir(t)
	for _, name := range []string{"a", "b"} {
		if err := storage.Create(filepath.Join(dir, name), "raw", mirrorSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := storage.Fill(filepath.Join(dir, "a"), 0, mirrorSize); err != nil {
		t.Fatal(err)
	}
	return func(a, b *guest.Spec) {
		a.Disks = []guest.Disk{{Node: "disk0", Path: filepath.Join(dir, "a")}}
		b.Disks = []guest.Disk{{Node: "disk0", Path: filepath.Join(dir, "b")}}
		if change != nil {
			change(a, b)
		}
	}
}

// left are the jobs and nodes of ours that a QEMU still has.
func left(t *testing.T, vm *guest.VM) (all []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	nc, err := vm.Dial(ctx, guest.Control)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var jobs []struct {
		Device string `json:"device"`
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := errors.Join(c.Execute(ctx, "query-block-jobs", nil, &jobs),
		c.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes)); err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		all = append(all, "job "+j.Device)
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, "qmigrate-") {
			all = append(all, "node "+n.Name)
		}
	}
	return all
}

// TestMirror copies a disk byte for byte, in each mode of copying and each mode of migration, over TCP and over a unix
// socket.
func TestMirror(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, copyMode := range []string{"background", "write-blocking"} {
			for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
				for _, listen := range []string{"", "unix"} {
					t.Run(fmt.Sprint(copyMode, mode, listen), func(t *testing.T) {
						src, dst := pair(t, qemu, mirrored(t, nil))
						p := plan.Plan{Mode: mode, Mirror: plan.Mirror{Nodes: []string{"disk0"}, CopyMode: copyMode}}
						if listen == "unix" {
							p.Listen = "unix:" + filepath.Join(guesttest.Dir(t), "m")
						}
						r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), p, plan.Options{})
						if err != nil {
							t.Fatal(err)
						}
						wantRecord(t, r)
						if s := r.Stage(record.Storage); s == nil || s.Duration <= 0 || s.Start <= r.Stage(record.Reservation).Start {
							t.Errorf("stages %+v", r.Stages)
						}
						if len(r.Mirrors) != 1 || r.Mirrors[0].Ready == nil || r.Mirrors[0].Finish == nil ||
							r.Mirrors[0].Node != "disk0" || r.Mirrors[0].CopyMode != copyMode {
							t.Errorf("mirrors %+v", r.Mirrors)
						}
						if l := left(t, src); len(l) > 0 {
							t.Errorf("the source still has %q", l)
						}
						a, errA := os.ReadFile(src.Spec().Disks[0].Path)
						b, errB := os.ReadFile(dst.Spec().Disks[0].Path)
						if errA != nil || errB != nil || string(a) != string(b) || strings.Trim(string(a), "\x00") == "" {
							t.Errorf("the images differ, or are empty: %v %v", errA, errB)
						}
					})
				}
			}
		}
	})
}

// TestMirrorRefusals: what this pair cannot mirror is refused before anything is changed, and both sides are as they
// were.
func TestMirrorRefusals(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		nodes := plan.Mirror{Nodes: []string{"disk0"}}
		for _, test := range []struct {
			name   string
			change func(a, b *guest.Spec)
			plan   plan.Plan
			want   string
		}{
			{name: "unknown node", plan: plan.Plan{Mirror: plan.Mirror{Nodes: []string{"disk1"}}}, want: "did you mean disk0"},
			{name: "twice", plan: plan.Plan{Mirror: plan.Mirror{Nodes: []string{"disk0", "disk0"}}}, want: "each block node once"},
			{name: "copy mode", plan: plan.Plan{Mirror: plan.Mirror{Nodes: []string{"disk0"}, CopyMode: "lazy"}}, want: "have background, write-blocking"},
			{name: "no pause", plan: plan.Plan{Mirror: nodes, Capabilities: map[string]bool{"pause-before-switchover": false}}, want: "pause-before-switchover=off"},
			{name: "port 0", plan: plan.Plan{Mirror: plan.Mirror{Nodes: []string{"disk0"}, Listen: "127.0.0.1:0"}}, want: "is no port"},
			{name: "no address", plan: plan.Plan{Mirror: nodes, Listen: "exec:cat"}, want: "its own address"},
			{name: "size", plan: plan.Plan{Mirror: nodes}, want: "sizes of disk disk0", change: func(_, b *guest.Spec) {
				if err := os.Truncate(b.Disks[0].Path, mirrorSize/2); err != nil {
					t.Fatal(err)
				}
			}},
			{name: "destination lacks it", plan: plan.Plan{Mirror: nodes}, want: "", change: func(_, b *guest.Spec) { b.Disks[0].Node = "other" }},
		} {
			t.Run(test.name, func(t *testing.T) {
				src, dst := pair(t, qemu, mirrored(t, test.change))
				r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), test.plan, plan.Options{})
				wantRefusal(t, err, test.want)
				if r.Error == nil || r.Error.Stage != record.Initialization || strings.Contains(err.Error(), "\n") {
					t.Errorf("refused in %+v", r.Error)
				}
				if a, b := state(t, src), state(t, dst); a != "running" || b != "inmigrate" {
					t.Errorf("source %s, destination %s", a, b)
				}
				if l := left(t, src); len(l) > 0 {
					t.Errorf("the source has %q", l)
				}
			})
		}
		// One and the same file on both sides is found out by its lock, when the source has not been touched.
		t.Run("same file", func(t *testing.T) {
			src, dst := pair(t, qemu, mirrored(t, func(a, b *guest.Spec) { b.Disks[0].Path = a.Disks[0].Path }))
			_, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{Mirror: nodes},
				plan.Options{})
			wantRefusal(t, err, "needs no mirror")
			if a := state(t, src); a != "running" {
				t.Errorf("source %s", a)
			}
		})
	})
}

// mirrorEdges are the instants of a migration with a mirror that other migrations do not have.
func mirrorEdges() []edge {
	const s, d = record.Source, record.Destination
	return []edge{
		sent(d, "nbd-server-start"), sent(d, "block-export-add"), sent(s, "blockdev-add"), sent(s,
			"blockdev-mirror"), event(s, "BLOCK_JOB_READY"), done(record.Storage),
		sent(s, "migrate"), event(s, "STOP"), sent(s, "block-job-cancel"), event(s, "BLOCK_JOB_COMPLETED"), sent(s,
			"blockdev-del"), sent(d, "nbd-server-stop"), sent(s, "migrate-continue"),
		done(record.StopAndCopy), sent(d, "cont"), event(d, "RESUME"),
	}
}

// TestMirrorKilled kills either QEMU, cuts the NBD server off, or cancels, at each edge: there are never two guests, a
// source that has the guest has its own disk and nothing of ours on it, and where the destination has the guest its
// disk is whole.
func TestMirrorKilled(t *testing.T) {
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		for e, at := range mirrorEdges() {
			for w, what := range []string{"source", "destination", "server", "cancel"} {
				if !mine(e + w) {
					continue
				}
				t.Run(fmt.Sprint(at, "/", what), func(t *testing.T) {
					t.Parallel()
					mirrorTrial(t, qemu, at, 0, what)
				})
			}
		}
	})
}

func mirrorTrial(t *testing.T, qemu string, at edge, after time.Duration, what string) {
	x := newTrial(t, qemu, true, mirrored(t, nil))
	x.plan = plan.Plan{MaxBandwidth: 512 << 10,
		Mirror: plan.Mirror{Nodes: []string{"disk0"}, CopyMode: []string{"background", "write-blocking"}[rand.IntN(2)]}}
	x.run(t, at, after, func() {
		switch what {
		case "source", "destination":
			x.kill(t, record.Holder(what))
		case "server": // refused where there is none yet, or no more
			_ = x.somebody(t, record.Destination, "nbd-server-stop")
		case "cancel":
			x.cancel()
		}
	})
	x.check(t)
	if x.killed != "" {
		x.afterKill(t)
	}
	x.say(t, at.String())
	if what == "server" || what == "cancel" {
		if x.err != nil && x.a != "running" && x.b != "running" {
			t.Errorf("nobody was killed, and nobody runs the guest: %v", x.err)
		}
	}
	if x.a == "running" || x.a == "paused" || x.a == "postmigrate" {
		if l := left(t, x.src); len(l) > 0 {
			t.Errorf("the source still has %q: %v, warnings %q", l, x.err, x.rec.Warnings)
		}
	}
	if x.b == "running" {
		differ(t, x)
	}
	if t.Failed() {
		x.trigger.mu.Lock()
		t.Logf("error: %v\n%s", x.err, strings.Join(x.trigger.seen, "\n"))
		x.trigger.mu.Unlock()
	}
}

// differ checks that the destination's image is the source's: the firmware writes to neither.
func differ(t *testing.T, x *trial) {
	t.Helper()
	a, errA := os.ReadFile(x.src.Spec().Disks[0].Path)
	b, errB := os.ReadFile(x.dst.Spec().Disks[0].Path)
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Errorf("the destination runs the guest on another disk than the source's: %v %v", errA, errB)
	}
}

// TestMirrorRandom is TestMirrorKilled at random moments.
func TestMirrorRandom(t *testing.T) {
	random := seed(t)
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for i := range chaos(t, 2) {
			after := time.Duration(random.Int64N(int64(600 * time.Millisecond)))
			what := []string{"source", "destination", "server", "cancel"}[random.IntN(4)]
			t.Run(fmt.Sprint(i, "/", what, "/", after), func(t *testing.T) {
				t.Parallel()
				mirrorTrial(t, qemu, never, after, what)
			})
		}
	})
}

// TestMirrorHangs stops the destination with SIGSTOP when the source is about to connect to it and when it is about to
// begin the mirror. Nobody cancels: it is found out, and ended where its process is known; the guest goes on at the
// source, and nothing of ours is left there.
func TestMirrorHangs(t *testing.T) {
	turns(t, func(t *testing.T, qemu string, mine func(int) bool) {
		n := 0
		for _, command := range []string{"blockdev-add", "blockdev-mirror"} {
			for _, known := range []bool{true, false} {
				for _, listen := range []string{"tcp", "unix"} {
					n++
					if !mine(n) {
						continue
					}
					if listen == "unix" && !known && command == "blockdev-mirror" {
						continue // a shutdown wakes nobody who waits for room in a full unix socket: only the destination's end does
					}
					t.Run(fmt.Sprint(command, "_", listen, "_", known), func(t *testing.T) {
						t.Parallel()
						x := newTrial(t, qemu, known, mirrored(t, nil))
						x.plan = plan.Plan{StallLimit: time.Second, Mirror: plan.Mirror{Nodes: []string{"disk0"}}}
						if listen == "unix" {
							x.plan.Listen = "unix:" + filepath.Join(guesttest.Dir(t), "m")
						}
						stopped := false
						x.run(t, sent(record.Source, command), 0, func() {
							stopped = true
							if err := x.dst.Process().Signal(syscall.SIGSTOP); err != nil {
								t.Error(err)
							}
						})
						if !stopped {
							t.Fatalf("the edge never came: %v", x.err)
						}
						x.a, x.b = state(t, x.src), "stopped"
						if known {
							x.b = state(t, x.dst)
						}
						x.truth(t)
						x.say(t, command)
						var failure *record.StageError
						if !errors.As(x.err, &failure) || failure.Stage != record.Storage || failure.Guest != record.Source ||
							x.a != "running" || known && x.b != "dead" {
							t.Errorf("source %s, destination %s: %v", x.a, x.b, x.err)
						}
						if command == "blockdev-mirror" && !strings.Contains(x.err.Error(), "the destination has not answered for 1s") {
							t.Errorf("does not say that the destination hangs: %v", x.err)
						}
						if l := left(t, x.src); len(l) > 0 {
							t.Errorf("the source still has %q: warnings %q", l, x.rec.Warnings)
						}
						if t.Failed() {
							x.trigger.mu.Lock()
							t.Logf("error: %v\n%s", x.err, strings.Join(x.trigger.seen, "\n"))
							x.trigger.mu.Unlock()
						}
					})
				}
			}
		}
	})
}

// TestMirrorCutIdle: the destination hangs when all is copied and nothing is on its way, and the run is cancelled. The job
// ends at once. To remove its node QEMU flushes it, and would wait for the answer in its main loop: nothing answers
// there then, and the guest stands still.
func TestMirrorCutIdle(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		t.Parallel()
		x := newTrial(t, qemu, true, mirrored(t, nil))
		x.plan = plan.Plan{Mirror: plan.Mirror{Nodes: []string{"disk0"}}}
		x.run(t, event(record.Source, "BLOCK_JOB_READY"), 0, func() {
			if err := x.dst.Process().Signal(syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
			x.cancel()
		})
		x.check(t)
		if x.a != "running" || x.b != "dead" || x.rec.Outcome != record.Cancelled {
			t.Errorf("source %s, destination %s, outcome %s: %v", x.a, x.b, x.rec.Outcome, x.err)
		}
		if !x.trigger.saw(record.Source, `"execute":"blockdev-del"`) || x.trigger.decided("source={silent") {
			t.Errorf("no node was removed, or the source hung meanwhile:\n%s", strings.Join(x.trigger.seen, "\n"))
		}
		if l := left(t, x.src); len(l) > 0 {
			t.Errorf("the source still has %q: warnings %q", l, x.rec.Warnings)
		}
	})
}

// TestMirrorRecover: what a run that was killed left of a mirror is removed by the next one.
func TestMirrorRecover(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, at := range []edge{event(record.Source, "BLOCK_JOB_READY"), sent(record.Source, "migrate"),
			event(record.Source, "STOP")} {
			t.Run(fmt.Sprint(at), func(t *testing.T) {
				x := newTrial(t, qemu, true, mirrored(t, nil))
				x.plan = plan.Plan{MaxBandwidth: 512 << 10, Mirror: plan.Mirror{Nodes: []string{"disk0"}}}
				// A run that is killed loses its monitors, reaches nothing again and so undoes nothing.
				dead := make(chan struct{})
				for _, e := range []*endpoint.Endpoint{x.from, x.to} {
					e.Process = nil
					for _, d := range []*endpoint.Dialer{&e.Control, &e.Events} {
						dial := *d
						*d = func(ctx context.Context) (net.Conn, error) {
							select {
							case <-dead:
								return nil, errors.New("killed")
							default:
								return dial(ctx)
							}
						}
					}
				}
				x.run(t, at, 0, func() {
					close(dead)
					x.cut(record.Source)
					x.cut(record.Destination)
				})
				if x.err == nil {
					t.Fatal("it went on without its monitors")
				}
				holder, said, err := engine.Recover(within.Context(t), connect.Endpoint(x.src), connect.Endpoint(x.dst),
					plan.Plan{}, plan.Options{})
				if err != nil || holder != record.Source && holder != record.Destination {
					t.Fatalf("%s %q %v", holder, said, err)
				}
				if holder == record.Source {
					if s := state(t, x.src); s != "running" {
						t.Errorf("the source is %s after %q", s, said)
					}
					if l := left(t, x.src); len(l) > 0 {
						t.Errorf("after %q the source still has %q", said, l)
					}
				}
			})
		}
	})
}
