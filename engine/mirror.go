package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/facts"
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
func (m *migration) nbdHost(host string) string {
	if rest, ok := strings.CutPrefix(m.plan.Connect, "tcp:"); ok && m.plan.Mirror.Listen == "" {
		if connect, _, err := net.SplitHostPort(rest); err == nil {
			return connect
		}
	}
	return host
}

// prepareMirrors refuses, before anything is changed, disks that this pair cannot mirror.
func (m *migration) prepareMirrors(ctx context.Context) error {
	if len(m.plan.Mirror.Nodes) == 0 {
		return nil
	}
	src, err := blockNodes(ctx, m.src.control)
	if err != nil {
		return fmt.Errorf("ask source for its disks: %w", err)
	}
	dst, err := blockNodes(ctx, m.dst.control)
	if err != nil {
		return fmt.Errorf("ask destination for its disks: %w", err)
	}
	var exports []struct {
		Node string `json:"node-name"`
	}
	if err := m.dst.control.Execute(ctx, "query-block-exports", nil, &exports); err != nil {
		return fmt.Errorf("ask destination for its exports: %w", err)
	}
	for _, n := range src {
		if strings.HasPrefix(n.Name, facts.MirrorPrefix) {
			return fmt.Errorf("source %s still has %s of an earlier mirror: `qmigrate migrate --recover` with the same endpoints removes it", m.src.ep.Name, n.Name)
		}
	}
	find := func(all []blockNode, s *side, name string) (blockNode, error) {
		var have []string
		for _, n := range all {
			if n.Name == name {
				return n, nil
			}
			if n.Name != "" && n.Name[0] != '#' { // those that QEMU made up begin so, and differ from side to side
				have = append(have, n.Name)
			}
		}
		err := &plan.UnsupportedError{Feature: fmt.Sprintf("mirror of %s, which %s %s does not have", name, s.role, s.ep.Name),
			Have: near.Hint(name, have)}
		if len(have) == 0 {
			err.Have = "its block nodes have no names: start it with -blockdev node-name=..., the same on both sides"
		}
		return blockNode{}, err
	}
	for i, name := range m.plan.Mirror.Nodes {
		a, err := find(src, m.src, name)
		if err != nil {
			return err
		}
		b, err := find(dst, m.dst, name)
		if err != nil {
			return err
		}
		switch {
		case a.Image.VirtualSize != b.Image.VirtualSize:
			return fmt.Errorf("mirror of %s: its size is %d bytes on the source and %d on the destination: make the destination's image of the same size", name, a.Image.VirtualSize, b.Image.VirtualSize)
		case b.ReadOnly:
			return fmt.Errorf("mirror of %s: the destination has it read-only: start the destination with read-only=off for it", name)
		case a.Image.Filename == b.Image.Filename && a.Driver == b.Driver && remote(a.Image.Filename):
			return fmt.Errorf("mirror of %s: both sides have %s, one and the same disk: a shared disk needs no mirror, leave it out", name, a.Image.Filename)
		case slices.ContainsFunc(exports, func(e struct {
			Node string `json:"node-name"`
		}) bool {
			return e.Node == name
		}):
			return fmt.Errorf("mirror of %s: the destination exports it already: start the destination anew", name)
		}
		m.mirrors = append(m.mirrors, &mirrorJob{
			name: facts.MirrorPrefix + strconv.Itoa(i),
			rec:  record.Mirror{Node: name, CopyMode: m.plan.Mirror.CopyMode, Bytes: a.Image.VirtualSize},
		})
	}
	return nil
}

// remote tells a file name that means the same on every machine. QEMU prints it as a URL, or as json: where it has no URL for it.
func remote(filename string) bool {
	return strings.Contains(filename, "://") || strings.HasPrefix(filename, "json:") && !strings.Contains(filename, `"driver": "file"`)
}

// startMirrors exports the destination's disks, starts the source's mirrors to them and waits until each pair of disks has been the same once.
// A destination that hangs is given up: it would hold the source's main loop as soon as the guest resets its disk.
func (m *migration) startMirrors(ctx context.Context) error {
	if m.plan.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, m.plan.Timeout, errNotInStep)
		defer cancel()
	}
	ctx, stop := m.watchDestination(ctx)
	defer stop()
	err := m.copyDisks(ctx)
	if err != nil && ctx.Err() != nil {
		return m.cause(ctx) // what stopped us, not which command it cut short
	}
	return err
}

// watchDestination ends the context when the destination does not answer for the stall limit. It is idle while disks are copied to it.
func (m *migration) watchDestination(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	control := m.dst.control
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		for {
			limited, done := context.WithTimeout(ctx, m.plan.StallLimit)
			_, err := control.QueryStatus(limited)
			late := limited.Err() != nil
			done()
			switch {
			case ctx.Err() != nil:
				return
			case late:
				cancel(fmt.Errorf("the destination has not answered for %s while the disks were copied to it", m.plan.StallLimit))
				return
			case control.Err() != nil: // which the events tell
				return
			case err != nil:
				m.log.Info("ask destination", "err", err)
			}
			if m.opts.Mirrored != nil {
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
func (m *migration) tellMirrored(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	var jobs []facts.Job
	if m.src.control.Execute(ctx, "query-block-jobs", nil, &jobs) != nil {
		return
	}
	var copied, all int64
	for _, j := range jobs {
		if strings.HasPrefix(j.ID, facts.MirrorPrefix) {
			copied, all = copied+j.Offset, all+j.Length
		}
	}
	if all > 0 {
		m.opts.Mirrored(copied, all)
	}
}

func (m *migration) copyDisks(ctx context.Context) error {
	server, err := m.serveDisks(ctx)
	if err != nil {
		return err
	}
	for _, j := range m.mirrors {
		export := map[string]any{"type": "nbd", "id": j.name, "node-name": j.rec.Node, "name": j.name, "writable": true}
		if err := m.dst.control.Execute(ctx, "block-export-add", export, nil); err != nil {
			return fmt.Errorf("export %s on destination: %w", j.rec.Node, explainLock(err))
		}
	}
	for _, j := range m.mirrors {
		node := map[string]any{"driver": "nbd", "node-name": j.name, "server": server, "export": j.name, "discard": "unmap"}
		if !m.src.facts.Before(7, 0) { // else a server that takes the connection and says nothing holds QEMU for ever; it also tries again until then
			node["open-timeout"] = int(openLimit / time.Second)
		}
		_, client := m.plan.TLS.NBD()
		maps.Copy(node, client)
		m.mirrored = true
		if err := m.src.control.Execute(ctx, "blockdev-add", node, nil); err != nil {
			return fmt.Errorf("connect source to the destination's NBD server (%v): %w", server, err)
		}
	}
	for _, j := range m.mirrors {
		// Errors are reported and end the job: the guest itself goes on with its own disk.
		job := map[string]any{
			"job-id": j.name, "device": j.rec.Node, "target": j.name, "sync": "full", "copy-mode": j.rec.CopyMode,
			"on-source-error": "report", "on-target-error": "report",
		}
		if m.plan.Mirror.MaxBandwidth > 0 {
			job["speed"] = m.plan.Mirror.MaxBandwidth
		}
		j.started = time.Now()
		if err := m.src.control.Execute(ctx, "blockdev-mirror", job, nil); err != nil {
			return fmt.Errorf("mirror %s: %w", j.rec.Node, err)
		}
	}
	return m.until(ctx, func() bool {
		return !slices.ContainsFunc(m.mirrors, func(j *mirrorJob) bool { return !j.ready || j.failed != "" })
	})
}

// errNotInStep is the cause of a context that Plan.Timeout ended before the disks were the same.
var errNotInStep = errors.New("the disks are not in step within the time-out")

// serveDisks starts the destination's NBD server and returns where the source finds it. QEMU does not tell which port it took, so
// ports are tried.
func (m *migration) serveDisks(ctx context.Context) (server map[string]any, err error) {
	network, address, err := m.plan.NbdAddress()
	if err != nil {
		return nil, err
	}
	start := func(addr map[string]any) error {
		args := map[string]any{"addr": addr}
		server, _ := m.plan.TLS.NBD()
		maps.Copy(args, server)
		return m.dst.control.Execute(ctx, "nbd-server-start", args, nil)
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

// endMirrors is for a guest that stands still in pre-switchover: the last writes are copied, the mirrors end, and nothing on the
// destination is open to anybody any more. The source keeps its own disk, for the mirrors are cancelled, not completed: `complete` would put
// the guest's device on the destination's disk.
func (m *migration) endMirrors(ctx context.Context) error {
	if len(m.mirrors) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, finishLimit, fmt.Errorf("the mirrors do not end within %s", finishLimit))
	defer cancel()
	for _, j := range m.mirrors {
		j.asked = time.Now()
		if err := m.src.control.Execute(ctx, "block-job-cancel", map[string]any{"device": j.name}, nil); err != nil {
			return fmt.Errorf("end mirror of %s: %w", j.rec.Node, err)
		}
	}
	if err := m.until(ctx, func() bool {
		return !slices.ContainsFunc(m.mirrors, func(j *mirrorJob) bool { return !j.ended || j.failed != "" })
	}); err != nil {
		return err
	}
	for _, j := range m.mirrors {
		if err := m.src.deleteNode(ctx, j.name); err != nil {
			return fmt.Errorf("end mirror of %s: %w", j.rec.Node, err)
		}
	}
	if err := m.dst.control.Execute(ctx, "nbd-server-stop", nil, nil); err != nil {
		return fmt.Errorf("stop the destination's NBD server: %w", err)
	}
	m.mirrored = false
	return nil
}

// deleteNode removes a block node; the job that used it may need a moment to let it go.
func (s *side) deleteNode(ctx context.Context, name string) error {
	for {
		err := s.control.Execute(ctx, "blockdev-del", map[string]any{"node-name": name}, nil)
		if err == nil || !strings.Contains(err.Error(), "in use") {
			return err
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// takeMirror notes an event of a block job.
func (m *migration) takeMirror(ev qmp.Event, at time.Time) {
	if len(m.mirrors) == 0 || !strings.HasPrefix(ev.Name, "BLOCK_JOB_") {
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
	i := slices.IndexFunc(m.mirrors, func(j *mirrorJob) bool { return j.name == data.Device })
	if i < 0 {
		return
	}
	j := m.mirrors[i]
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

// brokenMirror is why the mirrors cannot go on, as far as the events told.
func (m *migration) brokenMirror() error {
	for _, j := range m.mirrors {
		if j.failed != "" {
			return fmt.Errorf("mirror of %s: %s: is the destination's NBD server still there, and its image's file system not full?", j.rec.Node, j.failed)
		}
	}
	return nil
}

// noteMirrors puts what is known of the mirrors into the record.
func (m *migration) noteMirrors() {
	m.rec.Mirrors = nil
	for _, j := range m.mirrors {
		m.rec.Mirrors = append(m.rec.Mirrors, j.rec)
	}
}

// dropMirrors ends what mirrors of ours the source still has, and removes their nodes; the guest goes on with its own disk. A mirror that waits
// for a destination that hangs is cut off by `yank`, which QEMU takes out of band, even where the wait holds its main loop. It goes by what
// QEMU says, not by what we know, so that it also cleans up after a run that was killed.
func (m *migration) dropMirrors(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, 3*answerLimit)
	defer cancel()
	c := m.src.control
	cut := time.Now().Add(answerLimit)
	yank := func(name string) {
		instances := map[string]any{"instances": []map[string]string{{"type": "block-node", "node-name": name}}}
		_ = c.ExecuteOOB(limited, "yank", instances, nil) // it may just have ended
	}
	for {
		asked, done := context.WithTimeout(limited, answerLimit)
		jobs, err := mirrorJobs(asked, c)
		late := asked.Err() != nil && limited.Err() == nil
		done()
		switch {
		case late:
			for _, j := range m.mirrors {
				yank(j.name)
			}
			continue
		case err != nil:
			return fmt.Errorf("end mirrors: %w", err)
		}
		for _, name := range jobs {
			_ = c.Execute(limited, "block-job-cancel", map[string]any{"device": name, "force": true}, nil) // it may just have ended, or be at it
			if time.Now().After(cut) {
				yank(name)
			}
		}
		if len(jobs) == 0 {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-limited.Done():
			return fmt.Errorf("end mirrors: %d do not end", len(jobs))
		}
	}
	nodes, err := blockNodes(limited, c)
	if err != nil {
		return fmt.Errorf("remove mirrors' nodes: %w", err)
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, facts.MirrorPrefix) {
			if err := m.src.deleteNode(limited, n.Name); err != nil {
				return fmt.Errorf("remove mirror's node %s: %w", n.Name, err)
			}
		}
	}
	return nil
}

// undoMirrors is dropMirrors at the end of an undo. The guest has gone on by then: a mirror that fails does not hold it.
func (m *migration) undoMirrors(ctx context.Context) {
	if !m.mirrored || m.src.control.Err() != nil {
		return
	}
	if err := m.dropMirrors(ctx); err != nil {
		m.rec.Warn("the source still has what the mirror needed (%v): `qmigrate migrate --recover` removes it", err)
	}
}

// explainLock says what QEMU's refusal of a lock means; any other error stays as it is.
func explainLock(err error) error {
	if err == nil {
		return nil
	}
	// 7.2 only says that the node, which was found to be writable, is read-only: it could not be activated for want of the lock.
	text := err.Error()
	if !(strings.Contains(text, "Failed to get ") && strings.Contains(text, " lock")) && !strings.Contains(text, "Block node is read-only") {
		return err
	}
	return fmt.Errorf("%w: another process has this image open to write to it: the other side, if it is one and the same file, which then needs no mirror, or a program that uses it beside QEMU", err)
}
