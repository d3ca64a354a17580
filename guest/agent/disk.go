package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// disks are the writers, one a disk at most.
type disks struct {
	mu  sync.Mutex
	all map[string]*diskWriter // by serial
}

// diskWriter writes numbered records to random blocks of a raw device. Every write goes past the guest's cache
// (O_DIRECT) and returns only when the device has it durably (O_DSYNC: Linux sends a flush after it, or sets FUA); only
// then is it acknowledged to the host.
type diskWriter struct {
	start wire.DiskStart
	path  string
	stop  chan struct{}
	done  chan struct{} // closed when the last acknowledgement was given to the port
	acks  chan [2]uint64
	begun time.Duration

	mu     sync.Mutex
	status wire.DiskStatus
}

// ackRoom is how many acknowledgements wait while no host reads; acksPerLine of them go into one line.
const (
	ackRoom     = 1 << 16
	acksPerLine = 512
)

var errNoDisk = errors.New("no writer was started on that disk: disk.start comes first")

// findDisk is the device file and the size in bytes of the disk with that serial.
func findDisk(sys, dev, serial string) (string, int64, error) {
	disks, err := filepath.Glob(filepath.Join(sys, "*"))
	if err != nil {
		return "", 0, err
	}
	var have []string
	for _, disk := range disks {
		found := serialOf(disk)
		if found == "" {
			continue
		}
		if found != serial {
			have = append(have, found)
			continue
		}
		sectors, err := strconv.ParseInt(word(filepath.Join(disk, "size")), 10, 64) // of 512 bytes, whatever the disk's are
		if err != nil {
			return "", 0, fmt.Errorf("read size of disk %s: %w", serial, err)
		}
		return filepath.Join(dev, filepath.Base(disk)), sectors * 512, nil
	}
	return "", 0, fmt.Errorf("no disk with serial %q: have %q; is the module of its bus loaded?", serial, have)
}

// serialOf is a disk's serial: virtio-blk has a file for it, a SCSI or ATA disk page 0x80 of its vital product data,
// four bytes of header (the last is the length) and text padded with blanks. Source: SPC-5, 7.7.18.
func serialOf(disk string) string {
	if s := word(filepath.Join(disk, "serial")); s != "" {
		return s
	}
	page, _ := os.ReadFile(filepath.Join(disk, "device", "vpd_pg80")) // what is no disk has none
	if len(page) < 4 || page[1] != 0x80 {
		return ""
	}
	return strings.TrimSpace(string(page[4:min(len(page), 4+int(page[3]))]))
}

// diskLimit is how long a disk may take to appear behind its driver: SCSI and ATA disks are looked for beside
// everything else.
const diskLimit = 10 * time.Second

// aligned is a block's worth of memory as O_DIRECT wants it. It is a mapping, which Go's collector does not move or
// free.
func aligned(blocks int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, blocks*wire.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d blocks: %w", blocks, err)
	}
	return b, nil
}

func seedOf(seed uint64) uint64 {
	if seed == 0 {
		return 1
	}
	return seed
}

// openDisk is where tests put a file for the device.
func (a *agent) openDisk(serial string) (string, int64, error) {
	if a.findDisk != nil {
		return a.findDisk(serial)
	}
	for start := a.clock.now(); ; a.clock.sleep(5 * time.Millisecond) {
		path, size, err := findDisk("/sys/block", "/dev", serial)
		if err == nil || a.clock.now()-start > diskLimit {
			return path, size, err
		}
	}
}

func (a *agent) startDisk(s wire.DiskStart) (wire.DiskStatus, error) {
	path, size, err := a.openDisk(s.Disk)
	if err != nil {
		return wire.DiskStatus{}, err
	}
	if s.Area < wire.BlockSize || s.Area%wire.BlockSize != 0 || s.Area > size {
		return wire.DiskStatus{}, fmt.Errorf("area of %d bytes: whole blocks of %d, at most the disk's %d", s.Area,
			wire.BlockSize, size)
	}
	if s.Rate < 0 || s.Rate > 1e6 {
		return wire.DiskStatus{}, fmt.Errorf("rate %g: 0 to 1e6 writes a second", s.Rate)
	}
	s.Seed = seedOf(s.Seed)
	a.disks.mu.Lock()
	defer a.disks.mu.Unlock()
	if w := a.disks.all[s.Disk]; w != nil && w.running() {
		return wire.DiskStatus{}, fmt.Errorf("the writer on %s runs already: disk.stop comes first", s.Disk)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		return wire.DiskStatus{}, fmt.Errorf("open disk %s: %w", s.Disk, err)
	}
	buf, err := aligned(1)
	if err != nil {
		f.Close()
		return wire.DiskStatus{}, err
	}
	w := &diskWriter{start: s, path: path, stop: make(chan struct{}), done: make(chan struct{}),
		acks: make(chan [2]uint64, ackRoom), begun: a.clock.now(),
		status: wire.DiskStatus{Disk: s.Disk, Bytes: size}}
	if a.disks.all == nil {
		a.disks.all = map[string]*diskWriter{}
	}
	a.disks.all[s.Disk] = w
	a.spawn("disk "+s.Disk, func() {
		w.write(a.clock, f, buf)
		close(w.acks)
		f.Close()
		_ = unix.Munmap(buf)
	})
	a.spawn("acknowledgements of "+s.Disk, func() {
		w.acknowledge(a)
		close(w.done)
	})
	return w.report(a.clock), nil
}

func (w *diskWriter) running() bool {
	select {
	case <-w.done:
		return false
	default:
		return true
	}
}

// write writes until stopped. A write that the device refuses is counted and not acknowledged, and its number is never
// used again.
func (w *diskWriter) write(c clock, f *os.File, buf []byte) {
	pace := pacer{rate: w.start.Rate}
	pace.start(c.now())
	pick := picker{pattern: wire.Uniform, set: int(w.start.Area / wire.BlockSize), state: w.start.Seed}
	for number := uint64(1); ; number++ {
		for pace.due(c.now()) == 0 && !w.stopping() {
			c.sleep(pace.wait())
		}
		if w.stopping() {
			return
		}
		pace.spend(1)
		block := uint64(pick.next())
		wire.PutBlock(buf, w.start.Seed, block, number)
		begin := c.now()
		_, err := f.WriteAt(buf, int64(block)*wire.BlockSize)
		took := c.now() - begin
		w.mu.Lock()
		w.status.Longest = max(w.status.Longest, took)
		if err != nil {
			w.status.Errors++
			w.status.LastError = err.Error()
		} else {
			w.status.Writes++
			select {
			case w.acks <- [2]uint64{block, number}:
			default:
				w.status.Dropped++
			}
		}
		w.mu.Unlock()
		if err != nil {
			c.sleep(10 * time.Millisecond)
		}
	}
}

func (w *diskWriter) stopping() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

// acknowledge tells the host, as many at once as wait. One that the port has taken may still be lost with the host; it
// is then merely not checked.
func (w *diskWriter) acknowledge(a *agent) {
	for ack := range w.acks {
		some := wire.DiskAcks{Disk: w.start.Disk, Acks: [][2]uint64{ack}}
	more:
		for len(some.Acks) < acksPerLine {
			select {
			case next, ok := <-w.acks:
				if !ok {
					break more
				}
				some.Acks = append(some.Acks, next)
			default:
				break more
			}
		}
		a.port.send(encode(wire.Note{Event: wire.EventDiskAck, Data: quote(some)}), true)
	}
}

func (w *diskWriter) report(c clock) wire.DiskStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Running, s.Elapsed, s.Pending = w.running() && !w.stopping(), c.now()-w.begun, len(w.acks)
	return s
}

func (a *agent) diskWriter(name string) (*diskWriter, error) {
	a.disks.mu.Lock()
	defer a.disks.mu.Unlock()
	if w := a.disks.all[name]; w != nil {
		return w, nil
	}
	return nil, errNoDisk
}

func (a *agent) diskStatus(n wire.DiskName) (wire.DiskStatus, error) {
	w, err := a.diskWriter(n.Disk)
	if err != nil {
		return wire.DiskStatus{}, err
	}
	return w.report(a.clock), nil
}

func (a *agent) stopDisk(n wire.DiskName) (wire.DiskStatus, error) {
	w, err := a.diskWriter(n.Disk)
	if err != nil {
		return wire.DiskStatus{}, err
	}
	a.disks.mu.Lock()
	if !w.stopping() {
		close(w.stop)
	}
	a.disks.mu.Unlock()
	select {
	case <-w.done:
		return w.report(a.clock), nil
	case <-time.After(stopLimit):
		return wire.DiskStatus{}, fmt.Errorf("the writer on %s has not stopped within %v: does the disk answer?", n.Disk,
			stopLimit)
	}
}

// readDisk says what stands in a stretch of blocks: by the device, for O_DIRECT passes the guest's own cache by.
func (a *agent) readDisk(r wire.DiskRead) (wire.DiskBlocks, error) {
	path, size, err := a.openDisk(r.Disk)
	if err != nil {
		return wire.DiskBlocks{}, err
	}
	if r.First < 0 || r.Count < 1 || r.Count > wire.MaxDiskRead || (r.First+r.Count)*wire.BlockSize > size {
		return wire.DiskBlocks{}, fmt.Errorf("blocks %d to %d: the disk has %d, and %d may be asked for at once", r.First,
			r.First+r.Count, size/wire.BlockSize, wire.MaxDiskRead)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return wire.DiskBlocks{}, fmt.Errorf("open disk %s: %w", r.Disk, err)
	}
	defer f.Close()
	const at = 64 // blocks a read
	buf, err := aligned(at)
	if err != nil {
		return wire.DiskBlocks{}, err
	}
	defer unix.Munmap(buf)
	out, scratch := wire.DiskBlocks{First: r.First}, make([]byte, wire.BlockSize)
	for done := int64(0); done < r.Count; {
		part := buf[:min(at, r.Count-done)*wire.BlockSize]
		if _, err := f.ReadAt(part, (r.First+done)*wire.BlockSize); err != nil {
			return wire.DiskBlocks{}, fmt.Errorf("read disk %s: %w", r.Disk, err)
		}
		for ; len(part) > 0; part = part[wire.BlockSize:] {
			out.Numbers = append(out.Numbers, wire.BlockNumber(part[:wire.BlockSize], seedOf(r.Seed), uint64(r.First+done),
				scratch))
			done++
		}
	}
	return out, nil
}

// corruptDisk flips one bit of a block on the device.
func (a *agent) corruptDisk(c wire.DiskCorrupt) (struct{}, error) {
	none := struct{}{}
	path, size, err := a.openDisk(c.Disk)
	if err != nil {
		return none, err
	}
	if c.Block < 0 || (c.Block+1)*wire.BlockSize > size {
		return none, fmt.Errorf("no block %d: the disk has %d", c.Block, size/wire.BlockSize)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		return none, fmt.Errorf("open disk %s: %w", c.Disk, err)
	}
	defer f.Close()
	buf, err := aligned(1)
	if err != nil {
		return none, err
	}
	defer unix.Munmap(buf)
	if _, err := f.ReadAt(buf, c.Block*wire.BlockSize); err != nil {
		return none, fmt.Errorf("read disk %s: %w", c.Disk, err)
	}
	buf[wire.BlockSize/2] ^= 1
	if _, err := f.WriteAt(buf, c.Block*wire.BlockSize); err != nil {
		return none, fmt.Errorf("write disk %s: %w", c.Disk, err)
	}
	return none, nil
}
