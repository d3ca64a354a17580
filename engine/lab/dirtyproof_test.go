package lab

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"qmigrate/engine/connect"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// TestDirtyProof holds the page dirtier's claim against what QEMU sees (study K, figure 5): a pre-copy that is throttled so that it never ends
// synchronises the dirty bitmap every second or few. By how much the pages that were sent and those that are left grow at one is what it found newly
// dirty; a mark asked of the agent at the same moment says how many pages the dirtier claims to have written since the last. What the guest dirties
// beside it is measured in the same migration while the dirtier all but rests, over intervals as long, and taken off.
//
// By itself it takes two rates on two vCPUs. QMIGRATE_DIRTY_PROOF=1 takes all rates from 100/s to 200,000/s on 1 to 4 vCPUs and prints the table of
// docs/workloads.md.
func TestDirtyProof(t *testing.T) {
	rates, vcpus, syncs := []float64{5000, 20_000}, []int{2}, 2
	if os.Getenv("QMIGRATE_DIRTY_PROOF") == "1" {
		rates, vcpus, syncs = []float64{100, 1000, 10_000, 50_000, 200_000}, []int{1, 2, 3, 4}, 3
	}
	qemu := guesttest.QEMU(t, "10.0") // 7.2 loses dirty bits under TCG
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 1, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprintln(w, "vCPUs\tasked, writes/s\tclaimed, writes/s\tclaimed, pages/s\tseen, pages/s\tclaimed - seen, %\tguest's own, pages\tinterval, s\t")
	for _, n := range vcpus {
		p := startProof(t, qemu, n)
		own := map[time.Duration]proven{}
		for _, rate := range rates {
			p.interval = max(leastInterval, time.Duration(500/rate*float64(time.Second)))
			rest, ok := own[p.interval]
			if !ok {
				rest = p.measure(restingRate, syncs)
				own[p.interval] = rest
			}
			r := p.measure(rate, syncs)
			seen := (r.pages - rest.pages) / r.interval.Seconds()
			off := 100 * (r.claimed - seen) / r.claimed
			t.Logf("%d vCPUs, %.0f writes/s: %+v, at rest %+v: off by %+.2f %%", n, rate, r, rest, off)
			fmt.Fprintf(w, "%d\t%.0f\t%.0f\t%.0f\t%.0f\t%+.1f\t%.0f\t%.2f\t\n", n, rate, r.writes, r.claimed, seen, off, rest.pages, r.interval.Seconds())
			// Beside a low rate the guest's own pages weigh, and they are never twice the same.
			if limit := proofTolerance + 100*ownTolerance*rest.pages/(r.claimed*r.interval.Seconds()); math.Abs(off) > limit {
				t.Errorf("%d vCPUs, %.0f/s: %.1f pages/s claimed, %.1f seen: %+.2f %%, at most %.1f %% is right", n, rate, r.claimed, seen, off, limit)
			}
		}
		p.close()
	}
	_ = w.Flush()
	_, cpu := connect.Machine(t.Context(), host.Local())
	t.Logf("QEMU 10.0, TCG, on %s\n%s", cpu, table.String())
}

const (
	// proofTolerance is in percent of the claim. A mark reaches the guest some milliseconds after the synchronisation that it belongs to, and each time
	// another number of them; the dirtier's own table takes 0.6 % of the pages that it tells of.
	proofTolerance = 5.0
	// ownTolerance is by how much what the guest dirties of its own may differ from the mean while the dirtier rested.
	ownTolerance = 0.3
	// leastInterval is what is wanted between two synchronisations.
	leastInterval = 1200 * time.Millisecond
	// restingRate is the dirtier's rate while that is measured: one page in 1000 s.
	restingRate = 0.001
)

// proof is a guest with a dirtier and a pre-copy that never ends.
type proof struct {
	t        *testing.T
	ctx      context.Context
	vm       *guest.VM
	conn     *qmp.Conn
	events   *qmp.Subscription
	agent    *guest.Agent
	interval time.Duration // wanted between two synchronisations
	last     synced
	reader   net.Listener
	read     sync.WaitGroup
	until    atomic.Int64 // nothing is read from the stream before, Unix time in nanoseconds
	limit    int64        // max-bandwidth to set at the next synchronisation; 0: none
	stop     context.CancelFunc
}

// synced is one synchronisation.
type synced struct {
	at    time.Time
	pages int64 // sent so far and left to send: between two synchronisations the sum stays
	sent  int64 // bytes on the wire so far
	mark  wire.Marked
}

func startProof(t *testing.T, qemu string, vcpus int) *proof {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
	p := &proof{t: t, ctx: ctx, stop: stop, interval: time.Second}
	image := guesttest.Image(t)
	image.Append += " " + strings.Join(wire.Boot{BeatInterval: 100 * time.Millisecond}.Words(), " ")
	var err error
	p.vm, err = guest.Start(ctx, host.Local(), guest.Spec{
		Name: "proof", QEMU: qemu, Image: image, VCPUs: vcpus, Memory: 768 << 20, Dir: filepath.Join(guesttest.Dir(t), "vm"), Accelerator: "tcg",
	})
	p.must(err)
	t.Cleanup(p.close)
	nc, err := p.vm.Dial(ctx, guest.AgentIO)
	p.must(err)
	p.agent = guest.NewAgent(nc)
	_, err = p.agent.Ready(ctx)
	p.must(err)
	const set = 512 << 20 // large, so that few pages are written twice in one interval: below 90,000/s none
	p.must(p.agent.Call(ctx, wire.DoFill, wire.Fill{Bytes: set, Content: wire.Zero}, nil))
	// A zero page takes 9 bytes on the wire, so that the pre-copy can keep up with any rate; written is it all the same.
	workload, err := wire.ParseWorkload(fmt.Sprintf("dirty:rate=%v/s,working-set=%dB,pattern=sequential,content=zero,vcpus=%d", restingRate, set, vcpus))
	p.must(err)
	p.must(p.agent.Call(ctx, wire.DoWorkloadStart, workload, nil))
	control, err := p.vm.Dial(ctx, guest.Control)
	p.must(err)
	p.conn, err = qmp.NewConn(ctx, control, qmp.Options{})
	p.must(err)
	p.events = p.conn.Subscribe(64)
	p.must(p.conn.SetMigrateCapabilities(ctx, map[string]bool{"events": true}))
	p.must(p.conn.SetMigrateParameters(ctx, map[string]any{"max-bandwidth": 8 << 20, "downtime-limit": 1}))
	sink := filepath.Join(guesttest.Dir(t), "s")
	p.reader, err = net.Listen("unix", sink)
	p.must(err)
	p.read.Go(p.drain)
	p.must(p.conn.Migrate(ctx, "unix:"+sink))
	p.next()           // at set-up
	p.limit = 64 << 10 // from the end of the first pass on, or the next few would be done in no time and find nothing more
	p.last = p.next()
	return p
}

func (p *proof) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *proof) close() {
	if p.agent != nil {
		p.agent.Close()
	}
	if p.conn != nil {
		p.conn.Close()
	}
	if p.vm != nil {
		p.must(p.vm.Close())
	}
	if p.reader != nil {
		p.reader.Close()
	}
	p.read.Wait()
	p.agent, p.conn, p.vm, p.reader = nil, nil, nil, nil
	p.stop()
}

// drain reads the stream, but for the pauses. QEMU itself sends more than a hundred KiB in each tenth of a second, whatever max-bandwidth is.
func (p *proof) drain() {
	nc, err := p.reader.Accept()
	if err != nil {
		return
	}
	defer nc.Close()
	buf := make([]byte, 64<<10)
	for err == nil {
		if wait := time.Until(time.Unix(0, p.until.Load())); wait > 0 {
			time.Sleep(min(wait, 50*time.Millisecond))
			continue
		}
		_, err = nc.Read(buf)
	}
}

// syncLimit is how long a synchronisation is waited for: six times the longest interval that is wanted.
const syncLimit = 30 * time.Second

// next waits for the next synchronisation, has the dirtier mark, and reads what was found.
func (p *proof) next() synced {
	p.t.Helper()
	for {
		var e qmp.Event
		select {
		case e = <-p.events.C:
		case <-time.After(syncLimit):
			info, err := p.conn.QueryMigrate(p.ctx)
			p.t.Fatalf("waited in vain for a synchronisation of the dirty bitmap: %+v, %v", info, err)
		}
		switch {
		case e.Name == "MIGRATION" && strings.Contains(string(e.Data), "completed"):
			p.t.Fatal("the pre-copy that was to go on has ended")
		case e.Name != "MIGRATION_PASS":
			continue
		}
		s := synced{at: e.QEMUTime}
		if p.limit > 0 {
			p.must(p.conn.SetMigrateParameters(p.ctx, map[string]any{"max-bandwidth": p.limit}))
			p.limit = 0
		}
		soon, cancel := context.WithTimeout(p.ctx, syncLimit)
		defer cancel()
		p.must(p.agent.Call(soon, wire.DoWorkloadMark, nil, &s.mark))
		info, err := p.conn.QueryMigrate(p.ctx)
		p.must(err)
		s.pages, s.sent = info.Normal+info.Duplicate+info.Remaining/wire.PageSize, info.Transferred
		return s
	}
}

// bandwidth makes the next interval as long as it is wanted: if as many bytes are to be sent in it as in the last, by max-bandwidth; and where there are
// few, by not reading them before the interval is nearly over.
func (p *proof) bandwidth(s synced) {
	p.t.Helper()
	sent := float64(s.sent - p.last.sent)
	p.must(p.conn.SetMigrateParameters(p.ctx, map[string]any{"max-bandwidth": max(16<<10, int64(sent/p.interval.Seconds()))}))
	if p.interval > leastInterval {
		p.until.Store(time.Now().Add(p.interval * 3 / 4).UnixNano())
	}
	p.last = s
}

// proven is what was found over some intervals.
type proven struct {
	writes, claimed float64       // a second of the guest's clock
	pages           float64       // newly dirty, a synchronisation
	interval        time.Duration // between two synchronisations, by QEMU's stamps
}

// measure changes the dirtier's rate, lets two intervals pass that the change is in, and measures over n more.
func (p *proof) measure(rate float64, n int) (r proven) {
	p.t.Helper()
	p.must(p.agent.Call(p.ctx, wire.DoWorkloadRate, wire.NewRate{Rate: rate}, nil))
	for range 2 {
		p.bandwidth(p.next())
	}
	var clock time.Duration
	for range n {
		from := p.last
		s := p.next()
		p.bandwidth(s)
		r.writes += float64(s.mark.Writes)
		r.claimed += float64(s.mark.Distinct)
		r.pages += float64(s.pages - from.pages)
		clock += s.mark.At - s.mark.From
		r.interval += s.at.Sub(from.at)
	}
	r.writes /= clock.Seconds()
	r.claimed /= clock.Seconds()
	r.pages /= float64(n)
	r.interval /= time.Duration(n)
	return r
}
