package load

import (
	"context"
	"fmt"
	"path/filepath"

	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// diskSeed is part of the content of every record that the lab's guests write.
const diskSeed = 1

// Check stops the writers and reads in the guest, past its cache, whether every acknowledged write is there.
func (d *Disks) Check(ctx context.Context, agent *guest.Agent, rec *record.Migration) {
	if d == nil {
		return
	}
	s := d.spec.Storage
	c := &record.DiskCheck{Storage: s.String(), Disks: s.Disks}
	fail := func(err error) { rec.Warn("the guest's disks were not checked: %v", err) }
	for _, node := range s.Nodes() {
		var st wire.DiskStatus
		if err := agent.Call(ctx, wire.DoDiskStop, wire.DiskName{Disk: node}, &st); err != nil {
			fail(err)
			return
		}
		c.WriteErrors += int64(st.Errors)
		c.AcksDropped += int64(st.Dropped)
		if c.WriteLongest == nil || *c.WriteLongest < st.Longest {
			c.WriteLongest = record.Of(st.Longest)
		}
		if st.Errors > 0 {
			rec.Warn("disk %s refused %d writes, the last with %q", node, st.Errors, st.LastError)
		}
	}
	for _, node := range s.Nodes() {
		for first, blocks := int64(0), s.Area/wire.BlockSize; first < blocks; {
			var b wire.DiskBlocks
			n := min(wire.MaxDiskRead, blocks-first)
			ask := wire.DiskRead{Disk: node, First: first, Count: n, Seed: diskSeed}
			if err := agent.Call(ctx, wire.DoDiskRead, ask, &b); err != nil {
				fail(err)
				return
			}
			if int64(len(b.Numbers)) != n || b.First != first {
				fail(fmt.Errorf("%d blocks from %d were asked for, %d from %d came", n, first, len(b.Numbers), b.First))
				return
			}
			d.Ledger.compare(c, node, first, b.Numbers)
			first += n
		}
	}
	c.WritesAcknowledged = d.Ledger.acknowledged()
	if s.Kind == storage.Mirror && rec.Outcome == record.Completed {
		if err := d.compareImages(ctx, c); err != nil {
			rec.Warn("the disks' images were not compared: %v", err)
		}
	}
	rec.DiskCheck = c
	if !c.OK() {
		rec.Warn("the disk check FAILED: of %d acknowledged writes %d blocks have lost theirs, %d of %d blocks are wrong",
			c.WritesAcknowledged, c.WritesLost, c.BlocksWrong, c.BlocksChecked)
	}
}

// compareImages reads both sides' images of each disk on their hosts, when the guest's writers have stopped.
func (d *Disks) compareImages(ctx context.Context, c *record.DiskCheck) error {
	s, total := d.spec.Storage, int64(0)
	for i := range s.Disks {
		original, err := storage.ContentsOn(ctx, d.spec.Source.Host, d.Source[i].Path, s.Format, diskSeed)
		if err != nil {
			return err
		}
		copied, err := storage.ContentsOn(ctx, d.spec.Destination.Host, d.Destination[i].Path, s.Format, diskSeed)
		if err != nil {
			return err
		}
		differ, err := storage.Identical(original, copied, s.Area)
		if err != nil {
			return err
		}
		total += differ
	}
	c.ImagesIdentical, c.BlocksDifferent = record.Of(total == 0), &total
	return nil
}

// CheckImages counts into c what the disks' images hold, read on their host as the side that kept the guest last sees
// them: for a guest that is lost with its QEMU, after both lines of acknowledgements have ended.
func (d *Disks) CheckImages(ctx context.Context, c *record.DiskCheck, side record.Holder) error {
	c.WritesAcknowledged = d.Ledger.acknowledged()
	disks, at := d.Source, d.spec.Source.Host
	if side == record.Destination {
		disks, at = d.Destination, d.spec.Destination.Host
	}
	for _, disk := range disks {
		if d.Server != nil { // its own file
			at = d.spec.Observer
		}
		if disk.Driver == "iscsi" {
			disk.Path = filepath.Join(d.Server.dir, disk.Node+".raw")
		}
		if err := d.checkImage(ctx, c, at, disk); err != nil {
			return err
		}
	}
	return nil
}

func (d *Disks) checkImage(ctx context.Context, c *record.DiskCheck, at host.Host, disk guest.Disk) error {
	s := d.spec.Storage
	found, err := storage.ContentsOn(ctx, at, disk.Path, s.Format, diskSeed)
	if err != nil {
		return err
	}
	numbers, err := found.Numbers(s.Area / wire.BlockSize)
	if err == nil {
		d.Ledger.compare(c, disk.Node, 0, numbers)
	}
	return err
}
