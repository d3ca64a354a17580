package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/colo"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/snapshot"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet"
)

// A way is one row of the conformance table: how a guest is moved, and what is to come of it.
type way struct {
	name string
	plan plan.Plan
	spec func(*Spec)                                                  // changes the lab
	run  func(*testing.T, *Lab, plan.Plan) (*record.Migration, error) // nil: Migrate
	// completed (default), refused (before anything was changed) or safe (on the source)
	want func(source, destination string) string
}

func always(result string) func(string, string) string {
	return func(string, string) string { return result }
}

// unless72 is for what QEMU 7.2 has not: refused where either side is one.
func unless72(source, destination string) string {
	if source == "7.2" || destination == "7.2" {
		return "refused"
	}
	return ""
}

// losesPages tells whether this source is known to lose pages that way, and it is QEMU's own fault: docs/compatibility.md.
func losesPages(w way, source string) bool {
	return w.plan.Mode == record.HybridMode && source == "11.1"
}

// only111 is for what QEMU has from 10.1 on: refused unless both sides are 11.1.
func only111(source, destination string) string {
	if source != "11.1" || destination != "11.1" {
		return "refused"
	}
	return ""
}

func caps(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

// ways are QEMU's own families of migration tests, and ours.
func ways() []way {
	params := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	transport := func(name string) func(*Spec) { return func(s *Spec) { s.Transport = name } }
	file := func(f snapshot.File) func(*testing.T, *Lab, plan.Plan) (*record.Migration, error) {
		return func(t *testing.T, l *Lab, p plan.Plan) (*record.Migration, error) { return throughFile(t, l, p, f) }
	}
	hybrid := plan.SwitchAfter{Passes: 1}
	return []way{
		{name: "pre-copy", plan: plan.Plan{Mode: record.PreCopyMode}},
		{name: "stop-and-copy", plan: plan.Plan{Mode: record.StopAndCopyMode}},
		{name: "post-copy", plan: plan.Plan{Mode: record.PostCopyMode}},
		{name: "hybrid", plan: plan.Plan{Mode: record.HybridMode, SwitchAfter: hybrid, MaxBandwidth: 64 << 20}},
		{name: "pre-copy return-path", plan: plan.Plan{Capabilities: caps("return-path")}},
		{name: "pre-copy pause-before-switchover", plan: plan.Plan{Capabilities: caps("pause-before-switchover")}},
		{name: "post-copy release-ram", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: caps("release-ram")}},
		{name: "pre-copy validate-uuid", plan: plan.Plan{Capabilities: caps("validate-uuid")}},
		{name: "pre-copy switchover-ack", plan: plan.Plan{Capabilities: caps("return-path", "switchover-ack")}, want: unless72},
		{name: "pre-copy auto-converge", plan: plan.Plan{Capabilities: caps("auto-converge")}},
		{name: "pre-copy xbzrle", plan: plan.Plan{Capabilities: caps("xbzrle"), Parameters: params("xbzrle-cache-size", "67108864")}},
		{name: "multifd", plan: plan.Plan{Capabilities: caps("multifd")}},
		{name: "multifd zlib", plan: plan.Plan{Capabilities: caps("multifd"), Parameters: params("multifd-compression", "zlib")}},
		{name: "multifd zstd 4", plan: plan.Plan{Capabilities: caps("multifd"), Parameters: params("multifd-compression", "zstd", "multifd-channels", "4")}},
		{name: "multifd zero-copy-send over compression", plan: plan.Plan{Capabilities: caps("multifd", "zero-copy-send"), Parameters: params("multifd-compression", "zlib")}, want: always("refused")},
		{name: "unix", spec: transport(Unix)},
		{name: "fd", spec: transport(FD)},
		{name: "exec", spec: transport(Exec)},
		{name: "exec multifd", plan: plan.Plan{Capabilities: caps("multifd")}, spec: transport(Exec), want: always("refused")},
		{name: "channels", plan: plan.Plan{Channels: plan.FormChannels}, want: unless72},
		{name: "post-copy preempt", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: caps("postcopy-preempt")}},
		{name: "post-copy blocktime", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: caps("postcopy-blocktime")}},
		{name: "post-copy multifd", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: caps("multifd")}, want: only111},
		{name: "post-copy recovery", plan: plan.Plan{Mode: record.PostCopyMode, StallLimit: time.Second, Parameters: params("max-postcopy-bandwidth", fmt.Sprint(24<<20))}, run: linkDown},
		{name: "tls x509", plan: plan.Plan{TLS: &plan.TLS{Kind: plan.X509}}},
		{name: "tls psk", plan: plan.Plan{TLS: &plan.TLS{Kind: plan.PSK}}},
		{name: "tls x509 post-copy", plan: plan.Plan{Mode: record.PostCopyMode, TLS: &plan.TLS{Kind: plan.X509}}},
		{name: "tls x509 multifd", plan: plan.Plan{TLS: &plan.TLS{Kind: plan.X509}, Capabilities: caps("multifd")}},
		{name: "tls wrong name", plan: plan.Plan{TLS: &plan.TLS{Kind: plan.X509, Hostname: "other.example"}}, run: wrongName, want: always("refused")},
		{name: "tls not authorized", plan: plan.Plan{TLS: &plan.TLS{Kind: plan.X509, Authz: "CN=somebody-else"}}, want: always("not completed")},
		{name: "file", run: file(snapshot.File{})},
		{name: "file mapped-ram", run: file(snapshot.File{Format: snapshot.MappedRAMFormat}), want: unless72},
		{name: "file mapped-ram multifd", run: file(snapshot.File{Format: snapshot.MappedRAMFormat, Channels: 2}), want: unless72},
		{name: "background-snapshot", run: file(snapshot.File{Background: true}), want: func(source, _ string) string {
			if source == "7.2" { // a failure would stop its guest for ever
				return "refused"
			}
			return ""
		}},
		{name: "colo", spec: func(s *Spec) { s.COLO = true }, run: primaryKilled, want: func(source, destination string) string {
			// Tried, and refused, before there is a guest: 10.0 completes instead of entering COLO, 11.1 has another COLO.
			if source == "10.0" || source == "11.1" || destination == "11.1" {
				return "refused"
			}
			return ""
		}},
		{name: "cancel", plan: plan.Plan{MaxBandwidth: 16 << 20}, run: cancelled, want: always("safe")},
		{name: "validation", plan: plan.Plan{Capabilities: caps("no-such-capability")}, want: always("refused")},
	}
}

// primaryKilled keeps the guest in step with a secondary and kills the primary: the guest goes on with its memory and its TCP session.
func primaryKilled(t *testing.T, l *Lab, _ plan.Plan) (*record.Migration, error) {
	return l.COLO(within.Context(t), colo.Plan{CheckpointDelay: 100 * time.Millisecond},
		COLOTrial{Run: time.Second, Checkpoints: 5, Kill: record.Source}, plan.Options{})
}

// wrongName migrates to a destination whose certificate is for another name than the source asks for.
func wrongName(t *testing.T, l *Lab, p plan.Plan) (*record.Migration, error) {
	from, to, err := connect.Credentials(&plan.TLS{Kind: plan.X509}, "destination.example")
	if err != nil {
		t.Fatal(err)
	}
	own := *p.TLS
	own.SourceDir, own.DestinationDir = path.Join(l.source.Spec().Dir, "given"), path.Join(l.destination.Spec().Dir, "given")
	if err := errors.Join(connect.WriteCredentials(l.source.Host(), own.SourceDir, from),
		connect.WriteCredentials(l.destination.Host(), own.DestinationDir, to)); err != nil {
		t.Fatal(err)
	}
	p.TLS = &own
	return l.Migrate(within.Context(t), p, plan.Options{})
}

// linkDown takes the destination off the link once, for two seconds.
func linkDown(t *testing.T, l *Lab, p plan.Plan) (*record.Migration, error) {
	cut := false
	return l.Migrate(within.Context(t), p, plan.Options{Sampled: func(x record.Sample) {
		if x.Status == "postcopy-active" && !cut {
			cut = true
			if err := l.site.SetLink(destinationHost, false); err != nil {
				t.Error(err)
			}
			time.AfterFunc(2*time.Second, func() { _ = l.site.SetLink(destinationHost, true) })
		}
	}})
}

// cancelled stops a migration when its first megabytes are there.
func cancelled(t *testing.T, l *Lab, p plan.Plan) (*record.Migration, error) {
	ctx, cancel := context.WithCancel(within.Context(t))
	defer cancel()
	return l.Migrate(ctx, p, plan.Options{Sampled: func(x record.Sample) {
		if x.Transferred != nil && *x.Transferred > 8<<20 {
			cancel()
		}
	}})
}

// throughFile saves the guest, ends the source, and restores it on the other host.
func throughFile(t *testing.T, l *Lab, p plan.Plan, f snapshot.File) (*record.Migration, error) {
	f.Path = filepath.Join(t.TempDir(), "guest")
	rec, err := l.Save(within.Context(t), p, f, plan.Options{})
	if err != nil {
		return rec, err
	}
	if err := l.source.Kill(within.Context(t)); err != nil {
		t.Fatal(err)
	}
	back, err := l.Restore(within.Context(t), plan.Plan{},
		snapshot.File{Path: f.Path, Channels: f.Channels, DirectIO: f.DirectIO}, plan.Options{})
	if back != nil {
		rec.MemoryCheck, rec.Outcome, rec.GuestOn = back.MemoryCheck, back.Outcome, back.GuestOn
		rec.Warnings = append(rec.Warnings, back.Warnings...)
	}
	return rec, err
}

// pairs are all pairs of QEMUs, the sources one after the other.
func pairs() (all [][2]string) {
	for _, source := range guesttest.Versions() {
		for _, destination := range guesttest.Versions() {
			all = append(all, [2]string{source, destination})
		}
	}
	return all
}

// fast are the ways that are tried each time, in turns: each has every QEMU once as its source and once as its
// destination. The others have tests of their own, and `make conformance` tries all of all pairs.
var fast = []string{"pre-copy", "stop-and-copy", "post-copy", "hybrid", "validation"}

// row is one line of the campaign's file, so that it goes on where it was.
type row struct {
	Way, Source, Destination string
	Result                   string
	Cells                    []string
}

// TestConformance moves a real guest, observed and beaten on, in each way between each pair of QEMUs, and makes the table. Figures are for people; what
// must hold is asserted. With QMIGRATE_CONFORMANCE=FILE all ways are tried, and each result is kept in FILE: what is there is not tried again.
func TestConformance(t *testing.T) {
	needRoot(t)
	file := os.Getenv("QMIGRATE_CONFORMANCE")
	known := map[[3]string]row{}
	if b, err := os.ReadFile(file); err == nil {
		for line := range strings.Lines(string(b)) {
			var r row
			if json.Unmarshal([]byte(line), &r) == nil {
				known[[3]string{r.Way, r.Source, r.Destination}] = r
			}
		}
	}
	// With QMIGRATE_CONFORMANCE_FOR no cell is begun after that time; the table says how many are left for the next call.
	limit, err := time.ParseDuration(cmp.Or(os.Getenv("QMIGRATE_CONFORMANCE_FOR"), "24h"))
	if err != nil {
		t.Fatalf("QMIGRATE_CONFORMANCE_FOR: %v", err)
	}
	begun := time.Now()
	left := 0
	var rows []row
	for _, w := range ways() {
		turn := slices.Index(fast, w.name)
		if file == "" && turn < 0 {
			continue
		}
		for i, pair := range pairs() {
			if file == "" && (i+i/len(guesttest.Versions())+turn)%len(guesttest.Versions()) != 0 {
				continue
			}
			key := [3]string{w.name, pair[0], pair[1]}
			if r, ok := known[key]; ok {
				rows = append(rows, r)
				continue
			}
			if time.Since(begun) > limit {
				left++
				continue
			}
			t.Run(fmt.Sprintf("%s_%s_%s", strings.ReplaceAll(w.name, " ", "_"), pair[0], pair[1]), func(t *testing.T) {
				r := conform(t, w, pair[0], pair[1])
				rows = append(rows, r)
				if file == "" || t.Failed() {
					return
				}
				line, err := json.Marshal(r)
				if err != nil {
					t.Fatal(err)
				}
				out, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := out.Write(append(line, '\n')); err != nil {
					t.Error(err)
				}
				if err := out.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	table := conformanceTable(rows)
	t.Log("\n" + table)
	if doc := os.Getenv("QMIGRATE_CONFORMANCE_DOC"); doc != "" {
		head := conformanceHead
		if left > 0 {
			head += fmt.Sprintf("%d of %d cells were not tried yet: `make conformance` goes on with them.\n\n", left, left+len(rows))
		}
		if err := os.WriteFile(doc, []byte(head+table), 0o644); err != nil {
			t.Error(err)
		}
	}
}

const conformanceHead = `# Conformance: every way of moving a guest, between every pair of QEMUs

Made by ` + "`make conformance`" + ` on one 2-core machine under TCG: a 256 MiB guest that rewrites 16 MiB at 5,000 pages/s, observed, its memory checked afterwards
page by page. One run a cell: the times are no measurements to quote. *refused* is a refusal in qmigrate's own words before anything was changed; *safe* a
failure or cancel that left the guest running on the source. Downtimes are those of measurements.md.

`

func conformanceTable(rows []row) string {
	var b strings.Builder
	b.WriteString("| way | QEMUs | result | wall | qemu | wire | status | ping | heartbeat | guest clock | tcp | sent | after the switch | pages checked, wrong |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s to %s | %s | %s |\n", r.Way, r.Source, r.Destination, r.Result, strings.Join(r.Cells, " | "))
	}
	return b.String()
}

// enough is memory under check for a test that asks for more than 10,000 pages. The guest, under TCG, takes seconds to
// fill and to check half of its memory.
const enough = 48 << 20

// needRoot skips where namespaces cannot be named: a test process does not start itself anew in a user namespace.
func needRoot(t *testing.T) {
	t.Helper()
	if !hostnet.Check(within.Context(t)).Get(hostnet.CapRoot).OK {
		t.Skip("not root: the lab's tests run as root; without it `qmigrate demo` is tested in the command's stories")
	}
}

// conform is one move of the lab's guest; the lab is gone when it returns.
func conform(t *testing.T, w way, source, destination string) row {
	t.Helper()
	workload, err := wire.ParseWorkload("dirty:rate=5000/s,working-set=16MiB")
	if err != nil {
		t.Fatal(err)
	}
	spec := Spec{
		Owner:      fmt.Sprintf("test-%d", os.Getpid()),
		SourceQEMU: guesttest.QEMU(t, source), DestinationQEMU: guesttest.QEMU(t, destination),
		Accelerator: "tcg", // what the table is about; finding out about KVM costs ten seconds where a guest hangs on it
		Workload:    workload,
	}
	if os.Getenv("QMIGRATE_CONFORMANCE") == "" {
		spec.Fill = enough
	}
	if w.spec != nil {
		w.spec(&spec)
	}
	want := "completed"
	if w.want != nil {
		want = cmp.Or(w.want(source, destination), want)
	}
	r := row{Way: w.name, Source: source, Destination: destination, Result: "completed"}
	l, err := Up(within.Context(t), spec)
	if unsupported := new(plan.UnsupportedError); errors.As(err, &unsupported) && want == "refused" {
		r.Result = "refused: " + err.Error()
		r.Cells = slices.Repeat([]string{"-"}, 11)
		return r
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	}()
	run := w.run
	if run == nil {
		run = func(t *testing.T, l *Lab, p plan.Plan) (*record.Migration, error) {
			return l.Migrate(within.Context(t), p, plan.Options{})
		}
	}
	rec, err := run(t, l, w.plan)
	var stage *record.StageError
	switch {
	case err == nil:
	case rec == nil:
		r.Result = "refused"
	case errors.As(err, &stage) && stage.Stage == record.Initialization:
		r.Result = "refused"
	case errors.As(err, &stage) && stage.Guest == record.Source:
		r.Result = "safe"
	default:
		r.Result = "failed"
	}
	if r.Result != want && (want != "not completed" || r.Result != "safe" && r.Result != "refused") {
		t.Fatalf("%s, want %s: %v", r.Result, want, err)
	}
	cells := func(d *time.Duration) string {
		if d == nil {
			return "-"
		}
		return d.Round(100 * time.Microsecond).String()
	}
	if r.Result != "completed" {
		r.Cells = append(r.Cells, "-", "-", "-", "-", "-", "-", "-", "-", "-", "-")
		if rec != nil && rec.GuestOn == record.File { // whose QEMU is as dead as it has to be before the guest is restored
		} else if got := stateOf(t, l.source); got != "running" {
			t.Errorf("%s, and the source is %s: %v", r.Result, got, err)
		}
		text := err.Error()
		if rec != nil && rec.MemoryCheck != nil {
			r.Cells = append(r.Cells, fmt.Sprintf("%d, %d", rec.MemoryCheck.PagesChecked, rec.MemoryCheck.PagesWrong))
		} else {
			r.Cells = append(r.Cells, "-")
		}
		r.Result += ": " + strings.ReplaceAll(strings.ReplaceAll(text, l.dir, "LAB"), "|", "/")
		return r
	}
	d := rec.Downtime
	r.Cells = []string{rec.Total.Wall.Round(time.Millisecond).String()}
	for _, v := range []*time.Duration{d.QEMU, d.Wire, d.Status, d.Ping, d.Heartbeat, d.GuestClock, d.TCP} {
		r.Cells = append(r.Cells, cells(v))
	}
	mib := func(n *int64) string {
		if n == nil {
			return "-"
		}
		return fmt.Sprintf("%d MiB", *n>>20)
	}
	r.Cells = append(r.Cells, mib(rec.Total.Transferred), mib(rec.Total.Postcopy))
	if c := rec.MemoryCheck; c != nil && c.PagesWrong != 0 && losesPages(w, source) {
		r.Result += ": this source QEMU lost pages (compatibility.md)"
	} else if c == nil || c.PagesChecked <= 10000 || c.PagesWrong != 0 {
		t.Fatalf("memory check %+v; warnings %q", c, rec.Warnings)
	}
	r.Cells = append(r.Cells, fmt.Sprintf("%d, %d", rec.MemoryCheck.PagesChecked, rec.MemoryCheck.PagesWrong))
	if rec.Mode == record.COLOMode {
		f, n := rec.COLO, rec.Network
		if rec.Outcome != record.Recovered || rec.GuestOn != record.Destination || f.Checkpoints < 5 || f.Failover == nil || n == nil || n.TCPSurvived == nil || !*n.TCPSurvived {
			t.Errorf("outcome %s, guest on %s, figures %+v, network %+v", rec.Outcome, rec.GuestOn, f, n)
		}
		r.Result = "taken over when the primary was killed"
		return r
	}
	if rec.Outcome != record.Completed || rec.GuestOn != record.Destination {
		t.Errorf("outcome %s, guest on %s", rec.Outcome, rec.GuestOn)
	}
	if rec.Mode == record.SaveMode {
		return r
	}
	for name, v := range map[string]*time.Duration{"wire": d.Wire, "status": d.Status, "ping": d.Ping, "heartbeat": d.Heartbeat, "guest clock": d.GuestClock, "tcp": d.TCP} {
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
	if n == nil || n.TCPSurvived == nil || !*n.TCPSurvived || n.PingsSent == 0 || n.AnnounceToFirstPacket == nil || len(n.Gaps) != 3 || len(n.RARP) == 0 {
		t.Errorf("network %+v", n)
	}
	if rec.Mode == record.StopAndCopyMode && *d.Wire < rec.Total.Wall/2 {
		t.Errorf("stop-and-copy: the guest stood still for %v of %v", *d.Wire, rec.Total.Wall)
	}
	if rec.Mode == record.PostCopyMode && rec.Stage(record.PostCopy) == nil {
		t.Errorf("post-copy has no stage of that name: %+v", rec.Stages)
	}
	if said := strings.Join(rec.Warnings, "\n"); strings.Contains(said, "differs") {
		t.Errorf("two QEMUs of one Spec are said to differ: %s", said)
	}
	before90 := guest.CompareVersions(strings.Fields(rec.QEMU.SourceVersion)[0], "9.0") < 0
	if before90 != strings.Contains(strings.Join(rec.Warnings, "\n"), "256 KiB") {
		t.Errorf("warnings %q for a source of version %s", rec.Warnings, rec.QEMU.SourceVersion)
	}
	return r
}

// TestCheckFails shows that the memory check can fail: a page that is changed behind the agent's back is found.
func TestCheckFails(t *testing.T) {
	needRoot(t)
	qemu := guesttest.QEMU(t, "10.0")
	l, err := Up(within.Context(t), Spec{Owner: fmt.Sprintf("test-%d", os.Getpid()), SourceQEMU: qemu, DestinationQEMU: qemu, Accelerator: "tcg", Fill: enough})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	}()
	if err := l.agent.Call(within.Context(t), wire.DoCorrupt, wire.Corrupt{Page: 4711}, nil); err != nil {
		t.Fatal(err)
	}
	rec, err := l.Migrate(within.Context(t), plan.Plan{}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if c := rec.MemoryCheck; c == nil || c.PagesWrong != 1 || !strings.Contains(strings.Join(rec.Warnings, "\n"), "memory check FAILED") {
		t.Errorf("a corrupt page went unseen: %+v, warnings %q", c, rec.Warnings)
	}
}
