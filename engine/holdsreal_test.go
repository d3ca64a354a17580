package engine_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
)

// The interleavings that real QEMUs can be brought into.

// link is a network of two hosts, each a namespace of its own, whose link can be dropped: what is sent is gone, and
// nobody is told.
type link struct {
	t   *testing.T
	net *hostnet.Network
	mu  sync.Mutex
	off bool
}

var links atomic.Int64

// newLink makes one. The hosts know each other's hardware address for good, so that a packet into the dropped link is
// lost like one in a filter: a host that asked in vain for an address would tell the sender.
func newLink(t *testing.T) *link {
	t.Helper()
	if os.Geteuid() != 0 {
		guesttest.Unable(t, "not root: no network namespaces")
	}
	n, err := hostnet.Spec{Owner: fmt.Sprintf("drop-%d-%d", os.Getpid(), links.Add(1))}.Apply(t.Context())
	if err != nil {
		guesttest.Unable(t, err)
	}
	l := &link{t: t, net: n}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	hardware := map[string]net.HardwareAddr{}
	for _, h := range []string{"a", "b"} {
		l.inside(h, func(k *netlink.Handle) error {
			bridge, err := k.LinkByName("qmigbr0")
			if err == nil {
				hardware[h] = bridge.Attrs().HardwareAddr
			}
			return err
		})
	}
	for h, other := range map[string]string{"a": "b", "b": "a"} {
		l.inside(h, func(k *netlink.Handle) error {
			bridge, err := k.LinkByName("qmigbr0")
			if err != nil {
				return err
			}
			return k.NeighSet(&netlink.Neigh{
				LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: n.Address(other).AsSlice(), HardwareAddr: hardware[other],
			})
		})
	}
	return l
}

// inside runs f in a host's namespace, on a thread that ends with it.
func (l *link) inside(host string, f func(*netlink.Handle) error) {
	l.t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		path := filepath.Join("/run/netns", strings.TrimPrefix(l.net.Host(host).Name(), "netns:"))
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		k, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err == nil {
			err = f(k)
			k.Close()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		l.t.Fatal(err)
	}
}

// set drops the link, or lets it through again. Any goroutine may call it; it is harmless twice.
func (l *link) set(up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.off == !up {
		return
	}
	if err := l.net.SetLink("b", up); err != nil {
		l.t.Error(err)
	}
	l.off = !up
}

func (l *link) address(host string) netip.Addr { return l.net.Address(host) }

// trial is newTrial with a QEMU on each host, and a plan whose destination listens on its own.
func (l *link) trial(qemu string, change func(a, b *guest.Spec)) *trial {
	l.t.Helper()
	src, dst := pairOn(l.t, [2]host.Host{l.net.Host("a"), l.net.Host("b")}, qemu, change)
	x := trialOf(src, dst, true)
	x.plan.Listen = fmt.Sprintf("tcp:%s:0", l.address("b"))
	x.plan.StallLimit, x.plan.RecoverLimit = time.Second, 2*time.Second
	return x
}

// TestDroppedRoute is case 5 of TestHoldsPreCopy: the source connects into a route in which all is dropped, and
// somebody asks to stop. 7.2 stays in `cancelling` until the kernel gives up, 10.0 does not.
func TestDroppedRoute(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
			t.Run(string(mode), func(t *testing.T) {
				t.Parallel()
				l := newLink(t)
				x := l.trial(qemu, nil)
				x.plan.Mode = mode
				x.run(t, sent(record.Source, "migrate"), 0, func() {
					l.set(false)
					time.AfterFunc(time.Second, x.cancel)
				})
				x.check(t)
				x.say(t, "migrate")
				if x.a != "running" || x.b != "dead" || x.rec.GuestOn != record.Source || x.rec.Outcome != record.Cancelled {
					t.Errorf("source %s, destination %s, guest on %s, %s: %v", x.a, x.b, x.rec.GuestOn, x.rec.Outcome, x.err)
				}
			})
		}
	})
}

// TestSilentSource is case 14 of TestHoldsPreCopy: SIGSTOP for the source that copies a guest that we have stopped,
// and SIGCONT a while later.
func TestSilentSource(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		t.Parallel()
		x := newTrial(t, qemu, true, nil)
		x.plan = small(plan.Plan{Mode: record.StopAndCopyMode, MaxBandwidth: slow, Listen: "tcp:127.0.0.1:0"})
		x.run(t, got(record.Source, `"status": "active"`), 0, func() {
			if err := x.src.Process().Signal(syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
			x.background.Go(func() {
				time.Sleep(4 * time.Second)
				_ = x.src.Process().Signal(syscall.SIGCONT)
			})
		})
		x.check(t)
		x.say(t, "active")
		if x.err == nil || !strings.Contains(x.err.Error(), "source QEMU has not answered") || x.b != "dead" {
			t.Errorf("source %s, destination %s: %v", x.a, x.b, x.err)
		}
		if x.a != "running" && x.rec.GuestOn == record.Source {
			t.Errorf("said to be on the source, which is %s: %v", x.a, x.err)
		}
		x.recovered(t)
		if x.a != "running" {
			t.Errorf("source %s after recovery", x.a)
		}
	})
}

// powerOff is a disk whose boot sector waits for a time and then powers the machine off.
func powerOff(t *testing.T, after time.Duration) string {
	us := uint32(after.Microseconds())
	return bootSector(t,
		0xb4, 0x86, // mov ah, 0x86: wait
		0xb9, byte(us>>16), byte(us>>24), // mov cx, high half of the microseconds
		0xba, byte(us), byte(us>>8), // mov dx, low half
		0xcd, 0x15, // int 0x15
		0xba, 0x04, 0x06, // mov dx, 0x604: q35's PM1a control block
		0xb8, 0x00, 0x20, // mov ax, 0x2000: sleep, to S5
		0xef,       // out dx, ax
		0xeb, 0xfe, // jmp $
	)
}

// sleepsWhenReset is a disk whose boot sector suspends the machine (S3) from the second boot on. A byte of the clock's
// memory, which outlives a reset, tells it which one it is.
func sleepsWhenReset(t *testing.T) string {
	return bootSector(t,
		0xb0, 0x7f, 0xe6, 0x70, // mov al, 0x7f; out 0x70, al: the byte
		0xe4, 0x71, 0x3c, 0x5a, // in al, 0x71; cmp al, 0x5a: ours?
		0x74, 0x0a, // je: second boot
		0xb0, 0x7f, 0xe6, 0x70, 0xb0, 0x5a, 0xe6, 0x71, // from now on it is
		0xeb, 0xfe, // jmp $
		0xba, 0x04, 0x06, // mov dx, 0x604: q35's PM1a control block
		0xb8, 0x00, 0x24, // mov ax, 0x2400: sleep, to S3
		0xef,       // out dx, ax
		0xeb, 0xfe, // jmp $
	)
}

// bootSector is a disk with this code in its boot sector.
func bootSector(t *testing.T, code ...byte) string {
	t.Helper()
	disk := make([]byte, 1<<20)
	copy(disk, code)
	disk[510], disk[511] = 0x55, 0xaa
	name := filepath.Join(guesttest.Dir(t), "boot")
	if err := os.WriteFile(name, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// boots is how a QEMU boots from such a disk.
func boots(disk string) []string {
	drive := "if=none,id=d,format=raw,readonly=on,file=" + disk
	return []string{"-drive", drive, "-device", "virtio-blk-pci,drive=d,bootindex=0"}
}

// TestPowersOff is case 15 of TestHoldsPreCopy: a guest that powers itself off while it is copied.
func TestPowersOff(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		t.Parallel()
		disk := powerOff(t, 700*time.Millisecond)
		x := newTrial(t, qemu, true, func(a, b *guest.Spec) {
			a.Memory, b.Memory = 512<<20, 512<<20 // takes seconds to copy
			a.Extra = boots(disk)
			b.Extra = a.Extra
		})
		x.plan = plan.Plan{MaxBandwidth: slow}
		x.run(t, never, 0, nil)
		x.killed = record.Source // by itself
		x.look(t)
		x.say(t, "power off")
		if x.a != "dead" || x.b != "dead" || x.rec.Outcome != guestEnded || x.rec.GuestOn != record.None {
			t.Errorf("source %s, destination %s, guest on %s, %s: %v", x.a, x.b, x.rec.GuestOn, x.rec.Outcome, x.err)
		}
		var stage *record.StageError
		said := fmt.Sprint(x.err)
		if !errors.As(x.err, &stage) || !strings.Contains(said, "shut down") || strings.Contains(said, "is lost") {
			t.Error(said)
		}
	})
}

// TestGuestLife: in one migration a guest is stopped and continued, reset, and goes to sleep. QEMU 7.2 wakes it for the
// switch-over. With -no-reboot the same reset is its end.
func TestGuestLife(t *testing.T) {
	active := got(record.Source, `"status": "active"`)
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		t.Run("lives", func(t *testing.T) {
			t.Parallel()
			disk := sleepsWhenReset(t)
			x := newTrial(t, qemu, true, func(a, b *guest.Spec) {
				// takes half a minute to copy, unless it is told to be fast
				a.Memory, b.Memory = 512<<20, 512<<20
				a.Extra = append(boots(disk), "-action", "reboot=reset") // our guests have -no-reboot
				b.Extra = a.Extra
			})
			x.plan = plan.Plan{MaxBandwidth: slow}
			x.run(t, active, 0, func() {
				x.background.Go(func() {
					_ = x.somebody(t, record.Source, "stop")
					_ = x.somebody(t, record.Source, "cont")
					// It is reset again if it had not booted yet, each time after a longer while. One that has just fallen asleep may
					// be woken by that, so it must still sleep a moment later.
					asleep := func() bool {
						x.trigger.mu.Lock()
						defer x.trigger.mu.Unlock()
						slept := false
						for _, line := range x.trigger.seen {
							slept = strings.Contains(line, "event SUSPEND") || slept && !strings.Contains(line, "event RESET")
						}
						return slept
					}
					sleeps := func() bool {
						if !asleep() {
							return false
						}
						time.Sleep(300 * time.Millisecond)
						return asleep()
					}
					for wait := 2 * time.Second; !sleeps(); wait *= 2 {
						if wait > 40*time.Second {
							t.Error("the guest never slept")
							break
						}
						_ = x.somebody(t, record.Source, "system_reset")
						for begun := time.Now(); time.Since(begun) < wait && !sleeps(); {
							time.Sleep(50 * time.Millisecond)
						}
					}
					_ = x.somebodySets(t, record.Source, "migrate-set-parameters", map[string]any{"max-bandwidth": 1 << 30})
				})
			})
			x.check(t)
			x.say(t, "reset and sleep")
			if asleep := x.b == "suspended"; asleep == strings.Contains(t.Name(), "qemu-7.2") ||
				x.rec.Outcome != record.Completed {
				t.Errorf("destination %s, %s: %v", x.b, x.rec.Outcome, x.err)
			}
			said := fmt.Sprint(x.rec.Warnings)
			for _, text := range []string{"stopped the guest on the source", "continued it", "reset", "host-qmp-system-reset",
				"suspended (ACPI S3) on the source"} {
				if !strings.Contains(said, text) {
					t.Errorf("%q is not in %s", text, said)
				}
			}
			if x.rec.Downtime != (record.Downtime{}) {
				t.Errorf("a guest that slept had a downtime: %+v", x.rec.Downtime)
			}
		})
		t.Run("ends", func(t *testing.T) {
			t.Parallel()
			x := newTrial(t, qemu, true, func(a, b *guest.Spec) {
				a.Extra, b.Extra = []string{"-no-reboot"},
					[]string{"-no-reboot"}
			})
			x.plan = plan.Plan{MaxBandwidth: slow}
			x.run(t, active, 0, func() {
				x.background.Go(func() { _ = x.somebody(t, record.Source, "system_reset") })
			})
			x.killed = record.Source // by itself
			x.look(t)
			x.say(t, "reset under -no-reboot")
			if x.a != "dead" || x.b != "dead" || x.rec.Outcome != guestEnded ||
				!strings.Contains(fmt.Sprint(x.err), "the guest was reset on the source") {
				t.Errorf("source %s, destination %s, %s: %v", x.a, x.b, x.rec.Outcome, x.err)
			}
		})
	})
}

// TestLostAtTheEnd is case 16 of TestHoldsPostCopy: the link is lost when the source has sent all of a post-copy into
// it and the destination has not all.
func TestLostAtTheEnd(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		for _, notice := range []bool{true, false} {
			t.Run(fmt.Sprintf("notice=%v", notice), func(t *testing.T) {
				t.Parallel()
				const rate = 256 << 10
				x := newTrial(t, qemu, true, nil)
				free, err := net.Listen("tcp", "127.0.0.2:0")
				if err != nil {
					t.Fatal(err)
				}
				address := free.Addr().String()
				free.Close()
				p := startProxy(t, func() string { return address })
				x.plan = plan.Plan{
					Mode: record.PostCopyMode, Listen: "tcp:" + address, Connect: "tcp:" + p.l.Addr().String(),
					MaxBandwidth: rate, Parameters: map[string]string{"max-postcopy-bandwidth": fmt.Sprint(rate)},
					StallLimit: time.Second, RecoverLimit: 3 * time.Second,
				}
				if notice {
					x.plan.StallLimit = 20 * time.Second
				}
				x.run(t, event(record.Destination, "RESUME"), 0, func() {
					p.hold.Store(true)
					if notice { // when all is in the way that the sockets' buffers hold
						x.background.Go(func() {
							time.Sleep(2 * time.Second)
							p.cut()
						})
					}
				})
				within.Wait(t, "the cut", &x.background)
				x.a, x.b = state(t, x.src), "silent" // it may be: it stands still at the first page that it misses
				x.truth(t)
				x.say(t, "the end of post-copy")
				if x.a == "running" {
					t.Errorf("TWO GUESTS RUN: the source runs it, which the destination has run: %v %q", x.err, x.rec.Warnings)
				}
				select {
				case <-x.dst.Process().Done():
					t.Errorf("the destination, which ran the guest, was ended: %v", x.err)
				default:
				}
			})
		}
	})
}
