package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
)

// synthetic writes n records of an experiment kvm-precopy with a known seed: modes, bandwidths and dirty rates crossed, a few that failed, warnings, samples, timelines and predictions.
func synthetic(t testing.TB, n int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "records")
	all := invented(n)
	if err := recordtest.WriteFolder(dir, slices.Values(all)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "samples"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		var b bytes.Buffer
		for i := range m.Samples {
			if err := json.NewEncoder(&b).Encode(&m.Samples[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "samples", m.ID+".jsonl"), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// invented are records that no QEMU ever made. Their times follow from bandwidth and dirty rate, and a noise that is the same in every run.
func invented(n int) []*record.Migration {
	chance := rand.New(rand.NewPCG(5, 18))
	begin := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	var all []*record.Migration
	for i := range n {
		mode := []record.Mode{record.PreCopyMode, record.PreCopyMode, record.StopAndCopyMode}[i%3]
		bandwidth := []int64{32, 64, 128, 256}[i/3%4] << 20
		rate := []float64{0, 1000, 4000, 16000}[i/12%4]
		all = append(all, inventOne(chance, i, begin.Add(time.Duration(i)*10*time.Second), mode, bandwidth, rate))
	}
	return all
}

func inventOne(chance *rand.Rand, i int, at time.Time, mode record.Mode, bandwidth int64, rate float64) *record.Migration {
	noise := func() float64 { return 0.95 + 0.1*chance.Float64() }
	seconds := func(s float64) time.Duration { return time.Duration(s * 1e9) }
	workload, rateText := "idle", "0/s"
	if rate > 0 {
		workload, rateText = fmt.Sprintf("dirty:rate=%.0f/s,working-set=32MiB", rate), fmt.Sprintf("%.0f/s", rate)
	}
	cell := fmt.Sprintf("%s,%dMiB/s,%s", mode, bandwidth>>20, rateText)
	m := &record.Migration{
		Schema: record.Schema, ID: fmt.Sprintf("%s-%06x", at.Format("20060102T150405.000Z"), i), StartedAt: at, Name: cell, Mode: mode, Outcome: record.Completed, GuestOn: record.Destination,
		Workload: workload, Experiment: "kvm-precopy", Trial: fmt.Sprintf("%s#%d", cell, i/48), Order: &i,
		Factors:    map[string]any{"mode": string(mode), "max-bandwidth": fmt.Sprintf("%dMiB/s", bandwidth>>20), "workload": workload},
		Plan:       map[string]any{"mode": string(mode), "max_bandwidth_bytes_per_s": float64(bandwidth)},
		Parameters: map[string]any{"downtime-limit": 300.0, "max-bandwidth": float64(bandwidth), "tls-creds": ""}, Capabilities: map[string]bool{"events": true, "xbzrle": false},
		QEMU:  record.QEMU{SourceVersion: "10.0.2", DestinationVersion: "10.0.2", Accelerator: "tcg", Machine: "pc-q35-7.2", MemoryBytes: 256 << 20, VCPUs: 1},
		Hosts: record.Hosts{Source: "netns:qmig-run-1-a", Destination: "netns:qmig-run-1-b", Kernel: "6.18.0", CPU: "2 x <b>Processor</b> & Co"},
	}
	if i%97 == 13 {
		m.Outcome, m.GuestOn, m.Error = record.Failed, record.Source, &record.Error{Stage: record.PreCopy, Message: "the link <script>alert(1)</script> broke"}
		m.Total.Wall = seconds(1.5)
		m.Stages = []record.Stage{{Name: record.Initialization, Duration: seconds(0.02)}, {Name: record.PreCopy, Start: seconds(0.02), Duration: seconds(1.48)}}
		return m
	}
	if i%31 == 4 {
		m.Warn("ping: the longest gap was not around the stop: it began %s after the first command", seconds(chance.Float64()))
	}
	x := float64(bandwidth) * noise()
	start := 0.02
	left, sent, dirtied := 170e6, 0.0, rate*4096*noise()
	stop := start
	for pass := 1; mode == record.PreCopyMode && pass < 30; pass++ {
		took := max(left/x, 0.1)
		p := record.Pass{Pass: pass, Start: seconds(stop), Duration: seconds(took), Transferred: record.Of(int64(left)), DirtyPages: record.Of(int64(left / 4096)), Throughput: record.Of(left / took), Samples: 10}
		for k := range 10 {
			gone := float64(k) / 10
			m.Samples = append(m.Samples, record.Sample{T: seconds(stop + took*gone), Side: record.Source, Status: "active", Transferred: record.Of(int64(sent + left*gone)),
				Remaining: record.Of(int64(left * (1 - gone))), DirtyPagesRate: record.Of(int64(dirtied / 4096)), Throughput: record.Of(x), Throttle: record.Of(int64(min(pass*5, 60)))})
		}
		sent, stop = sent+left, stop+took
		left = min(dirtied*took, 32<<20)
		p.Remaining = record.Of(int64(left))
		m.Passes = append(m.Passes, p)
		if left < x*0.3 {
			break
		}
	}
	down := (0.008 + left/(x*4)) * noise()
	if mode == record.StopAndCopyMode {
		down = 0.5 + left/x*noise()
	}
	m.Passes = append(m.Passes, record.Pass{Pass: len(m.Passes) + 1, Start: seconds(stop), Duration: seconds(down), Transferred: record.Of(int64(left)), Stopped: true})
	sent += left
	m.Stages = []record.Stage{
		{Name: record.Initialization, Duration: seconds(0.012)}, {Name: record.Reservation, Start: seconds(0.012), Duration: seconds(0.008)},
		{Name: record.PreCopy, Start: seconds(start), Duration: seconds(stop - start)}, {Name: record.StopAndCopy, Start: seconds(stop), Duration: seconds(down)},
		{Name: record.Commitment, Start: seconds(stop + down), Duration: seconds(0.0001)}, {Name: record.Activation, Start: seconds(stop + down + 0.0001), Duration: seconds(0.0002)},
	}
	wall := stop + down + 0.0003
	m.Total = record.Total{Wall: seconds(wall), Transferred: record.Of(int64(sent)), Normal: record.Of(int64(sent / 4104)), Duplicate: record.Of(int64(20000))}
	of := func(s float64) *time.Duration { return record.Of(seconds(s)) }
	m.Downtime = record.Downtime{QEMU: of(down * 0.9), Wire: of(down), Status: of(down * 1.02), Ping: of(down + 0.04*noise()), Heartbeat: of(down + 0.05*noise()), GuestClock: of(0.09 * noise()), TCP: of(down + 0.1*noise())}
	m.Guest = &record.Guest{SlowdownPercent: record.Of(100 * down / wall)}
	if rate > 0 {
		m.Guest.EventsBefore = record.Of(rate * noise())
	}
	m.Network = &record.Network{PingsSent: 100, Retransmits: record.Of(int64(i % 3))}
	m.Prediction = &record.Prediction{Model: []string{"replay", "avg"}[i%2], Total: of(wall * (0.9 + 0.2*chance.Float64())), Downtime: of(down * (0.8 + 0.4*chance.Float64()))}
	for _, name := range []string{"process", "vcpu0", "migration"} {
		m.CPU = append(m.CPU, record.CPUUse{Side: record.Source, Thread: name, Span: seconds(1), Used: seconds(0.3), Percent: 30 * noise()},
			record.CPUUse{Side: record.Source, Thread: name, Span: seconds(1), Used: seconds(0.6), Percent: 60 * noise(), Stage: record.PreCopy},
			record.CPUUse{Side: record.Destination, Thread: name, Span: seconds(1), Used: seconds(0.2), Percent: 20 * noise(), Stage: record.PreCopy})
	}
	events, received := record.Series{Name: "guest_events", Unit: "events/s", Source: "the guest's agent", Start: -seconds(1), Bin: seconds(0.1)},
		record.Series{Name: "tcp_received", Unit: "bytes/s", Source: "the observer", Start: -seconds(1), Bin: seconds(0.1)}
	for k := range 40 + int(wall*10) {
		s := -1 + float64(k)/10
		switch {
		case k == 3:
			events.Values, received.Values = append(events.Values, nil), append(received.Values, nil)
		case s >= stop-0.05 && s < stop+down:
			events.Values, received.Values = append(events.Values, record.Of(0.0)), append(received.Values, record.Of(0.0))
		default:
			events.Values, received.Values = append(events.Values, record.Of(1000*noise())), append(received.Values, record.Of(9e8*noise()))
		}
	}
	m.Timeline = []record.Series{events, received}
	return m
}

// write makes the report of the folder.
func write(t testing.TB, dir string) *Report {
	t.Helper()
	r, err := Build([]string{dir}, Options{Command: "qmigrate report out"})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	return r
}
