package host

import (
	"encoding/binary"
	"io"
)

// joined is a writer that writes the header of a frame of yamux and what follows it as one. yamux writes them one after
// the other, and by a pipe or through ssh each piece wakes up every program on the way.
type joined struct {
	io.WriteCloser
	frame []byte // a header that waits for its body
}

const (
	frameHeader = 12       // version, type, flags, stream, length
	joinLimit   = 16 << 10 // a longer body is not copied to be with its header
)

// Write is called by one goroutine alone: yamux's that sends.
func (j *joined) Write(b []byte) (int, error) {
	if len(j.frame) == 0 && len(b) == frameHeader && b[1] == 0 { // data
		if n := binary.BigEndian.Uint32(b[8:]); n > 0 && n <= joinLimit {
			j.frame = append(j.frame, b...)
			return len(b), nil
		}
	}
	if len(j.frame) == 0 {
		return j.WriteCloser.Write(b)
	}
	before := len(j.frame)
	n, err := j.WriteCloser.Write(append(j.frame, b...))
	j.frame = j.frame[:0]
	return max(n-before, 0), err
}
