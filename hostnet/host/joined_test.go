package host

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/hashicorp/yamux"
)

// pieces notes what each Write was given.
type pieces struct {
	net.Conn
	all [][]byte
}

func (p *pieces) Write(b []byte) (int, error) {
	p.all = append(p.all, bytes.Clone(b))
	return p.Conn.Write(b)
}

// What yamux sends arrives whole, and a short message is one piece with its header.
func TestJoined(t *testing.T) {
	for _, size := range []int{1, 100, joinLimit, joinLimit + 1, 300_000} {
		here, there := net.Pipe()
		p := &pieces{Conn: here}
		client, err := yamux.Client(struct {
			io.Reader
			io.WriteCloser
		}{here, &joined{WriteCloser: p}}, sessionConfig())
		if err != nil {
			t.Fatal(err)
		}
		server, err := yamux.Server(there, sessionConfig())
		if err != nil {
			t.Fatal(err)
		}
		out, err := client.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		in, err := server.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		sent := []byte(strings.Repeat("x", size))
		got := make([]byte, size)
		go func() { _, _ = out.Write(sent) }()
		if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes: they did not arrive as they were sent (%v)", size, err)
		}
		client.Close()
		server.Close()
		together := false
		for _, b := range p.all {
			together = together || bytes.HasSuffix(b, sent) && len(b) == frameHeader+size
		}
		if want := size <= joinLimit; together != want {
			t.Errorf("%d bytes went in one piece with their header: %t, want %t", size, together, want)
		}
	}
}
