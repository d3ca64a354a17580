package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest/debian"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/qmp"
)

// withStorage is a lab whose guest writes to disks; it is gone when the test ends.
func withStorage(t *testing.T, kind, source, destination string, change ...func(*storage.Spec)) *Lab {
	t.Helper()
	needRoot(t)
	s, err := storage.Parse(kind)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(&s)
	}
	for _, what := range map[storage.Kind][]debian.What{storage.ISCSI: {debian.Target}, storage.NFS: {debian.Ganesha}}[s.Kind] {
		if _, err := debian.Find(what); err != nil {
			guesttest.Unable(t, err, "`make deps` gets it")
		}
	}
	l, err := Up(within.Context(t), Spec{
		Owner:      fmt.Sprintf("test-%d", os.Getpid()),
		SourceQEMU: reaching(t, source, s.Kind), DestinationQEMU: reaching(t, destination, s.Kind),
		Accelerator: "tcg", Storage: s,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	return l
}

// reaching is a QEMU of this series that has the client of this storage. One that is installed may lack it; one in the
// cache has it.
func reaching(t *testing.T, series string, kind storage.Kind) string {
	t.Helper()
	qemu := guesttest.QEMU(t, series)
	if kind != storage.ISCSI && kind != storage.NFS {
		return qemu
	}
	lacks := debian.HasDriver(within.Context(t), qemu, string(kind))
	if lacks == nil {
		return qemu
	}
	unpacked, err := debian.Find(debian.What("qemu-" + series))
	if err != nil { // the user's QEMU is as the user wants it
		t.Skipf("%v, and no QEMU is unpacked that has it: `make deps` leaves out a series that is installed", lacks)
	}
	return unpacked
}

// wantDisks checks what must hold of the disks after any migration: every acknowledged write is there, and there were some.
func wantDisks(t *testing.T, rec *record.Migration) {
	t.Helper()
	c := rec.DiskCheck
	if c == nil || !c.OK() || c.WritesAcknowledged < 50 || c.BlocksChecked < 256 {
		t.Fatalf("disk check %+v; warnings %q", c, rec.Warnings)
	}
	if m := rec.MemoryCheck; m == nil || m.PagesWrong != 0 {
		t.Errorf("memory check %+v", m)
	}
}

// ask sends one command to a lab's QEMU over a monitor that nobody else uses.
func command(t *testing.T, l *Lab, side string, name string, args, result any) error {
	t.Helper()
	vm := l.source
	if side == "destination" {
		vm = l.destination
	}
	nc, err := vm.Dial(within.Context(t), "control")
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(within.Context(t), nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.Execute(within.Context(t), name, args, result)
}

// TestStorage migrates a guest that writes to its disks, on each kind of storage: no acknowledged write is lost, a mirror's images are the
// same, and afterwards the source holds its disks no more.
func TestStorage(t *testing.T) {
	for k, kind := range []string{
		"shared", "shared:format=qcow2,disks=2",
		"mirror:rate=200/s", "mirror:copy-mode=write-blocking,disks=2,rate=200/s", "mirror:format=qcow2",
		"iscsi:chap=off", "iscsi:disks=2", "nfs",
	} {
		for i, mode := range []record.Mode{record.PreCopyMode, record.PreCopyMode, record.StopAndCopyMode} {
			all := guesttest.Versions() // the kinds take turns over the nine pairs
			pair := [2]string{all[(k+i)%len(all)], all[(k+2*i)%len(all)]}
			t.Run(fmt.Sprintf("%s/%s/%s-%s", kind, mode, pair[0], pair[1]), func(t *testing.T) {
				l := withStorage(t, kind, pair[0], pair[1])
				rec, err := l.Migrate(within.Context(t), plan.Plan{Mode: mode}, plan.Options{})
				if err != nil {
					t.Fatal(err)
				}
				wantDisks(t, rec)
				t.Logf("%+v", *rec.DiskCheck)
				if rec.DiskCheck.WriteErrors != 0 {
					t.Errorf("%d writes were refused", rec.DiskCheck.WriteErrors)
				}
				if l.spec.Storage.Kind == storage.Mirror {
					wantMirrors(t, l, rec)
				}
				wantFenced(t, l)
			})
		}
	}
}

func wantMirrors(t *testing.T, l *Lab, rec *record.Migration) {
	t.Helper()
	if same := rec.DiskCheck.ImagesIdentical; same == nil || !*same {
		t.Errorf("images identical: %v, %v blocks differ; warnings %q", same, rec.DiskCheck.BlocksDifferent, rec.Warnings)
	}
	if len(rec.Mirrors) != l.spec.Storage.Disks || rec.Stage(record.Storage) == nil {
		t.Fatalf("mirrors %+v, stages %+v", rec.Mirrors, rec.Stages)
	}
	for _, m := range rec.Mirrors {
		if m.Ready == nil || m.Finish == nil || m.Transferred == nil || l.spec.Storage.Format == "raw" && *m.Transferred < m.Bytes || m.CopyMode != l.spec.Storage.CopyMode {
			t.Errorf("mirror %+v", m)
		}
		t.Logf("%s: in step after %v, ended in %v, %d bytes", m.Node, m.Ready, m.Finish, *m.Transferred)
	}
	var exports []any
	if err := command(t, l, "destination", "query-block-exports", nil, &exports); err != nil || len(exports) != 0 {
		t.Errorf("the destination still exports %v, %v", exports, err)
	}
	wantNoLeftovers(t, l)
}

// wantNoLeftovers: the source has no job and no node of ours.
func wantNoLeftovers(t *testing.T, l *Lab) {
	t.Helper()
	var jobs []any
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := command(t, l, "source", "query-block-jobs", nil, &jobs); err != nil || len(jobs) != 0 {
		t.Errorf("the source still has jobs %v, %v", jobs, err)
	}
	if err := command(t, l, "source", "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		t.Error(err)
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, "qmigrate-") {
			t.Errorf("the source still has node %s", n.Name)
		}
	}
}

// wantFenced: a source that has handed its guest over is in postmigrate, and its disks are inactive: where QEMU tells (from 10.0) by its own
// word, on a file by the write lock that it has let go.
func wantFenced(t *testing.T, l *Lab) {
	t.Helper()
	var status qmp.Status
	if err := command(t, l, "source", "query-status", nil, &status); err != nil || status.Status != "postmigrate" {
		t.Errorf("the source is %+v, %v", status, err)
	}
	var nodes []struct {
		Name   string `json:"node-name"`
		Active *bool  `json:"active"`
	}
	if err := command(t, l, "source", "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Active != nil && *n.Active {
			t.Errorf("node %s of the source is still active", n.Name)
		}
	}
}

// TestDiskCheckFails shows that the disk check can fail: a block that somebody changed, and one that somebody put back, are found.
func TestDiskCheckFails(t *testing.T) {
	l := withStorage(t, "shared:rate=500/s,area=1MiB", "10.0", "10.0")
	rec, err := l.Migrate(within.Context(t), plan.Plan{}, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantDisks(t, rec)
	var block int64 = -1 // one that was written
	for i, n := range l.disks.Ledger.Numbers("disk0") {
		if n > 0 {
			block = int64(i)
			break
		}
	}
	if err := l.agent.Call(within.Context(t), wire.DoDiskCorrupt, wire.DiskCorrupt{Disk: "disk0", Block: block}, nil); err != nil {
		t.Fatal(err)
	}
	again := &record.Migration{Outcome: record.Completed}
	l.disks.Check(within.Context(t), l.agent, again)
	if c := again.DiskCheck; c == nil || c.BlocksWrong != 1 || c.WritesLost != 1 || c.OK() || !strings.Contains(strings.Join(again.Warnings, "\n"), "disk check FAILED") {
		t.Errorf("a corrupt block went unseen: %+v, warnings %q", c, again.Warnings)
	}
	// as if a later write had been acknowledged
	l.disks.Ledger.Acknowledge(wire.DiskAcks{Disk: "disk0", Acks: [][2]uint64{{uint64(block) + 1, 1 << 40}}})
	lost := &record.Migration{Outcome: record.Completed}
	if l.disks.Check(within.Context(t), l.agent, lost); lost.DiskCheck == nil || lost.DiskCheck.WritesLost != 2 {
		t.Errorf("a lost write went unseen: %+v", lost.DiskCheck)
	}
	var onHost record.DiskCheck
	if err := l.disks.CheckImages(t.Context(), &onHost, record.Source); err != nil || onHost.BlocksWrong != 1 || onHost.WritesLost != 2 {
		t.Errorf("read from the host: %+v, %v", onHost, err)
	}
}

// TestStoragePostCopy: the mirrors end before the guest runs on the destination in post-copy too, and its disks are fenced likewise.
func TestStoragePostCopy(t *testing.T) {
	for k, kind := range []string{"mirror:copy-mode=write-blocking", "iscsi"} {
		for v, version := range guesttest.Versions() {
			for m, mode := range []record.Mode{record.PostCopyMode, record.HybridMode} {
				if (k+v+m)%2 != 0 { // each QEMU has each kind once, and each mode once
					continue
				}
				t.Run(fmt.Sprint(kind, "/", version, "/", mode), func(t *testing.T) {
					l := withStorage(t, kind, version, version)
					rec, err := l.Migrate(within.Context(t), plan.Plan{Mode: mode}, plan.Options{})
					if err != nil {
						t.Fatal(err)
					}
					wantDisks(t, rec)
					if l.spec.Storage.Kind == storage.Mirror {
						wantMirrors(t, l, rec)
					}
					wantFenced(t, l)
				})
			}
		}
	}
}

// TestGrowingImageOnNFS: an image that grows, by QEMU's own NFS client, is refused before anything moves: on the destination acknowledged writes would
// read as zeros. The refusal goes when QEMU can do it: remove it, and see this test lose writes or not.
func TestGrowingImageOnNFS(t *testing.T) {
	for _, version := range guesttest.Versions() {
		t.Run(version, func(t *testing.T) {
			l := withStorage(t, "nfs", version, version, func(s *storage.Spec) { s.Format = "qcow2" })
			rec, err := l.Migrate(within.Context(t), plan.Plan{}, plan.Options{})
			if err == nil || !strings.Contains(err.Error(), "does not learn that it has grown") || rec.GuestOn != record.Source {
				t.Fatalf("guest on %s: %v", rec.GuestOn, err)
			}
			if c := rec.DiskCheck; c == nil || !c.OK() {
				t.Errorf("disk check %+v", c)
			}
		})
	}
}
