package qmp_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/qmp"
)

func TestStatus(t *testing.T) {
	forEachMonitor(t, map[string][]string{"status": guestArgs}, func(t *testing.T, l *lab) {
		c := l.conn(t, "status")
		g := c.Greeting()
		if got := g.Version.String(); len(got) < len(l.version) || got[:len(l.version)] != l.version {
			t.Errorf("version %s, want %s", got, l.version)
		}
		if g.Version.Package == "" || !slices.Contains(g.Capabilities, "oob") {
			t.Errorf("greeting %+v: want a package and oob", g)
		}
		sub := c.Subscribe(10)
		s, err := c.QueryStatus(limit(t))
		if want := (qmp.Status{Status: "prelaunch"}); err != nil || s != want {
			t.Errorf("status %+v, %v; want %+v", s, err, want)
		}
		if err := c.Cont(limit(t)); err != nil {
			t.Error(err)
		}
		e := <-sub.C
		if e.Name != "RESUME" || e.QEMUTime.IsZero() || e.Arrived.IsZero() {
			t.Errorf("event %+v, want RESUME with its times", e)
		}
		if s, err = c.QueryStatus(limit(t)); err != nil || !s.Running || s.Status != "running" {
			t.Errorf("status %+v, %v; want running", s, err)
		}
		if err := c.Stop(limit(t)); err != nil {
			t.Error(err)
		}
		if e = <-sub.C; e.Name != "STOP" {
			t.Errorf("event %+v, want STOP", e)
		}
	})
}

func TestMachine(t *testing.T) {
	forEachMonitor(t, map[string][]string{"machine": guestArgs}, func(t *testing.T, l *lab) {
		c, ctx := l.conn(t, "machine"), limit(t)
		if m, err := c.MachineType(ctx); m != "pc-q35-7.2" || err != nil {
			t.Errorf("machine type %q, %v", m, err)
		}
		if n, err := c.MemorySize(ctx); n != 64<<20 || err != nil {
			t.Errorf("memory size %d, %v", n, err)
		}
		if cpus, err := c.CPUs(ctx); len(cpus) != 1 || cpus[0].Thread <= 0 || err != nil {
			t.Errorf("CPUs %v, %v", cpus, err)
		}
		if k, err := c.KVM(ctx); k || err != nil {
			t.Errorf("KVM %v, %v", k, err)
		}
		if b, err := c.Blockers(ctx); len(b) != 0 || err != nil {
			t.Errorf("blockers %q, %v", b, err)
		}
	})
}

func TestBlockers(t *testing.T) {
	guest := append(slices.Clone(guestArgs), "-blockdev", "driver=vvfat,node-name=fat,dir=FOLDER,rw=on")
	forEachMonitor(t, map[string][]string{"blockers": guest}, func(t *testing.T, l *lab) {
		b, err := l.conn(t, "blockers").Blockers(limit(t))
		if err != nil || len(b) != 2 || !strings.Contains(strings.Join(b, "\n"), "vvfat") {
			t.Errorf("blockers %q, %v; want two, one about vvfat and one about the qcow below it", b, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	forEachMonitor(t, map[string][]string{"error": guestArgs}, func(t *testing.T, l *lab) {
		c, ctx := l.conn(t, "error"), limit(t)
		var refused *qmp.CommandError
		err := c.Execute(ctx, "nope", nil, nil)
		if !errors.As(err, &refused) || *refused != (qmp.CommandError{Command: "nope", Class: "CommandNotFound", Desc: "The command nope has not been found"}) {
			t.Errorf("unknown command: %#v", err)
		}
		err = c.Execute(ctx, "migrate", map[string]int{"uri": 3}, nil)
		if !errors.As(err, &refused) || refused.Class != "GenericError" || refused.Command != "migrate" {
			t.Errorf("wrong argument: %#v", err)
		}
		err = c.SetMigrateCapabilities(ctx, map[string]bool{"teleport": true})
		if !errors.As(err, &refused) {
			t.Errorf("unknown capability: %#v", err)
		}
		err = c.ExecuteOOB(ctx, "query-migrate", nil, nil)
		if !errors.As(err, &refused) || refused.Desc != "The command query-migrate does not support OOB" {
			t.Errorf("query-migrate out of band: %#v", err)
		}
		err = c.ExecuteOOB(ctx, "migrate-pause", nil, nil)
		if !errors.As(err, &refused) {
			t.Errorf("migrate-pause without a migration: %#v", err)
		}
		if err := c.MigrateCancel(ctx); err != nil {
			t.Errorf("cancel nothing: %v", err)
		}
		if err := c.Execute(ctx, "query-version", nil, nil); err != nil {
			t.Errorf("after refusals: %v", err)
		}
	})
}

func TestMigrateIdle(t *testing.T) {
	forEachMonitor(t, map[string][]string{"migrate-idle": guestArgs}, func(t *testing.T, l *lab) {
		m, err := l.conn(t, "migrate-idle").QueryMigrate(limit(t))
		if err != nil || m.Has != 0 || m.Status != "" {
			t.Errorf("%+v, %v; want nothing", m, err)
		}
	})
}

func TestParameters(t *testing.T) {
	forEachMonitor(t, map[string][]string{"parameters": guestArgs}, func(t *testing.T, l *lab) {
		c, ctx := l.conn(t, "parameters"), limit(t)
		p, err := c.QueryMigrateParameters(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]any{
			"max-bandwidth": int64(128 << 20), "downtime-limit": int64(300), "tls-creds": "", "cpu-throttle-tailslow": false, "multifd-compression": "none",
		} {
			if p[name] != want {
				t.Errorf("%s is %#v, want %#v", name, p[name], want)
			}
		}
		if _, ok := p["zero-page-detection"]; ok != (l.version != "7.2") {
			t.Errorf("zero-page-detection in %v: %v", l.version, ok)
		}
		set := map[string]any{"max-bandwidth": int64(50 << 20), "downtime-limit": 150, "cpu-throttle-tailslow": true, "tls-hostname": "12"}
		if err := c.SetMigrateParameters(ctx, set); err != nil {
			t.Fatal(err)
		}
		mapping := []any{map[string]any{"node-name": "disk", "alias": "a", "bitmaps": []any{}}}
		if err := c.SetMigrateParameters(ctx, map[string]any{"block-bitmap-mapping": mapping}); err != nil {
			t.Fatal(err)
		}
		if p, err = c.QueryMigrateParameters(ctx); err != nil {
			t.Fatal(err)
		}
		if p["max-bandwidth"] != int64(50<<20) || p["downtime-limit"] != int64(150) || p["cpu-throttle-tailslow"] != true || p["tls-hostname"] != "12" {
			t.Errorf("read back %v", p)
		}
		if b, _ := p["block-bitmap-mapping"].([]any); len(b) != 1 || b[0].(map[string]any)["alias"] != "a" {
			t.Errorf("block-bitmap-mapping is %#v", p["block-bitmap-mapping"])
		}

		k, err := c.QueryMigrateCapabilities(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if on, ok := k["events"]; on || !ok {
			t.Errorf("events: %v, %v; want off", on, ok)
		}
		if _, ok := k["mapped-ram"]; ok != (l.version != "7.2") {
			t.Errorf("mapped-ram in %v: %v", l.version, ok)
		}
		if err := c.SetMigrateCapabilities(ctx, map[string]bool{"xbzrle": false, "return-path": true, "events": true}); err != nil {
			t.Fatal(err)
		}
		if k, err = c.QueryMigrateCapabilities(ctx); err != nil || !k["events"] || !k["return-path"] || k["xbzrle"] {
			t.Errorf("read back %v, %v", k, err)
		}
	})
}

func TestFiles(t *testing.T) {
	forEachMonitor(t, map[string][]string{"files": guestArgs}, func(t *testing.T, l *lab) {
		c, ctx := l.conn(t, "files"), limit(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := c.ExecuteFiles(ctx, "getfd", map[string]string{"fdname": "pipe"}, nil, w); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if err := c.Execute(ctx, "closefd", map[string]string{"fdname": "pipe"}, nil); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("read %d, %v; want the end, for QEMU had the last writer and closed it", n, err)
		}
		var refused *qmp.CommandError
		if err := c.Execute(ctx, "getfd", map[string]string{"fdname": "none"}, nil); !errors.As(err, &refused) {
			t.Errorf("getfd without a descriptor: %v", err)
		}
	})
}

func TestQuit(t *testing.T) {
	forEachMonitor(t, map[string][]string{"quit": guestArgs}, func(t *testing.T, l *lab) {
		c := l.conn(t, "quit")
		sub := c.Subscribe(10)
		if err := c.Quit(limit(t)); err != nil {
			t.Fatal(err)
		}
		await(t, sub, "SHUTDOWN")
		if e, ok := <-sub.C; ok {
			t.Errorf("event %+v, want the end", e)
		}
		l.ended("quit")
		<-c.Done()
		var broken *qmp.OpError
		if err := c.Err(); !errors.Is(err, qmp.ErrDisconnected) || !errors.As(err, &broken) {
			t.Errorf("after quit: %v; want an OpError of ErrDisconnected", err)
		}
		if _, err := c.QueryStatus(limit(t)); !errors.Is(err, qmp.ErrDisconnected) || !errors.As(err, &broken) || broken.Op != "query-status" {
			t.Errorf("query-status after quit: %v", err)
		}
	})
}

// uri is where the pair of a test migrates.
func (l *lab) uri() string { return "unix:" + filepath.Join(l.dir, "migration.sock") }

// await reads events up to the one wanted and returns all that it saw: a MIGRATION event is named by its status.
func await(t *testing.T, sub *qmp.Subscription, want string) (names []string) {
	t.Helper()
	ctx := limit(t)
	for {
		select {
		case e, ok := <-sub.C:
			if !ok {
				t.Fatalf("the events ended; saw %q, want %q", names, want)
			}
			name := e.Name
			if name == "MIGRATION" {
				name = migrationStatus(t, e)
			}
			names = append(names, name)
			if name == want {
				return names
			}
		case <-ctx.Done():
			t.Fatalf("saw %q, want %q", names, want)
		}
	}
}

func migrationStatus(t *testing.T, e qmp.Event) string {
	t.Helper()
	var d struct{ Status string }
	if err := json.Unmarshal(e.Data, &d); err != nil {
		t.Fatal(err)
	}
	return d.Status
}

// in says whether all of want are in names, in that order, with or without others between.
func in(names []string, want ...string) bool {
	for _, n := range names {
		if len(want) > 0 && n == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}

var incomingArgs = append(slices.Clone(guestArgs), "-incoming", "defer")

func TestMigrateCompleted(t *testing.T) {
	guests := map[string][]string{"migrate-source": guestArgs, "migrate-destination": incomingArgs}
	forEachMonitor(t, guests, func(t *testing.T, l *lab) {
		src, dst, ctx := l.conn(t, "migrate-source"), l.conn(t, "migrate-destination"), limit(t)
		events := map[string]bool{"events": true}
		if err := src.SetMigrateCapabilities(ctx, events); err != nil {
			t.Fatal(err)
		}
		if err := dst.SetMigrateCapabilities(ctx, events); err != nil {
			t.Fatal(err)
		}
		if err := src.Cont(ctx); err != nil {
			t.Fatal(err)
		}
		out, in1 := src.Subscribe(1000), dst.Subscribe(1000) // 11.1 may announce some hundred passes
		if err := dst.MigrateIncoming(ctx, l.uri()); err != nil {
			t.Fatal(err)
		}
		await(t, in1, "setup")
		m, err := dst.QueryMigrate(ctx)
		if err != nil || !m.Has.Contains(qmp.FieldSocketAddress) {
			t.Fatalf("destination %+v, %v; want an address", m, err)
		}
		if want := l.version != "7.2"; m.Has.Contains(qmp.FieldStatus) != want || want && m.Status != "setup" {
			t.Errorf("destination's status %q; 7.2 leaves it out until the stream begins, 10.0 has setup", m.Status)
		}
		if a := m.SocketAddress; len(a) != 1 || a[0].Type != "unix" || "unix:"+a[0].Path != l.uri() {
			t.Errorf("destination listens at %+v, want %s", a, l.uri())
		}
		if err := src.Migrate(ctx, l.uri()); err != nil {
			t.Fatal(err)
		}
		saw := await(t, out, "completed")
		if !in(saw, "setup", "active", "STOP", "completed") || !slices.Contains(saw, "MIGRATION_PASS") {
			t.Errorf("source's events %q", saw)
		}
		if saw = await(t, in1, "completed"); !in(saw, "active", "completed") {
			t.Errorf("destination's events %q", saw)
		}
		for { // the first answer that says completed may have no times yet
			if m, err = src.QueryMigrate(ctx); err != nil {
				t.Fatal(err)
			}
			if m.Status == "completed" && m.TotalTime > 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		const has = qmp.FieldStatus | qmp.FieldTotalTime | qmp.FieldSetupTime | qmp.FieldDowntime | qmp.FieldTransferred | qmp.FieldRemaining |
			qmp.FieldTotal | qmp.FieldNormal | qmp.FieldNormalBytes | qmp.FieldDuplicate | qmp.FieldDirtySyncCount | qmp.FieldPageSize | qmp.FieldThroughput
		if !m.Has.Contains(has) || m.Has.Contains(qmp.FieldExpectedDowntime) || m.Has.Contains(qmp.FieldErrorDesc) {
			t.Errorf("fields %b, want %b", m.Has, has)
		}
		if m.Total < 64<<20 || m.PageSize != 4096 || m.Transferred == 0 || m.Remaining != 0 || m.NormalBytes != m.Normal*4096 || m.Duplicate < 10000 || m.Throughput == 0 {
			t.Errorf("source %+v", m)
		}
		if m.TotalTime < time.Millisecond || m.TotalTime%time.Millisecond != 0 || m.TotalTime > time.Minute || m.Downtime > m.TotalTime {
			t.Errorf("total time %v, downtime %v", m.TotalTime, m.Downtime)
		}
		s, err := src.QueryStatus(ctx)
		if want := (qmp.Status{Status: "postmigrate"}); err != nil || s != want {
			t.Errorf("source is %+v, %v", s, err)
		}
		if err := dst.Cont(ctx); err != nil {
			t.Fatal(err)
		}
		await(t, in1, "RESUME")
		if s, err = dst.QueryStatus(ctx); err != nil || !s.Running {
			t.Errorf("destination is %+v, %v; want running", s, err)
		}
		if out.Dropped() != 0 || in1.Dropped() != 0 {
			t.Errorf("dropped %d and %d events", out.Dropped(), in1.Dropped())
		}
	})
}

func TestCancel(t *testing.T) {
	guests := map[string][]string{"cancel": guestArgs, "cancel-destination": incomingArgs}
	forEachMonitor(t, guests, func(t *testing.T, l *lab) {
		src, dst, ctx := l.conn(t, "cancel"), l.conn(t, "cancel-destination"), limit(t)
		out, failed := src.Subscribe(100), dst.Subscribe(100)
		if err := dst.SetMigrateCapabilities(ctx, map[string]bool{"events": true}); err != nil {
			t.Fatal(err)
		}
		if err := dst.MigrateIncoming(ctx, l.uri()); err != nil {
			t.Fatal(err)
		}
		if err := src.SetMigrateCapabilities(ctx, map[string]bool{"events": true}); err != nil {
			t.Fatal(err)
		}
		if err := src.SetMigrateParameters(ctx, map[string]any{"max-bandwidth": 4096}); err != nil {
			t.Fatal(err)
		}
		if err := src.Migrate(ctx, l.uri()); err != nil {
			t.Fatal(err)
		}
		await(t, out, "active")
		m, err := src.QueryMigrate(ctx)
		if err != nil || m.Status != "active" || !m.Has.Contains(qmp.FieldRemaining|qmp.FieldExpectedDowntime) || m.Remaining == 0 || m.Has.Contains(qmp.FieldDowntime) {
			t.Errorf("under way: %+v, %v", m, err)
		}
		if err := src.MigrateCancel(ctx); err != nil {
			t.Fatal(err)
		}
		if saw := await(t, out, "cancelled"); !in(saw, "cancelling", "cancelled") {
			t.Errorf("events %q", saw)
		}
		if m, err = src.QueryMigrate(ctx); err != nil || m.Status != "cancelled" || m.Has.Contains(qmp.FieldTransferred) {
			t.Errorf("afterwards: %+v, %v; want cancelled and no section ram", m, err)
		}
		await(t, failed, "failed")
		<-dst.Done() // its process exits
		l.ended("cancel-destination")
	})
}

func TestSampler(t *testing.T) {
	guests := map[string][]string{"sampler": guestArgs, "sampler-destination": incomingArgs}
	forEachMonitor(t, guests, func(t *testing.T, l *lab) {
		ctx := limit(t)
		dst := l.conn(t, "sampler-destination")
		if err := dst.MigrateIncoming(ctx, l.uri()); err != nil {
			t.Fatal(err)
		}
		src := l.conn(t, "sampler") // one monitor, first for commands and then for samples
		if err := src.SetMigrateCapabilities(ctx, map[string]bool{"events": true}); err != nil {
			t.Fatal(err)
		}
		if err := src.SetMigrateParameters(ctx, map[string]any{"max-bandwidth": 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if err := src.Migrate(ctx, l.uri()); err != nil {
			t.Fatal(err)
		}
		src.Close()
		s := l.sampler(t, "sampler")
		deadline, _ := ctx.Deadline()
		if err := s.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
		var m qmp.MigrationInfo
		var last int64
		for m.Status != "completed" || m.TotalTime == 0 {
			if err := s.QueryMigrate(&m); err != nil {
				t.Fatal(err)
			}
			if m.Has.Contains(qmp.FieldTransferred) && m.Transferred < last {
				t.Errorf("transferred went from %d to %d", last, m.Transferred)
			}
			last = m.Transferred
			if m.Status == "failed" {
				t.Fatalf("migration failed: %+v", m)
			}
			if l.dir != wirePath {
				time.Sleep(20 * time.Millisecond)
			}
		}
		if !m.Has.Contains(qmp.FieldDowntime|qmp.FieldThroughput) || m.Total < 64<<20 {
			t.Errorf("last answer %+v", m)
		}
	})
}
