package load

import (
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/wire"
)

// Ledger is the host's memory of what the guest's disk writers acknowledged: for each block of each disk the last
// number.
type Ledger struct {
	mu    sync.Mutex
	disks map[string][]int64
	count int64
	all   sync.WaitGroup
}

func newLedger(s storage.Spec) *Ledger {
	l := &Ledger{disks: map[string][]int64{}}
	for _, node := range s.Nodes() {
		l.disks[node] = make([]int64, s.Area/wire.BlockSize)
	}
	return l
}

// Follow takes in what comes over an agent's line, until that line ends.
func (l *Ledger) Follow(a *guest.Agent) {
	if l == nil {
		return
	}
	notes := a.Notes(1 << 14)
	l.all.Go(func() {
		for n := range notes.C {
			if n.Event == wire.EventDiskAck {
				var acks wire.DiskAcks
				if json.Unmarshal(n.Data, &acks) == nil {
					l.Acknowledge(acks)
				}
			}
		}
	})
}

// Close waits for the lines that are followed, which end with their agent or their QEMU.
func (l *Ledger) Close() error {
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

// Acknowledge takes in what the guest was told to be durable.
func (l *Ledger) Acknowledge(acks wire.DiskAcks) {
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
func (l *Ledger) compare(c *record.DiskCheck, disk string, first int64, numbers []int64) {
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

// Numbers are the last ones acknowledged for each block of a disk; 0: none was.
func (l *Ledger) Numbers(disk string) []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.disks[disk])
}

func (l *Ledger) acknowledged() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}
