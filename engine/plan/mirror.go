package plan

import (
	"strings"

	"qmigrate/engine/record/units"
)

// Mirror is the copying of disks that the two hosts do not share: from the source's blockdev-mirror to an NBD server in
// the destination's QEMU. It comes before the memory's copying, in a stage of its own, and goes on until the guest has
// been stopped. The zero value mirrors nothing. docs/storage.md has the whole sequence.
type Mirror struct {
	Nodes []string // names of block nodes, the same on both sides: the nodes that the guest's devices are on
	// background (default): the guest does not wait for the destination; write-blocking: each of its writes does
	CopyMode string
	// of each disk's copying, bytes/s; 0: unlimited. Guest writes in write-blocking mode do not count
	MaxBandwidth int64
	// the NBD server's HOST, HOST:PORT or unix:PATH; default: Plan.Listen's host or, where that is unix:PATH, PATH.nbd; a
	// port from 10809 on
	Listen string
}

// What a mirror's copying may do when the guest writes meanwhile, in QEMU's words (qapi/block-core.json,
// MirrorCopyMode).
const (
	copyBackground    = "background"
	copyWriteBlocking = "write-blocking"
)

// name and words are the mirror's part of a plan's.
func (p Mirror) name() []string {
	if len(p.Nodes) == 0 {
		return nil
	}
	words := []string{"mirror=" + strings.Join(p.Nodes, "+"), "copy-mode=" + p.CopyMode}
	if p.MaxBandwidth > 0 {
		words = append(words, "mirror-bandwidth="+units.FormatRate(float64(p.MaxBandwidth)))
	}
	return words
}

func (p Mirror) Words(w map[string]any) {
	if len(p.Nodes) == 0 {
		return
	}
	w["mirror"], w["mirror_copy_mode"], w["mirror_max_bandwidth_bytes_per_s"] = p.Nodes, p.CopyMode, p.MaxBandwidth
}
