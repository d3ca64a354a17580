package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/lab/observe"
	"qmigrate/guest/debian"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// iperfServer is the other end of the guest's iperf3: a process in the observer's namespace, that serves one test.
type iperfServer struct {
	proc  host.Process
	tally *observe.Tally

	mu        sync.Mutex
	rest      []byte // of a line
	listening chan struct{}
	ready     sync.Once
	last      time.Time
	summary   bool
	whole     *wire.Iperf
	resent    *int64
	said      []string
}

func startIperf(ctx context.Context, spec ToolSpec) (*iperfServer, error) {
	folder := filepath.Dir(spec.Root)
	name := map[string]string{"send": "iperf3_received", "receive": "iperf3_sent"}[spec.Workload.Choice("direction")]
	s := &iperfServer{listening: make(chan struct{}),
		tally: spec.Rows.Row(name, "bytes/s", "the reports of iperf3 on the observer, one a second, by its clock",
			time.Second)}
	args := debian.Run(filepath.Join(folder, debian.Files), "usr/bin/iperf3", "-s", "-1", "-B", spec.Gateway.String(),
		"-p", fmt.Sprint(wire.IperfPort), "-i", "1", "-f", "k", "--forceflush")
	var err error
	if s.proc, err = spec.Observer.Start(ctx, host.Command{Args: args, Stdout: s, Stderr: s}); err != nil {
		return nil, fmt.Errorf("start iperf3 on the observer: %w", err)
	}
	limit, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	select {
	case <-s.listening:
		return s, nil
	case <-s.proc.Done():
		err = errors.New("it ended")
	case <-limit.Done():
		err = context.Cause(limit)
	}
	s.mu.Lock()
	said := strings.Join(s.said, "; ")
	s.mu.Unlock()
	return nil, errors.Join(fmt.Errorf("start iperf3 on the observer: %w: it said %q", err, said), s.close())
}

// Write takes what the server prints.
func (s *iperfServer) Write(b []byte) (int, error) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest = append(s.rest, b...)
	for {
		line, rest, ok := bytes.Cut(s.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		s.line(string(line), now)
		s.rest = append([]byte{}, rest...)
	}
}

func (s *iperfServer) line(text string, now time.Time) {
	if strings.HasPrefix(text, "Server listening") {
		s.ready.Do(func() { close(s.listening) })
	}
	if s.said = append(s.said, text); len(s.said) > 5 {
		s.said = s.said[1:]
	}
	s.summary = s.summary || strings.HasPrefix(text, "- - -")
	i, ok := wire.ParseIperf(text)
	switch {
	case !ok:
	case s.summary:
		if i.Bytes > 0 {
			s.whole = &i
		}
	default:
		from := now.Add(-time.Duration((i.To - i.From) * 1e9))
		if !s.last.IsZero() {
			from = s.last
		}
		s.tally.Add(from, now, i.Bytes)
		s.last = now
		if i.Retransmits != nil {
			if s.resent == nil {
				s.resent = new(int64)
			}
			*s.resent += *i.Retransmits
		}
	}
}

// finish waits for the server's end, which follows its client's, and returns its summary.
func (s *iperfServer) finish(ctx context.Context) (wire.Iperf, error) {
	limit, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	select {
	case <-s.proc.Done():
	case <-limit.Done():
		return wire.Iperf{}, errors.Join(errors.New("iperf3 on the observer does not end"), s.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole == nil {
		return wire.Iperf{}, fmt.Errorf("iperf3 on the observer printed no summary: it said %q", strings.Join(s.said, "; "))
	}
	if s.whole.Retransmits == nil {
		s.whole.Retransmits = s.resent
	}
	return *s.whole, nil
}

func (s *iperfServer) close() error {
	if s == nil {
		return nil
	}
	return endProcess(s.proc)
}
