package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

// TestStorageChaos kills, at random moments of migrations, the source's QEMU, the destination's, or what serves the disks. Wherever the guest is
// afterwards every acknowledged write is there; a guest that is lost with its QEMU leaves them on the disk. QMIGRATE_CHAOS is how many trials each
// kind of storage and each victim has; by default each kind has one.
func TestStorageChaos(t *testing.T) {
	n, seed := 0, uint64(time.Now().UnixNano())
	for name, into := range map[string]func(uint64){"QMIGRATE_CHAOS": func(v uint64) { n = int(v) }, "QMIGRATE_SEED": func(v uint64) { seed = v }} {
		if text := os.Getenv(name); text != "" {
			v, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatalf("%s=%s: %v", name, text, err)
			}
			into(v)
		}
	}
	t.Logf("QMIGRATE_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, seed))
	victims := []string{"source", "destination", "server"}
	versions := guesttest.Versions()
	for k, kind := range []string{"shared:format=qcow2", "mirror:copy-mode=write-blocking", "mirror", "iscsi", "nfs"} {
		mine := victims
		if strings.HasPrefix(kind, "shared") {
			mine = victims[:2] // nobody serves it
		}
		trials := n * len(mine)
		if n == 0 {
			trials = 1
		}
		for i := range trials {
			victim := mine[(k+i)%len(mine)]
			version := versions[random.IntN(len(versions))]
			after := time.Duration(random.Int64N(int64(3500 * time.Millisecond)))
			t.Run(fmt.Sprintf("%s/%s/%s/%d/%v", kind, version, victim, i, after), func(t *testing.T) { storageTrial(t, kind, version, victim, "", after) })
		}
	}
	// Instants that chance seldom finds: the destination dies just before it could run the guest, and with the guest just after, while the source lives.
	for _, version := range versions {
		for _, at := range []string{string(record.Commitment), "RESUME"} {
			t.Run("shared/"+version+"/destination/"+at, func(t *testing.T) {
				storageTrial(t, "shared:format=qcow2", version, "destination", at, 0)
			})
		}
	}
}

// begin is an slog.Handler that does something once: when the engine logs its first line, the end of a stage, or an event.
type begin struct {
	at   string // name of the stage or the event; "": the first line
	do   func()
	once sync.Once
}

func (b *begin) Enabled(context.Context, slog.Level) bool { return true }
func (b *begin) WithGroup(string) slog.Handler            { return b }
func (b *begin) WithAttrs([]slog.Attr) slog.Handler       { return b }
func (b *begin) Handle(_ context.Context, r slog.Record) error {
	reached := b.at == ""
	r.Attrs(func(a slog.Attr) bool {
		reached = reached || (r.Message == "stage" || r.Message == "event") && a.Key == "name" && a.Value.String() == b.at
		return true
	})
	if reached {
		b.once.Do(b.do)
	}
	return nil
}

// storageTrial does harm a while after an instant that begin knows.
func storageTrial(t *testing.T, kind, version, victim, at string, after time.Duration) {
	l := withStorage(t, kind+map[bool]string{true: ",", false: ":"}[strings.Contains(kind, ":")]+"rate=300/s", version, version)
	agent, failed := l.agent, make(chan error, 1)
	var timer *time.Timer
	begun := &begin{at: at, do: func() {
		timer = time.AfterFunc(after, func() { failed <- l.hurt(victim) })
		if at != "" { // at once: the engine waits for it
			time.Sleep(after + 50*time.Millisecond)
		}
	}}
	rec, err := l.Migrate(within.Context(t), plan.Plan{MaxBandwidth: 64 << 20}, plan.Options{Logger: slog.New(begun)})
	if timer == nil {
		t.Fatalf("the migration never began: %v", err)
	}
	if !timer.Stop() {
		if err, _ := within.Receive(t, "the harm to be done", failed); err != nil {
			t.Fatal(err)
		}
	}
	var failure *record.StageError
	if err != nil && !errors.As(err, &failure) {
		t.Fatal(err)
	}
	t.Logf("%s, guest on %s: %v", rec.Outcome, rec.GuestOn, err)
	switch {
	case rec.GuestOn == record.Source, rec.GuestOn == record.Destination && rec.DiskCheck != nil:
		wantDisks(t, rec)
		t.Logf("%+v", *rec.DiskCheck)
		return
	case victim == "server":
		t.Fatalf("no QEMU was killed, and the guest is on %s", rec.GuestOn)
	}
	// The guest died with its QEMU: what it was told to be durable is on the disk. The other QEMU, should it live, goes as well: it would keep its
	// line of acknowledgements open for ever.
	ctx, cancel := context.WithTimeout(within.Context(t), killLimit)
	defer cancel()
	if err := errors.Join(l.source.Kill(ctx), l.destination.Kill(ctx)); err != nil {
		t.Fatal(err)
	}
	within.Receive(t, "the end of the guest's line", agent.Done())
	last := record.Source
	if victim == "destination" {
		last = record.Destination
	}
	if err := l.disks.Ledger.Close(); err != nil {
		t.Fatal(err)
	}
	var c record.DiskCheck
	if err := l.disks.CheckImages(t.Context(), &c, last); err != nil {
		t.Fatal(err)
	}
	if !c.OK() || c.BlocksChecked == 0 || c.WritesAcknowledged < 50 {
		t.Errorf("on the disk of the guest that died: %+v", c)
	}
	t.Logf("on the disk: %+v", c)
}

// hurt kills a QEMU, or kills what serves the disks and starts it again, or stops the mirror's NBD server.
func (l *Lab) hurt(victim string) error {
	ctx, cancel := context.WithTimeout(context.Background(), killLimit)
	defer cancel()
	switch {
	case victim == "source":
		return l.source.Kill(ctx)
	case victim == "destination":
		return l.destination.Kill(ctx)
	case l.disks.Server != nil:
		if err := l.disks.Server.Close(); err != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond)
		return l.disks.Server.Start(ctx)
	}
	nc, err := l.destination.Dial(ctx, "sampler")
	if err != nil {
		return nil // it has gone already
	}
	defer nc.Close()
	_, _ = nc.Write([]byte(`{"execute":"qmp_capabilities"}{"execute":"nbd-server-stop"}`))
	_ = nc.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = nc.Read(make([]byte, 4096))
	time.Sleep(50 * time.Millisecond)
	return nil
}
