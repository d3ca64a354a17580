package text

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with the file of that name in testdata/golden, or writes it with -update.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("..", "..", "..", "testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s: -update writes it anew, if this is right:\n%s\nwant:\n%s", name, text, want)
	}
}

// sample is a record by hand in which everything is there.
func sample() *record.Migration {
	ms := func(f float64) time.Duration { return time.Duration(f * 1e6) }
	r := &record.Migration{
		Schema: record.Schema, ID: "20261122T034009.279Z-98eed4", Mode: record.PreCopyMode, Outcome: record.Completed, GuestOn: record.Destination,
		Workload: "dirty:rate=20000/s,working-set=64MiB,pattern=uniform,content=random,change=64B,duration=0s",
		QEMU: record.QEMU{SourceVersion: "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", DestinationVersion: "10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)",
			Accelerator: "tcg", Machine: "pc-q35-7.2", MemoryBytes: 262152 << 10, VCPUs: 1},
		Total: record.Total{Wall: ms(1323.4), Transferred: record.Of(int64(183500800)), Normal: record.Of(int64(44737)), Duplicate: record.Of(int64(23218))},
		Downtime: record.Downtime{
			QEMU: record.Of(ms(23)), QEMUError: record.Of(ms(1)), Wire: record.Of(ms(35.9)), WireError: record.Of(2 * time.Microsecond),
			Status: record.Of(ms(22.8)), StatusError: record.Of(ms(22.8)), Ping: record.Of(ms(83.9)), PingError: record.Of(ms(11.3)),
			Heartbeat: record.Of(ms(117)), HeartbeatError: record.Of(ms(10.6)), GuestClock: record.Of(ms(66.3)), GuestClockError: record.Of(ms(5.24)),
			TCP: record.Of(ms(1212)), TCPError: record.Of(ms(10.7)),
		},
		Guest:       &record.Guest{ClockSlip: record.Of(ms(36.2)), ClockSlipError: record.Of(ms(0.124)), EventsBefore: record.Of(20003.0), EventsDuring: record.Of(19210.0), SlowdownPercent: record.Of(4.13)},
		Network:     &record.Network{PingsSent: 12660, PingsLost: 8, TCPSurvived: record.Of(true), Retransmits: record.Of(int64(1)), AnnounceToFirstPacket: record.Of(ms(0.688))},
		MemoryCheck: &record.MemoryCheck{PagesChecked: 27954},
		Sampling:    &record.Sampling{Samples: 131, PeriodP50: ms(9.96), PeriodP99: ms(12.4), LongestUnanswered: ms(22.9), QEMUCPU: record.Of(ms(24.3))},
		Warnings:    []string{"source QEMU 7.2.22 under TCG: this RAM is not a multiple of 256 KiB, which avoids its loss of dirty pages but stalls the guest when migration starts", "short"},
		Passes: []record.Pass{
			{Pass: 1, Start: ms(39.9), Duration: ms(1250), Transferred: record.Of(int64(161 << 20)), Remaining: record.Of(int64(6752960)), DirtyPages: record.Of(int64(65103)), Throughput: record.Of(129.0 * (1 << 20)), Samples: 128},
			{Pass: 2, Start: ms(1289.9), Duration: ms(0.8)},
			{Pass: 3, Start: ms(1290.7), Duration: ms(22.8), Transferred: record.Of(int64(14 << 20)), Remaining: record.Of(int64(0)), DirtyPages: record.Of(int64(3938)), Throughput: record.Of(643.0 * (1 << 20)), Stopped: true, Samples: 3},
		},
	}
	at := time.Duration(0)
	for _, s := range []record.Stage{
		{Name: record.Initialization, Duration: ms(33.9)}, {Name: record.Reservation, Duration: ms(4.18)}, {Name: record.PreCopy, Duration: ms(1250)},
		{Name: record.StopAndCopy, Duration: ms(35)}, {Name: record.Commitment, Duration: ms(0.118)}, {Name: record.Activation, Duration: ms(0.202)},
	} {
		s.Start = at
		at += s.Duration
		r.Stages = append(r.Stages, s)
	}
	r.Total.Wall = at
	return r
}

// cancelled is a record by hand of a migration that was stopped in its first pass.
func cancelled() *record.Migration {
	r := sample()
	r.Outcome, r.GuestOn = record.Cancelled, record.Source
	r.Error = &record.Error{Stage: record.PreCopy, Message: "stopped by signal interrupt"}
	r.Stages, r.Passes = r.Stages[:3], r.Passes[:1]
	r.Downtime, r.Total = record.Downtime{}, record.Total{Wall: 2 * time.Second}
	r.Network, r.Guest, r.Sampling, r.MemoryCheck = &record.Network{}, &record.Guest{}, nil, nil
	return r
}

// remote is a record by hand of a migration between hosts whose clocks are not ours, of which one was set.
func remote() *record.Migration {
	r := sample()
	r.Downtime.WireError, r.Downtime.Arrival, r.Downtime.ArrivalError = record.Of(412*time.Microsecond),
		record.Of(36*time.Millisecond), record.Of(2*time.Millisecond)
	r.Clocks = &record.Clocks{
		Source: &record.Clock{Offset: 5000123 * time.Microsecond, Error: 210 * time.Microsecond, Drift: record.Of(300.2),
			DriftError: record.Of(14.9), Samples: 12},
		Destination: &record.Clock{Offset: -31 * time.Millisecond, Error: 180 * time.Microsecond, Samples: 3,
			Steps: []record.ClockStep{{From: 400 * time.Millisecond, To: 1400 * time.Millisecond, By: -time.Second, Error: time.Millisecond}}},
	}
	r.Passes = nil
	return r
}

func TestDetails(t *testing.T) {
	Page{W: io.Discard}.Details(&record.Migration{}) // what is absent is left out
	for name, r := range map[string]*record.Migration{"completed.txt": sample(), "cancelled.txt": cancelled(), "remote.txt": remote()} {
		var b bytes.Buffer
		Page{W: &b}.Details(r)
		golden(t, name, b.String())
		for line := range strings.Lines(b.String()) {
			if line = strings.TrimRight(line, "\n"); len(line) > MaxWidth || line != strings.TrimRight(line, " ") {
				t.Errorf("%s: %d columns, or blanks at its end: %q", name, len(line), line)
			}
		}
	}
}

func TestFold(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"one two three", "one two\n  three"},
		{"  one two three", "  one\n    two\n    three"},
		{"a-word-that-is-too-long b", "a-word-that-is-too-long\n  b"},
		{"a word-that-is-too-long b", "a word-that-is-too-long\n  b"},
	} {
		if got := Fold(c.text, 2, 9); got != c.want {
			t.Errorf("Fold(%q) = %q, want %q", c.text, got, c.want)
		}
	}
}

// TestLongPassesAreCut: of a thousand passes the table shows the first, the last, and how many are left out.
func TestLongPassesAreCut(t *testing.T) {
	r := &record.Migration{}
	for i := range 1000 {
		r.Passes = append(r.Passes, record.Pass{Pass: i + 1})
	}
	var b strings.Builder
	Page{W: &b}.passes(r)
	rows := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(rows) != 1+firstPasses+1+lastPasses || !strings.Contains(b.String(), "980 more") || !strings.Contains(rows[len(rows)-1], "1000") {
		t.Errorf("%d rows:\n%s", len(rows), b.String())
	}
}
