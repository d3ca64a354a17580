package lab

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/debian"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/image"
	"qmigrate/guest/wire"
)

// debianLab is a lab with the Debian guest and a workload.
func debianLab(t *testing.T, workload string, fill int64) *Lab {
	t.Helper()
	guesttest.Image(t)
	if _, err := debian.Find(debian.Guest); err != nil {
		guesttest.Unable(t, "the Debian guest is not in the cache: `make deps` makes it")
	}
	w, err := wire.ParseWorkload(workload)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Up(t.Context(), Spec{Owner: fmt.Sprintf("tools-%d", os.Getpid()), Accelerator: "tcg", Fill: fill,
		Image: image.Spec{Guest: wire.DebianGuest}, Workload: w})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// moved migrates a lab's guest and checks all that must hold whatever the workload is.
func moved(t *testing.T, l *Lab, mode record.Mode) *record.Migration {
	t.Helper()
	rec, err := l.Migrate(t.Context(), plan.Plan{Mode: mode}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if rec.Outcome != record.Completed || rec.GuestOn != record.Destination {
		t.Errorf("%s, the guest on the %s", rec.Outcome, rec.GuestOn)
	}
	if m := rec.MemoryCheck; m == nil || m.PagesChecked < 10_000 || m.PagesWrong != 0 {
		t.Errorf("memory: %+v", m)
	}
	if rec.Tools == nil || len(rec.ToolFailures()) > 0 {
		t.Errorf("tools: %+v: %q", rec.Tools, rec.ToolFailures())
	}
	if rec.Downtime.Heartbeat == nil || rec.Downtime.GuestClock == nil || rec.Guest.ClockSlip == nil || rec.Network.TCPSurvived == nil || !*rec.Network.TCPSurvived {
		t.Errorf("observers: %+v %+v", rec.Downtime, rec.Network)
	}
	return rec
}

// An ssh session with a running command, HTTP requests and a redis writer survive, there and back.
func TestDebianGuest(t *testing.T) {
	l := debianLab(t, "survive", 48<<20) // 12,288 pages
	for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
		rec := moved(t, l, mode)
		if s := rec.Tools.SSH; s == nil || s.Lines < 3 || !strings.Contains(s.Server, "OpenSSH") {
			t.Errorf("%s: ssh: %+v", mode, s)
		}
		if r := rec.Tools.Redis; r == nil || r.Acknowledged < 20 || r.Version == "" {
			t.Errorf("%s: redis: %+v", mode, r)
		}
		if w := rec.Web; w == nil || len(w.Phases) != 3 || rec.Guest.EventsBefore == nil {
			t.Errorf("%s: web: %+v, %+v", mode, w, rec.Guest)
		}
		if mode == record.PreCopyMode {
			if err := l.Again(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Every workload of the Debian guest, in both modes: a minute and a half of guests.
func TestTools(t *testing.T) {
	if os.Getenv("QMIGRATE_TOOLS") == "" {
		t.Skip("every program in both modes takes minutes: QMIGRATE_TOOLS=1 runs it; TestDebianGuest has one")
	}
	for _, workload := range []string{"sysbench", "iperf3", "iperf3:direction=receive", "stress-ng", "stress-ng:method=int64", "redis:rate=0", "ssh", "dirty"} {
		t.Run(workload, func(t *testing.T) {
			l := debianLab(t, workload, 0)
			for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
				name := fmt.Sprintf("%s, %s", workload, mode)
				if l.spec.Workload.Type().Guest == "" {
					rec, err := l.Migrate(t.Context(), plan.Plan{Mode: mode}, plan.Options{})
					if err != nil || rec.MemoryCheck == nil || rec.MemoryCheck.PagesWrong != 0 || rec.Guest.EventsBefore == nil {
						t.Errorf("%s: %v %+v", name, err, rec)
					}
					t.Logf("%s: wall %v, stopped %v", name, rec.Total.Wall, rec.Downtime.Wire)
				} else {
					rec := moved(t, l, mode)
					t.Logf("%s: wall %v, stopped %v, %.0f before, %.0f during, %.0f after; %s", name, rec.Total.Wall, *rec.Downtime.Wire, rate(rec.Guest.EventsBefore), rate(rec.Guest.EventsDuring), rate(rec.Guest.EventsAfter), told(rec.Tools))
					for _, s := range rec.Timeline {
						t.Log(series(s))
					}
				}
				if mode == record.PreCopyMode {
					if err := l.Again(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

func rate(r *float64) float64 {
	if r == nil {
		return math.NaN()
	}
	return *r
}

func told(r *record.Tools) string {
	var parts []string
	if p := r.Program; p != nil {
		parts = append(parts, fmt.Sprintf("%+v", *p))
	}
	if s := r.SSH; s != nil {
		parts = append(parts, fmt.Sprintf("%+v longest %v", *s, *s.Longest))
	}
	if w := r.Redis; w != nil {
		parts = append(parts, fmt.Sprintf("%+v longest %v", *w, *w.Longest))
	}
	return strings.Join(parts, "; ")
}

func series(s record.Series) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s from %v:", s.Name, s.Start)
	for _, v := range s.Values {
		if v == nil {
			b.WriteString(" -")
		} else {
			fmt.Fprintf(&b, " %.0f", *v)
		}
	}
	return b.String()
}
