package load

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/wire"
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
		if err := d.compareImages(c); err != nil {
			rec.Warn("the disks' images were not compared: %v", err)
		}
	}
	rec.DiskCheck = c
	if !c.OK() {
		rec.Warn("the disk check FAILED: of %d acknowledged writes %d blocks have lost theirs, %d of %d blocks are wrong",
			c.WritesAcknowledged, c.WritesLost, c.BlocksWrong, c.BlocksChecked)
	}
}

// compareImages reads both sides' images of each disk from the host, when the guest's writers have stopped.
func (d *Disks) compareImages(c *record.DiskCheck) error {
	s, total := d.spec.Storage, int64(0)
	for i := range s.Disks {
		differ, err := identical(d.Source[i], d.Destination[i], s)
		if err != nil {
			return err
		}
		total += differ
	}
	c.ImagesIdentical, c.BlocksDifferent = record.Of(total == 0), &total
	return nil
}

func identical(source, destination guest.Disk, s storage.Spec) (int64, error) {
	a, err := storage.Open(source.Path, s.Format)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	b, err := storage.Open(destination.Path, s.Format)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	return storage.Identical(a, b, s.Area, diskSeed)
}

// CheckImages counts into c what the disks' images hold, read from the host as the side that kept the guest last sees
// them: for a guest that is lost with its QEMU, after both lines of acknowledgements have ended.
func (d *Disks) CheckImages(c *record.DiskCheck, side record.Holder) error {
	c.WritesAcknowledged = d.Ledger.acknowledged()
	disks := d.Source
	if side == record.Destination {
		disks = d.Destination
	}
	for _, disk := range disks {
		if disk.Driver == "iscsi" { // the target's own file
			disk.Path = filepath.Join(d.Server.dir, disk.Node+".raw")
		}
		if err := d.checkImage(c, disk); err != nil {
			return err
		}
	}
	return nil
}

func (d *Disks) checkImage(c *record.DiskCheck, disk guest.Disk) (err error) {
	s := d.spec.Storage
	img, err := storage.Open(disk.Path, s.Format)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	numbers, err := storage.Numbers(img, s.Area/wire.BlockSize, diskSeed)
	if err == nil {
		d.Ledger.compare(c, disk.Node, 0, numbers)
	}
	return err
}
