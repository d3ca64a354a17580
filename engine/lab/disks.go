package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/wire"
)

// diskSeed is part of the content of every record that the lab's guests write.
const diskSeed = 1

// ledger is the host's memory of what the guest's disk writers acknowledged: for each block of each disk the last number.
type ledger struct {
	mu    sync.Mutex
	disks map[string][]int64
	count int64
	all   sync.WaitGroup
}

func newLedger(s storage.Spec) *ledger {
	l := &ledger{disks: map[string][]int64{}}
	for _, node := range s.Nodes() {
		l.disks[node] = make([]int64, s.Area/wire.BlockSize)
	}
	return l
}

// follow takes in what comes over an agent's line, until that line ends.
func (l *ledger) follow(a *guest.Agent) {
	if l == nil {
		return
	}
	notes := a.Notes(1 << 14)
	l.all.Go(func() {
		for n := range notes.C {
			if n.Event == wire.EventDiskAck {
				l.take(n.Data)
			}
		}
	})
}

// close waits for the lines that are followed, which end with their agent or their QEMU.
func (l *ledger) close() error {
	done := make(chan struct{})
	go func() {
		l.all.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(serverLimit):
		return errors.New("a line of the guest's acknowledgements does not end, though its QEMU has")
	}
}

func (l *ledger) take(data []byte) {
	var acks wire.DiskAcks
	if json.Unmarshal(data, &acks) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	blocks := l.disks[acks.Disk]
	for _, a := range acks.Acks {
		if a[0] < uint64(len(blocks)) {
			// Two lines, the source's and the destination's, may be read in any order.
			blocks[a[0]] = max(blocks[a[0]], int64(a[1]))
			l.count++
		}
	}
}

// compare counts into c what a disk's blocks are against what was acknowledged for them.
func (l *ledger) compare(c *record.DiskCheck, disk string, first int64, numbers []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, n := range numbers {
		c.BlocksChecked++
		if n == wire.BlockWrong {
			c.BlocksWrong++
		}
		if n < l.disks[disk][first+int64(i)] {
			c.WritesLost++
		}
	}
}

// writers starts a writer on each of the guest's disks.
func (l *Lab) startWriters(ctx context.Context) error {
	s := l.spec.Storage
	for _, node := range s.Nodes() {
		if err := l.agent.Call(ctx, wire.DoDiskStart, wire.DiskStart{Disk: node, Area: s.Area, Rate: s.Rate, Seed: diskSeed}, nil); err != nil {
			return fmt.Errorf("start writing to %s: %w", node, err)
		}
	}
	if s.Disks > 0 {
		l.say("storage: %s", s)
	}
	return nil
}

// checkDisks stops the writers and reads in the guest, past its cache, whether every acknowledged write is there.
func (l *Lab) checkDisks(ctx context.Context, rec *record.Migration) {
	s := l.spec.Storage
	if s.Disks == 0 {
		return
	}
	c := &record.DiskCheck{Storage: s.String(), Disks: s.Disks}
	fail := func(err error) { rec.Warn("the guest's disks were not checked: %v", err) }
	for _, node := range s.Nodes() {
		var st wire.DiskStatus
		if err := l.agent.Call(ctx, wire.DoDiskStop, wire.DiskName{Disk: node}, &st); err != nil {
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
			if err := l.agent.Call(ctx, wire.DoDiskRead, wire.DiskRead{Disk: node, First: first, Count: n, Seed: diskSeed}, &b); err != nil {
				fail(err)
				return
			}
			if int64(len(b.Numbers)) != n || b.First != first {
				fail(fmt.Errorf("%d blocks from %d were asked for, %d from %d came", n, first, len(b.Numbers), b.First))
				return
			}
			l.ledger.compare(c, node, first, b.Numbers)
			first += n
		}
	}
	l.ledger.mu.Lock()
	c.WritesAcknowledged = l.ledger.count
	l.ledger.mu.Unlock()
	if s.Kind == storage.Mirror && rec.Outcome == record.Completed {
		if err := l.compareImages(c); err != nil {
			rec.Warn("the disks' images were not compared: %v", err)
		}
	}
	rec.DiskCheck = c
	if !c.OK() {
		rec.Warn("the disk check FAILED: of %d acknowledged writes %d blocks have lost theirs, %d of %d blocks are wrong", c.WritesAcknowledged, c.WritesLost, c.BlocksWrong, c.BlocksChecked)
	}
}

// compareImages reads both sides' images of each disk from the host, when the guest's writers have stopped.
func (l *Lab) compareImages(c *record.DiskCheck) error {
	s, total := l.spec.Storage, int64(0)
	for i := range s.Disks {
		differ, err := identical(l.disks.source[i], l.disks.destination[i], s)
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

// checkImage counts into c what the image of a disk holds, read from the host: for a guest that is lost with its QEMU.
func (l *Lab) checkImage(c *record.DiskCheck, d guest.Disk) (err error) {
	img, err := storage.Open(d.Path, l.spec.Storage.Format)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	numbers, err := storage.Numbers(img, l.spec.Storage.Area/wire.BlockSize, diskSeed)
	if err == nil {
		l.ledger.compare(c, d.Node, 0, numbers)
	}
	return err
}

// images are the files with the disks' content as the host that kept the guest last sees them: what is looked at when no guest can be asked.
func (l *Lab) images(side record.Holder) (all []guest.Disk) {
	disks := l.disks.source
	if side == record.Destination {
		disks = l.disks.destination
	}
	for _, d := range disks {
		if d.Driver == "iscsi" { // the target's own file
			d.Path = filepath.Join(l.disks.server.dir, d.Node+".raw")
		}
		all = append(all, d)
	}
	return all
}
