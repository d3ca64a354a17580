package passthrough

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// packet is a message of libvirt's protocol as the daemon sends it.
func packet(program, procedure uint32, body ...any) []byte {
	var b []byte
	word := func(n uint32) { b = binary.BigEndian.AppendUint32(b, n) }
	for _, n := range []uint32{0, program, 1, procedure, 2, 0, 0} {
		word(n)
	}
	for _, x := range body {
		switch x := x.(type) {
		case int:
			word(uint32(x))
		case int64:
			b = binary.BigEndian.AppendUint64(b, uint64(x))
		case string:
			word(uint32(len(x)))
			b = append(append(b, x...), make([]byte, -len(x)&3)...)
		case []byte:
			b = append(b, x...)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

var uuid = make([]byte, uuidSize)

// TestTap: events are handed over in their order, whatever the pieces in which they come, and the rest is only read.
func TestTap(t *testing.T) {
	all := slices.Concat(
		packet(remoteProgram, 1),
		packet(qemuProgram, monitorEvent, 1, "dom", uuid, 1, "STOP", int64(1_796_036_861), 5, 0),
		packet(remoteProgram, lifecycleEvent, 1, "dom", uuid, 1, 4, 0), // resumed
		packet(qemuProgram, monitorEvent, 1, "dom", uuid, 1, "MIGRATION", int64(2), 7, 1, `{"status":"completed"}`),
		packet(remoteProgram, lifecycleEvent, 1, "dom", uuid, 1, lifecycleStops, 0),
	)
	want := `{"event":"STOP","data":{},"timestamp":{"seconds":1796036861,"microseconds":5}}` + "\n" +
		`{"event":"MIGRATION","data":{"status":"completed"},"timestamp":{"seconds":2,"microseconds":7}}` + "\n" + "ended"
	for _, size := range []int{1, 3, 28, len(all)} {
		near, far := net.Pipe()
		go func() {
			for piece := range slices.Chunk(all, size) {
				_, _ = far.Write(piece)
			}
			far.Close()
		}()
		var got bytes.Buffer
		read, err := io.ReadAll(&tap{Conn: near, event: func(m message) {
			got.Write(m.line)
			if m.ended {
				got.WriteString("ended")
			}
		}})
		if err != nil || !bytes.Equal(read, all) || got.String() != want {
			t.Errorf("in pieces of %d: %v, %s", size, err, got.String())
		}
		near.Close()
	}
}

// FuzzDecode: what is taken for an event is one line, or the end.
func FuzzDecode(f *testing.F) {
	f.Add(packet(qemuProgram, monitorEvent, 1, "dom", uuid, 1, "MIGRATION", int64(2), 7, 1, `{"status":"completed"}`)[4:])
	f.Add(packet(remoteProgram, lifecycleEvent, 1, "dom", uuid, 1, lifecycleStops, 0)[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize-4 {
			return
		}
		m, ok := decode(b)
		if ok && !m.ended && (!json.Valid(m.line) || bytes.Count(m.line, []byte("\n")) != 1) {
			t.Errorf("%q", m.line)
		}
	})
}

// TestVersion: a libvirt that is too old is refused.
func TestVersion(t *testing.T) {
	if err := checkVersion(9_000_000); err != nil {
		t.Error(err)
	}
	if err := checkVersion(1_002_002); err == nil || !strings.Contains(err.Error(), "libvirt 1.2.2 is too old") {
		t.Error(err)
	}
}
