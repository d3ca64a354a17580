package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/internal/near"
	"qmigrate/qmp"
)

const (
	nbdPort     = 10809            // IANA's for NBD: the first that is tried
	nbdPorts    = 200              // how many are
	finishLimit = 20 * time.Second // the end of all mirrors, while the guest stands still
	openLimit   = 3 * time.Second  // the source's connection to one export: its main loop stands still meanwhile
)

// mirrors are the plan's mirrors at work.
type mirrors struct {
	run.Plain
	run  *run.Run
	jobs []*mirrorJob
	left bool // the source has nodes or jobs of ours
}

// wanted tells whether there is a disk to copy.
func (m *mirrors) wanted() bool { return len(m.jobs) > 0 }

// mirrorJob is one disk under way.
type mirrorJob struct {
	name    string // of job, export and target node
	rec     record.Mirror
	started time.Time
	ready   bool
	asked   time.Time // block-job-cancel was sent
	ended   bool
	failed  string // why, in QEMU's words; empty: not
}

// blockNode is what is used of query-named-block-nodes.
type blockNode struct {
	Name     string `json:"node-name"`
	ReadOnly bool   `json:"ro"`
	Driver   string `json:"drv"`
	Image    struct {
		Filename    string `json:"filename"`
		VirtualSize int64  `json:"virtual-size"`
	} `json:"image"`
}

func blockNodes(ctx context.Context, c *qmp.Conn) (all []blockNode, err error) {
	err = c.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &all)
	return all, err
}

// mirrorJobs are the jobs of mirrors of ours, by their names.
func mirrorJobs(ctx context.Context, c *qmp.Conn) (names []string, err error) {
	names, _, err = facts.BlockJobs(ctx, c)
	return names, err
}

// nbdHost is where the source finds the NBD server that listens on a host: where it finds the migration.
func (m *mirrors) nbdHost(host string) string {
	if rest, ok := strings.CutPrefix(m.run.Plan.Connect, "tcp:"); ok && m.run.Plan.Mirror.Listen == "" {
		if connect, _, err := net.SplitHostPort(rest); err == nil {
			return connect
		}
	}
	return host
}

// Check refuses, before anything is changed, disks that this pair cannot mirror.
func (m *mirrors) Check(ctx context.Context) error {
	if len(m.run.Plan.Mirror.Nodes) == 0 {
		return nil
	}
	src, err := blockNodes(ctx, m.run.Src.Control)
	if err != nil {
		return fmt.Errorf("ask source for its disks: %w", err)
	}
	dst, err := blockNodes(ctx, m.run.Dst.Control)
	if err != nil {
		return fmt.Errorf("ask destination for its disks: %w", err)
	}
	var exports []struct {
		Node string `json:"node-name"`
	}
	if err := m.run.Dst.Control.Execute(ctx, "query-block-exports", nil, &exports); err != nil {
		return fmt.Errorf("ask destination for its exports: %w", err)
	}
	for _, n := range src {
		if strings.HasPrefix(n.Name, facts.MirrorPrefix) {
			return fmt.Errorf("source %s still has %s of an earlier mirror: `qmigrate migrate --recover` with the same "+
				"endpoints removes it", m.run.Src.Endpoint.Name, n.Name)
		}
	}
	find := func(all []blockNode, s *run.Side, name string) (blockNode, error) {
		var have []string
		for _, n := range all {
			if n.Name == name {
				return n, nil
			}
			if n.Name != "" && n.Name[0] != '#' { // those that QEMU made up begin so, and differ from side to side
				have = append(have, n.Name)
			}
		}
		err := &plan.UnsupportedError{Feature: fmt.Sprintf("mirror of %s, which %s %s does not have", name, s.Role,
			s.Endpoint.Name),
			Have: near.Hint(name, have)}
		if len(have) == 0 {
			err.Have = "its block nodes have no names: start it with -blockdev node-name=..., the same on both sides"
		}
		return blockNode{}, err
	}
	for i, name := range m.run.Plan.Mirror.Nodes {
		a, err := find(src, m.run.Src, name)
		if err != nil {
			return err
		}
		b, err := find(dst, m.run.Dst, name)
		if err != nil {
			return err
		}
		switch {
		case a.Image.VirtualSize != b.Image.VirtualSize:
			return fmt.Errorf("mirror of %s: its size is %d bytes on the source and %d on the destination: make the "+
				"destination's image of the same size", name, a.Image.VirtualSize, b.Image.VirtualSize)
		case b.ReadOnly:
			return fmt.Errorf("mirror of %s: the destination has it read-only: start the destination with read-only=off for it",
				name)
		case a.Image.Filename == b.Image.Filename && a.Driver == b.Driver && remote(a.Image.Filename):
			return fmt.Errorf("mirror of %s: both sides have %s, one and the same disk: a shared disk needs no mirror, leave it out", name, a.Image.Filename)
		case slices.ContainsFunc(exports, func(e struct {
			Node string `json:"node-name"`
		}) bool {
			return e.Node == name
		}):
			return fmt.Errorf("mirror of %s: the destination exports it already: start the destination anew", name)
		}
		m.jobs = append(m.jobs, &mirrorJob{
			name: facts.MirrorPrefix + strconv.Itoa(i),
			rec:  record.Mirror{Node: name, CopyMode: m.run.Plan.Mirror.CopyMode, Bytes: a.Image.VirtualSize},
		})
	}
	return nil
}

// remote tells a file name that means the same on every machine. QEMU prints it as a URL, or as json: where it has no
// URL for it.
func remote(filename string) bool {
	return strings.Contains(filename, "://") || strings.HasPrefix(filename, "json:") &&
		!strings.Contains(filename, `"driver": "file"`)
}

// start exports the destination's disks, starts the source's mirrors to them and waits until each pair of disks has
// been the same once. A destination that hangs is given up: it would hold the source's main loop as soon as the guest
// resets its disk.
func (m *mirrors) start(ctx context.Context) error {
	if m.run.Plan.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, m.run.Plan.Timeout, run.ErrNotInStep)
		defer cancel()
	}
	ctx, stop := m.watchDestination(ctx)
	defer stop()
	err := m.copyDisks(ctx)
	if err != nil && ctx.Err() != nil {
		return m.run.Cause(ctx) // what stopped us, not which command it cut short
	}
	return err
}

// watchDestination ends the context when the destination does not answer for the stall limit. It is idle while disks
// are copied to it.
func (m *mirrors) watchDestination(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	control := m.run.Dst.Control
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(run.WatchInterval)
		defer tick.Stop()
		for {
			limited, done := context.WithTimeout(ctx, m.run.Plan.StallLimit)
			_, err := control.QueryStatus(limited)
			late := limited.Err() != nil
			done()
			switch {
			case ctx.Err() != nil:
				return
			case late:
				cancel(fmt.Errorf("the destination has not answered for %s while the disks were copied to it",
					m.run.Plan.StallLimit))
				return
			case control.Err() != nil: // which the events tell
				return
			case err != nil:
				m.run.Log.Info("ask destination", "err", err)
			}
			if m.run.Opts.Mirrored != nil {
				m.tellMirrored(ctx)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, func() {
		cancel(nil)
		watch.Wait()
	}
}

// tellMirrored asks the source how far its mirrors are.
func (m *mirrors) tellMirrored(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, run.AnswerLimit)
	defer cancel()
	var jobs []facts.Job
	if m.run.Src.Control.Execute(ctx, "query-block-jobs", nil, &jobs) != nil {
		return
	}
	var copied, all int64
	for _, j := range jobs {
		if strings.HasPrefix(j.ID, facts.MirrorPrefix) {
			copied, all = copied+j.Offset, all+j.Length
		}
	}
	if all > 0 {
		m.run.Opts.Mirrored(copied, all)
	}
}

func (m *mirrors) copyDisks(ctx context.Context) error {
	server, err := m.serveDisks(ctx)
	if err != nil {
		return err
	}
	for _, j := range m.jobs {
		export := map[string]any{"type": "nbd", "id": j.name, "node-name": j.rec.Node, "name": j.name, "writable": true}
		if err := m.run.Dst.Control.Execute(ctx, "block-export-add", export, nil); err != nil {
			return fmt.Errorf("export %s on destination: %w", j.rec.Node, explainLock(err))
		}
	}
	for _, j := range m.jobs {
		node := map[string]any{"driver": "nbd", "node-name": j.name, "server": server, "export": j.name, "discard": "unmap"}
		// else a server that takes the connection and says nothing holds QEMU for ever; it also tries again until then
		if !m.run.Src.Facts.Before(7, 0) {
			node["open-timeout"] = int(openLimit / time.Second)
		}
		_, client := m.run.Plan.TLS.NBD()
		maps.Copy(node, client)
		m.left = true
		if err := m.run.Src.Control.Execute(ctx, "blockdev-add", node, nil); err != nil {
			return fmt.Errorf("connect source to the destination's NBD server (%v): %w", server, err)
		}
	}
	for _, j := range m.jobs {
		// Errors are reported and end the job: the guest itself goes on with its own disk.
		job := map[string]any{
			"job-id": j.name, "device": j.rec.Node, "target": j.name, "sync": "full", "copy-mode": j.rec.CopyMode,
			"on-source-error": "report", "on-target-error": "report",
		}
		if m.run.Plan.Mirror.MaxBandwidth > 0 {
			job["speed"] = m.run.Plan.Mirror.MaxBandwidth
		}
		j.started = time.Now()
		if err := m.run.Src.Control.Execute(ctx, "blockdev-mirror", job, nil); err != nil {
			return fmt.Errorf("mirror %s: %w", j.rec.Node, err)
		}
	}
	return m.run.Until(ctx, func() bool {
		return !slices.ContainsFunc(m.jobs, func(j *mirrorJob) bool { return !j.ready || j.failed != "" })
	})
}

// serveDisks starts the destination's NBD server and returns where the source finds it. QEMU does not tell which port
// it took, so ports are tried.
func (m *mirrors) serveDisks(ctx context.Context) (server map[string]any, err error) {
	network, address, err := m.run.Plan.NbdAddress()
	if err != nil {
		return nil, err
	}
	start := func(addr map[string]any) error {
		args := map[string]any{"addr": addr}
		server, _ := m.run.Plan.TLS.NBD()
		maps.Copy(args, server)
		return m.run.Dst.Control.Execute(ctx, "nbd-server-start", args, nil)
	}
	if network == "unix" {
		if err := start(map[string]any{"type": "unix", "data": map[string]any{"path": address}}); err != nil {
			return nil, fmt.Errorf("start the destination's NBD server on unix:%s: %w", address, err)
		}
		return map[string]any{"type": "unix", "path": address}, nil
	}
	host, port, _ := net.SplitHostPort(address)
	first, tries := nbdPort, nbdPorts
	if port != "" {
		first, _ = strconv.Atoi(port)
		tries = 1
	}
	for n := first; n < first+tries; n++ {
		port := strconv.Itoa(n)
		err = start(map[string]any{"type": "inet", "data": map[string]any{"host": host, "port": port}})
		if err == nil {
			return map[string]any{"type": "inet", "host": m.nbdHost(host), "port": port}, nil
		}
		if !strings.Contains(err.Error(), "Address already in use") {
			break
		}
	}
	return nil, fmt.Errorf("start the destination's NBD server on %s: %w", address, err)
}

// finish is for a guest that stands still in pre-switchover: the last writes are copied, the mirrors end, and nothing
// on the destination is open to anybody any more. The source keeps its own disk, for the mirrors are cancelled, not
// completed: `complete` would put the guest's device on the destination's disk.
func (m *mirrors) finish(ctx context.Context) error {
	if len(m.jobs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, finishLimit, fmt.Errorf("the mirrors do not end within %s", finishLimit))
	defer cancel()
	for _, j := range m.jobs {
		j.asked = time.Now()
		if err := m.run.Src.Control.Execute(ctx, "block-job-cancel", map[string]any{"device": j.name}, nil); err != nil {
			return fmt.Errorf("end mirror of %s: %w", j.rec.Node, err)
		}
	}
	if err := m.run.Until(ctx, func() bool {
		return !slices.ContainsFunc(m.jobs, func(j *mirrorJob) bool { return !j.ended || j.failed != "" })
	}); err != nil {
		return err
	}
	for _, j := range m.jobs {
		if err := deleteNode(ctx, m.run.Src, j.name); err != nil {
			return fmt.Errorf("end mirror of %s: %w", j.rec.Node, err)
		}
	}
	if err := m.run.Dst.Control.Execute(ctx, "nbd-server-stop", nil, nil); err != nil {
		return fmt.Errorf("stop the destination's NBD server: %w", err)
	}
	m.left = false
	return nil
}

// Take notes an event of a block job.
func (m *mirrors) Take(s *run.Side, ev qmp.Event, at time.Time) {
	if s != m.run.Src || len(m.jobs) == 0 || !strings.HasPrefix(ev.Name, "BLOCK_JOB_") {
		return
	}
	var data struct {
		Device    string `json:"device"`
		Error     string `json:"error"`
		Offset    int64  `json:"offset"`
		Operation string `json:"operation"`
	}
	if json.Unmarshal(ev.Data, &data) != nil {
		return
	}
	i := slices.IndexFunc(m.jobs, func(j *mirrorJob) bool { return j.name == data.Device })
	if i < 0 {
		return
	}
	j := m.jobs[i]
	switch ev.Name {
	case "BLOCK_JOB_READY":
		j.ready = true
		j.rec.Ready = record.Of(at.Sub(j.started))
	case "BLOCK_JOB_ERROR":
		j.failed = data.Operation + " error"
	case "BLOCK_JOB_CANCELLED":
		j.ended, j.failed = true, "cancelled by somebody"
	case "BLOCK_JOB_COMPLETED":
		j.ended = true
		j.rec.Transferred = &data.Offset
		switch {
		case data.Error != "":
			j.failed = data.Error
		case j.asked.IsZero():
			j.failed = "ended by somebody, who may have put the guest on the destination's disk"
		default:
			j.rec.Finish = record.Of(at.Sub(j.asked))
		}
	}
}

// Broken is why the mirrors cannot go on, as far as the events told.
func (m *mirrors) Broken() error {
	for _, j := range m.jobs {
		if j.failed != "" {
			return fmt.Errorf("mirror of %s: %s: is the destination's NBD server still there, and its image's file system not full?", j.rec.Node, j.failed)
		}
	}
	return nil
}

// End puts what is known of the mirrors into the record.
func (m *mirrors) End(context.Context) {
	m.run.Rec.Mirrors = nil
	for _, j := range m.jobs {
		m.run.Rec.Mirrors = append(m.run.Rec.Mirrors, j.rec)
	}
}
