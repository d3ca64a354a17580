package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// recoverLimit is how long each side may take to end what it is at.
const recoverLimit = 10 * time.Second

// Recover ends what an interrupted run left behind two QEMUs, and returns which side runs the guest now and, in one sentence, why.
// It decides from what both say of themselves, with the rules of a live run: the source goes on unless the migration completed,
// for only then can the destination have been told to run; if it completed and the source has not run since, the destination
// goes on. It may be called again after an error, and when there is nothing to recover.
//
// A post-copy that is paused goes on over a new connection, for which p says where to listen and to connect; p is not used otherwise.
func Recover(ctx context.Context, src, dst *Endpoint, p Plan, o Options) (record.Holder, string, error) {
	m := newMigration(src, dst, Plan{Listen: p.Listen, Connect: cmp.Or(p.Connect, p.Listen)}, o)
	defer m.close()
	srcErr, dstErr := m.src.open(ctx, m.opts), m.dst.open(ctx, m.opts)
	for _, err := range []error{srcErr, dstErr} {
		if err != nil && !refused(err) && srcErr == nil && strings.HasPrefix(m.src.facts.MigrationStatus, "postcopy-") {
			return record.Destination, "", fmt.Errorf("%w; the source is in %s, so its memory is on both sides: end neither QEMU. A paused destination may take no new client (seen on 7.2): the one that drove the migration has to go on with it", err, m.src.facts.MigrationStatus)
		}
		if err != nil && !refused(err) {
			return record.Unknown, "", fmt.Errorf("%w; if that QEMU hangs, end it, then try again", err)
		}
	}
	switch {
	case srcErr != nil && dstErr != nil:
		return record.None, "", fmt.Errorf("neither QEMU can be reached: %w", errors.Join(srcErr, dstErr))
	case srcErr != nil:
		return m.withoutSource(ctx, srcErr)
	case m.src.facts.RunState == "inmigrate":
		return record.Unknown, "", fmt.Errorf("source %s is itself waiting for a migration: swap --source and --destination?", src.Name)
	case dstErr != nil:
		return m.withoutDestination(ctx, dstErr)
	}
	if err := m.sameGuest(); err != nil {
		return record.Unknown, "", err
	}
	if strings.HasPrefix(m.src.facts.MigrationStatus, "postcopy-") || strings.HasPrefix(m.dst.facts.MigrationStatus, "postcopy-") {
		return m.recoverPostCopy(ctx)
	}
	if err := m.endMigration(ctx); err != nil {
		return record.Unknown, "", err
	}
	status, err := m.src.asked(ctx)
	if err != nil {
		return record.Unknown, "", fmt.Errorf("ask source: %w", err)
	}
	switch {
	case m.dst.facts.Running && status.Running:
		return record.Unknown, "", fmt.Errorf("%s and %s both run a guest: they are not the two ends of one migration", src.Name, dst.Name)
	case m.dst.facts.Running && m.src.status == "completed":
		return record.Destination, "the guest runs on the destination already; the source QEMU can be ended", nil
	case m.dst.facts.Running:
		return record.Unknown, "", fmt.Errorf("%s runs a guest and %s is %s: they are not the two ends of one interrupted migration", dst.Name, src.Name, status.Status)
	case status.Running && m.dst.facts.RunState == "inmigrate" && idle(m.dst.facts.MigrationStatus):
		return record.Source, "there is nothing to recover: the guest runs on the source, and the destination waits", nil
	case status.Running:
		return m.toSource(ctx, "the source runs it")
	case status.Status != "postmigrate" && m.src.status == "completed" && m.dst.facts.MigrationStatus == "completed":
		return record.Unknown, "", fmt.Errorf("the migration had completed, and somebody has run %s since: it is %s, %s is %s: `cont` the one that ran last and end the other", src.Name, status.Status, dst.Name, m.dst.facts.RunState)
	case status.Status != "postmigrate" || m.src.status != "completed":
		return m.toSource(ctx, "the migration had not completed")
	}
	// All was sent. The destination may still be at loading it.
	if m.dst.waitStatus(ctx, final); m.dst.done() {
		return m.toDestination(ctx, "the migration had completed and the guest had not been started")
	}
	if m.dst.untouched(ctx) { // the guest may run on the one that all was sent to
		return record.Unknown, "", fmt.Errorf("the migration from %s had completed, and nothing of it has come to %s: it may have gone to another destination, and the guest may run there: give that one as --destination; if the guest surely ran nowhere else, `cont` on %s runs it", src.Name, dst.Name, src.Name)
	}
	return m.toSource(ctx, "the destination had not taken in all of it")
}

// recoverPostCopy goes on with a post-copy that nobody attends: nothing is cancelled, for both sides have a part of the guest.
func (m *migration) recoverPostCopy(ctx context.Context) (record.Holder, string, error) {
	m.rec.PostCopy = &record.PostCopyFigures{}
	m.split, m.src.status, m.dst.status = true, m.src.facts.MigrationStatus, m.dst.facts.MigrationStatus
	if !m.dst.facts.Running {
		if err := resume(ctx, m.dst); err != nil {
			return record.None, "", fmt.Errorf("start destination: %w: its memory is on both sides, and only it can run: `cont` on %s", err, m.dst.ep.Name)
		}
	}
	if m.linkLost() {
		if m.plan.Connect == "" {
			return record.Destination, "", fmt.Errorf("post-copy is paused for want of a link (source %s, destination %s): give --listen URI, where the destination is to listen anew, and --connect URI if the source reaches that under another address", m.src.status, m.dst.status)
		}
		if err := m.mendLink(ctx); err != nil {
			return record.Destination, "", err
		}
	}
	if err := m.follow(ctx); err != nil {
		return record.Destination, "", fmt.Errorf("post-copy was interrupted again: %w: try again", err)
	}
	return record.Destination, "post-copy has ended: the guest runs on the destination, the source QEMU can be ended", nil
}

// sameGuest refuses two QEMUs that cannot be the ends of one migration.
func (m *migration) sameGuest() error {
	a, b := m.src.facts, m.dst.facts
	switch {
	case len(a.Chardevs) > 0 && slices.Equal(a.Chardevs, b.Chardevs):
		return fmt.Errorf("source %s and destination %s are the same QEMU", a.Name, b.Name)
	case a.Machine != b.Machine || a.MemoryBytes != b.MemoryBytes || a.VCPUs != b.VCPUs:
		return fmt.Errorf("source %s and destination %s have different machines: they are not the two ends of one migration", a.Name, b.Name)
	case idle(a.MigrationStatus) && b.MigrationStatus == "completed": // and what b holds may be somebody's guest
		return fmt.Errorf("%s has a guest that has come from elsewhere (%s), for %s has never sent one: they are not the two ends of one migration; give the QEMU that the guest came from as --source", b.Name, b.RunState, a.Name)
	}
	return nil
}

// final tells whether this status of a migration is final.
func final(status string) bool {
	return idle(status) || slices.Contains([]string{"completed", "failed", "cancelled"}, status)
}

// idle tells whether there has been no migration at all.
func idle(status string) bool { return status == "" || status == "none" }

// waitStatus polls query-migrate until its status is as wanted; it does not rely on events, for somebody may have switched them off.
func (s *side) waitStatus(ctx context.Context, wanted func(string) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, recoverLimit)
	defer cancel()
	for {
		info, err := s.control.QueryMigrate(ctx)
		if err != nil {
			return false
		}
		if s.status = info.Status; wanted(s.status) {
			return true
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return false
		}
	}
}

// endMigration cancels a migration that is still under way on the source; it may complete all the same.
func (m *migration) endMigration(ctx context.Context) error {
	m.src.status = m.src.facts.MigrationStatus
	if final(m.src.status) {
		return nil
	}
	if err := m.src.control.MigrateCancel(ctx); err != nil && !isRefusal(err) {
		return fmt.Errorf("cancel migration: %w", err)
	}
	if !m.src.waitStatus(ctx, final) {
		return fmt.Errorf("source %s does not end its migration (%s): the guest is its own; end the destination QEMU, then try again", m.src.ep.Name, m.src.status)
	}
	return nil
}

func isRefusal(err error) bool {
	var refusal *qmp.CommandError
	return errors.As(err, &refusal)
}

// withoutSource: nobody listens on the source's socket. On this machine that means that the QEMU is dead; behind an address of
// another one, or where there is no socket, it means nothing.
func (m *migration) withoutSource(ctx context.Context, cause error) (record.Holder, string, error) {
	var op *net.OpError
	died := errors.As(cause, &op) && op.Net == "unix" && errors.Is(cause, syscall.ECONNREFUSED)
	switch {
	case strings.HasPrefix(m.dst.facts.MigrationStatus, "postcopy-"):
		return record.Unknown, "", fmt.Errorf("%w; the destination is in %s, so a part of its memory is still on the source: if that QEMU is surely dead, the guest is lost", cause, m.dst.facts.MigrationStatus)
	case m.dst.facts.Running:
		return record.Destination, "the guest runs on the destination already; the source QEMU cannot be reached", nil
	case m.dst.facts.MigrationStatus != "completed":
		return record.None, "", fmt.Errorf("%w; the destination does not hold the whole guest (%s): if the source QEMU is dead, it is lost", cause, m.dst.facts.RunState)
	case !died:
		return record.None, "", fmt.Errorf("%w; the destination holds the whole guest, paused: if the source QEMU is surely dead, `cont` on %s runs it", cause, m.dst.ep.Name)
	}
	return m.toDestination(ctx, "the source QEMU is dead and the destination holds the whole guest")
}

// withoutDestination: nobody listens on the destination's socket. Unless the migration completed, or had gone over to post-copy, it cannot have
// run the guest, dead or alive.
func (m *migration) withoutDestination(ctx context.Context, cause error) (record.Holder, string, error) {
	if status := m.src.facts.MigrationStatus; strings.HasPrefix(status, "postcopy-") { // then it may have, and nothing is cancelled
		return record.Unknown, "", fmt.Errorf("%w; the source is in %s, so the destination may have run the guest: if that QEMU is surely dead, what the guest did since the switch is lost, and nothing was changed here", cause, status)
	}
	if err := m.endMigration(ctx); err != nil {
		return record.Unknown, "", err
	}
	status, err := m.src.asked(ctx)
	switch {
	case err != nil:
		return record.Unknown, "", fmt.Errorf("ask source: %w", err)
	case status.Status == "postmigrate" && m.src.status == "completed":
		return record.None, "", fmt.Errorf("%w; the migration had completed: whether the destination ran the guest is not known. If that QEMU is surely dead, `cont` on %s goes back to the switch-over, which is safe only if nothing outside the guest has seen what it did since", cause, m.src.ep.Name)
	}
	return m.toSource(ctx, "the destination QEMU cannot be reached and never ran it")
}

// toSource ends the destination, if it is there, and then lets the source run.
func (m *migration) toSource(ctx context.Context, why string) (record.Holder, string, error) {
	text := why + ": the guest runs on the source"
	if m.dst.facts != nil {
		if err := m.dst.kill(ctx); err != nil {
			return record.Unknown, "", fmt.Errorf("end destination: %w: end that QEMU, then try again", err)
		}
		text += ", the destination QEMU is ended"
	}
	if err := resume(ctx, m.src); err != nil {
		return record.None, "", fmt.Errorf("continue source: %w", err)
	}
	if err := m.dropMirrors(ctx); err != nil {
		return record.Source, "", fmt.Errorf("%s; %w: try again", text, err)
	}
	return record.Source, text, nil
}

func (m *migration) toDestination(ctx context.Context, why string) (record.Holder, string, error) {
	if err := resume(ctx, m.dst); err != nil {
		return record.None, "", fmt.Errorf("start destination: %w", err)
	}
	return record.Destination, why + ": it runs on the destination now; the source QEMU can be ended", nil
}
