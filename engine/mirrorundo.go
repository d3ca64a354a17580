package engine

import (
	"context"
	"fmt"
	"qmigrate/engine/facts"
	"qmigrate/engine/internal/run"
	"strings"
	"time"
)

// Free ends the mirrors of a source whose guest runs: they may hold its main loop.
func (m *mirrors) Free(ctx context.Context) {
	if m.left && !m.run.Issued && !m.run.Paused && m.drop(ctx) == nil {
		m.left = false
	}
}

// deleteNode removes a block node; the job that used it may need a moment to let it go.
func deleteNode(ctx context.Context, s *run.Side, name string) error {
	for {
		err := s.Control.Execute(ctx, "blockdev-del", map[string]any{"node-name": name}, nil)
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

// drop ends what mirrors of ours the source still has, and removes their nodes; the guest goes on with its own disk. A
// mirror that waits for a destination that hangs is cut off by `yank`, which QEMU takes out of band, even where the
// wait holds its main loop. It goes by what QEMU says, not by what we know, so that it also cleans up after a run that
// was killed.
func (m *mirrors) drop(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, 3*run.AnswerLimit)
	defer cancel()
	c := m.run.Src.Control
	cut := time.Now().Add(run.AnswerLimit)
	yank := func(name string) {
		instances := map[string]any{"instances": []map[string]string{{"type": "block-node", "node-name": name}}}
		_ = c.ExecuteOOB(limited, "yank", instances, nil) // it may just have ended
	}
	for {
		asked, done := context.WithTimeout(limited, run.AnswerLimit)
		jobs, err := mirrorJobs(asked, c)
		late := asked.Err() != nil && limited.Err() == nil
		done()
		switch {
		case late:
			for _, j := range m.jobs {
				yank(j.name)
			}
			continue
		case err != nil:
			return fmt.Errorf("end mirrors: %w", err)
		}
		for _, name := range jobs {
			// it may just have ended, or be at it
			_ = c.Execute(limited, "block-job-cancel", map[string]any{"device": name, "force": true}, nil)
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
			yank(n.Name) // over a link that is cut, QEMU would wait in blockdev-del, and the guest with it
			if err := deleteNode(limited, m.run.Src, n.Name); err != nil {
				return fmt.Errorf("remove mirror's node %s: %w", n.Name, err)
			}
		}
	}
	return nil
}

// Undo is drop at the end of an undo. The guest has gone on by then: a mirror that fails does not hold it.
func (m *mirrors) Undo(ctx context.Context) {
	if !m.left || m.run.Src.Control.Err() != nil {
		return
	}
	if err := m.drop(ctx); err != nil {
		m.run.Rec.Warn("the source still has what the mirror needed (%v): `qmigrate migrate --recover` removes it", err)
	}
}

// explainLock says what QEMU's refusal of a lock means; any other error stays as it is.
func explainLock(err error) error {
	if err == nil {
		return nil
	}
	// 7.2 only says that the node, which was found to be writable, is read-only: it could not be activated for want of the
	// lock.
	text := err.Error()
	if !(strings.Contains(text, "Failed to get ") && strings.Contains(text, " lock")) &&
		!strings.Contains(text, "Block node is read-only") {
		return err
	}
	return fmt.Errorf("%w: another process has this image open to write to it: the other side, if it is one and the "+
		"same file, which then needs no mirror, or a program that uses it beside QEMU", err)
}
