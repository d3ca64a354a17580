package wire

import (
	"strings"
	"testing"
)

func TestCheckGuest(t *testing.T) {
	for _, w := range WorkloadTypes() {
		err := Workload{Name: w.Name}.CheckGuest(TinyGuest)
		if (err == nil) != (w.Guest == "") {
			t.Errorf("%s in the tiny guest: %v", w.Name, err)
		}
		if err := (Workload{Name: w.Name}).CheckGuest(DebianGuest); err != nil {
			t.Errorf("%s in the Debian guest: %v", w.Name, err)
		}
	}
	if err := (Workload{Name: "sysbench"}).CheckGuest(TinyGuest); err == nil || err.Error() != "sysbench needs guest debian" {
		t.Error(err)
	}
}

// The lines are sysbench's 1.0.20, stress-ng's 0.15.06 and iperf3's 3.12.
func TestToolLines(t *testing.T) {
	if second, rate, ok := Sysbench("[ 3s ] thds: 1 eps: 3009.02 lat (ms,95%): 0.50"); !ok || second != 3 || rate != 3009.02 {
		t.Error(second, rate, ok)
	}
	for _, line := range []string{"", "Threads started!", "[ 3s ] thds: 1", "[ xs ] thds: 1 eps: 1 lat", "[ 1s ] thds: 1 eps: -1 lat", "[ 1s ] thds: 1 eps: nan lat", "    events per second:  3053.57"} {
		if _, _, ok := Sysbench(line); ok {
			t.Errorf("%q is taken for a report of sysbench", line)
		}
	}
	const metrics = "stress-ng: metrc: [21633] cpu                 703      1.00      0.53      0.01       700.94        1307.20"
	if ops, ok := StressNG(metrics, "cpu"); !ok || ops != 703 {
		t.Error(ops, ok)
	}
	for _, line := range []string{"", "stress-ng: metrc: [1] stressor       bogo ops real time  usr time", strings.Replace(metrics, "703", "-1", 1), strings.Replace(metrics, "cpu", "vm", 1)} {
		if _, ok := StressNG(line, "cpu"); ok {
			t.Errorf("%q is taken for the stressor's line", line)
		}
	}
	for line, want := range map[string]struct {
		bytes   float64
		resent  int64 // -1: none
		whole   string
		invalid bool
	}{
		"[  5]   2.00-3.00   sec  2.81 GBytes  24056512 Kbits/sec   34    895 KBytes       ": {bytes: 3007064000, resent: 34},
		"[  5]   0.00-0.50   sec  2.81 GBytes  8000 Kbits/sec                  ":             {bytes: 500000, resent: -1},
		"[ 15]   0.00-4.00   sec  11.2 GBytes  24065417 Kbits/sec   51             sender":   {bytes: 12032708500, resent: 51, whole: "sender"},
		"[  5]   0.00-4.00   sec  0.00 Bytes  0.00 Kbits/sec                  receiver":      {resent: -1, whole: "receiver"},
		"[ ID] Interval           Transfer     Bitrate         Retr  Cwnd":                   {invalid: true},
		"[  5] local 127.0.0.1 port 48844 connected to 127.0.0.1 port 5999":                  {invalid: true},
		"[  5]   2.00-2.00   sec  2.81 GBytes  24056512 Kbits/sec":                           {invalid: true},
		"[  5]   2.00-3.00   sec  2.81 GBytes  24.0 Gbits/sec":                               {invalid: true},
		"": {invalid: true},
	} {
		i, ok := ParseIperf(line)
		if ok == want.invalid {
			t.Errorf("%q: %v", line, ok)
		}
		if !ok {
			continue
		}
		resent := int64(-1)
		if i.Retransmits != nil {
			resent = *i.Retransmits
		}
		if i.Bytes != want.bytes || resent != want.resent || i.Whole != want.whole {
			t.Errorf("%q: %+v, %d sent again; want %+v", line, i, resent, want)
		}
	}
}

// What is read of a line is of a span that has a length, and no less than nothing.
func FuzzIperf(f *testing.F) {
	f.Add("[  5]   2.00-3.00   sec  2.81 GBytes  24056512 Kbits/sec   34    895 KBytes")
	f.Fuzz(func(t *testing.T, line string) {
		i, ok := ParseIperf(line)
		if ok && !(i.To > i.From && i.Bytes >= 0) || !ok && i.Whole != "" {
			t.Errorf("%q: %+v %v", line, i, ok)
		}
	})
}
