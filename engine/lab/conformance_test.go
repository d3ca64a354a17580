package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
)

// TestConformance migrates a real guest, observed and beaten on, in each mode between each pair of QEMUs, and prints the table.
// Figures are for people; what must hold is asserted.
func TestConformance(t *testing.T) {
	needRoot(t)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "mode\tsource\tdestination\tresult\twall\tqemu\twire\tstatus\tping\theartbeat\tguest clock\ttcp\tsent\tpages\twrong")
	for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode, record.PostCopyMode, record.HybridMode} {
		for _, pair := range [][2]string{{"10.0", "10.0"}, {"7.2", "7.2"}, {"7.2", "10.0"}, {"10.0", "7.2"}} {
			t.Run(fmt.Sprintf("%s_%s_%s", mode, pair[0], pair[1]), func(t *testing.T) {
				rec := conform(t, mode, pair[0], pair[1])
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s", mode, pair[0], pair[1], rec.Outcome, rec.Total.Wall.Round(time.Millisecond))
				d := rec.Downtime
				for _, v := range []*time.Duration{d.QEMU, d.Wire, d.Status, d.Ping, d.Heartbeat, d.GuestClock, d.TCP} {
					if v == nil {
						fmt.Fprint(w, "\t-")
						continue
					}
					fmt.Fprintf(w, "\t%s", v.Round(100*time.Microsecond))
				}
				fmt.Fprintf(w, "\t%d MiB\t%d\t%d\n", *rec.Total.Transferred>>20, rec.MemoryCheck.PagesChecked, rec.MemoryCheck.PagesWrong)
			})
		}
	}
	w.Flush()
	t.Log("\n" + table.String())
}

// needRoot skips where namespaces cannot be named: a test process does not start itself anew in a user namespace.
func needRoot(t *testing.T) {
	t.Helper()
	if !hostnet.Check(t.Context()).Get(hostnet.CapRoot).OK {
		t.Skip("not root: the lab's tests run as root; without it `qmigrate demo` is tested in the command's stories")
	}
}

// conform is one migration of the lab's guest; the lab is gone when it returns.
func conform(t *testing.T, mode record.Mode, source, destination string) *record.Migration {
	t.Helper()
	workload, err := wire.ParseWorkload("dirty:rate=5000/s,working-set=16MiB")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Up(t.Context(), Spec{
		Owner:      fmt.Sprintf("test-%d", os.Getpid()),
		SourceQEMU: guesttest.QEMU(t, source), DestinationQEMU: guesttest.QEMU(t, destination),
		Accelerator: "tcg", // what the table is about; finding out about KVM costs ten seconds where a guest hangs on it
		Workload:    workload,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	}()
	rec, err := l.Migrate(t.Context(), engine.Plan{Mode: mode}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if rec.Outcome != record.Completed || rec.GuestOn != record.Destination {
		t.Errorf("outcome %s, guest on %s", rec.Outcome, rec.GuestOn)
	}
	if c := rec.MemoryCheck; c == nil || c.PagesChecked <= 10000 || c.PagesWrong != 0 {
		t.Fatalf("memory check %+v; warnings %q", c, rec.Warnings)
	}
	d := rec.Downtime
	for name, v := range map[string]*time.Duration{"qemu": d.QEMU, "wire": d.Wire, "status": d.Status, "ping": d.Ping, "heartbeat": d.Heartbeat, "guest clock": d.GuestClock, "tcp": d.TCP} {
		if v == nil {
			t.Errorf("downtime %s was not measured; warnings %q", name, rec.Warnings)
		}
	}
	// What each observer sees holds the time in which no vCPU ran.
	for name, v := range map[string]*time.Duration{"ping": d.Ping, "heartbeat": d.Heartbeat, "tcp": d.TCP} {
		if v != nil && *v < *d.Wire {
			t.Errorf("%s saw %v, less than the %v in which no vCPU ran", name, *v, *d.Wire)
		}
	}
	n := rec.Network
	if n == nil || n.TCPSurvived == nil || !*n.TCPSurvived || n.PingsSent == 0 || n.AnnounceToFirstPacket == nil {
		t.Errorf("network %+v", n)
	}
	if mode == record.StopAndCopyMode && *d.Wire < rec.Total.Wall/2 {
		t.Errorf("stop-and-copy: the guest stood still for %v of %v", *d.Wire, rec.Total.Wall)
	}
	before90 := guest.CompareVersions(strings.Fields(rec.QEMU.SourceVersion)[0], "9.0") < 0
	if before90 != strings.Contains(strings.Join(rec.Warnings, "\n"), "TCG") {
		t.Errorf("warnings %q for a source of version %s", rec.Warnings, rec.QEMU.SourceVersion)
	}
	return rec
}

// TestCheckFails shows that the memory check can fail: a page that is changed behind the agent's back is found.
func TestCheckFails(t *testing.T) {
	needRoot(t)
	qemu := guesttest.QEMU(t, "10.0")
	l, err := Up(t.Context(), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: qemu, DestinationQEMU: qemu, Accelerator: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	}()
	if err := l.agent.Call(t.Context(), wire.DoCorrupt, wire.Corrupt{Page: 4711}, nil); err != nil {
		t.Fatal(err)
	}
	rec, err := l.Migrate(t.Context(), engine.Plan{}, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if c := rec.MemoryCheck; c == nil || c.PagesWrong != 1 || !strings.Contains(strings.Join(rec.Warnings, "\n"), "memory check FAILED") {
		t.Errorf("a corrupt page went unseen: %+v, warnings %q", c, rec.Warnings)
	}
}
