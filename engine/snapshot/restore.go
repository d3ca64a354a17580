package snapshot

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// Restore loads a saved guest into dst, which waits with -incoming defer, and runs it there. The file stays as it is:
// after an error the guest is still in it.
func Restore(ctx context.Context, dst *endpoint.Endpoint, p plan.Plan, f File, o plan.Options) (*record.Migration,
	error) {
	s := newFiling(&endpoint.Endpoint{}, dst, record.RestoreMode, p, f, o)
	s.run.Undo = s.unload
	defer s.run.Close()
	if err := s.through(ctx, []step{
		{record.Initialization, s.examineDestination}, // the file's machine and memory are those of a QEMU that waits
		{record.Reservation, s.prepare},               // the destination configured
		{record.Loading, s.load},                      // migrate-incoming .. completed
		{record.Commitment, s.whole},                  // it has all of it, and has not run it
		{record.Activation, s.goOn},                   // our cont .. RESUME
	}); err != nil {
		return s.figured(), err
	}
	s.run.Finish(ctx)
	s.run.Rec.Outcome, s.run.Rec.GuestOn = record.Completed, record.Destination
	s.reset(ctx)
	s.describe(ctx, s.run.Dst)
	s.run.TellLife()
	return s.figured(), nil
}

// examineDestination changes nothing.
func (s *filing) examineDestination(ctx context.Context) error {
	h, info, err := examine(s.file.Path)
	if err != nil {
		return err
	}
	if given := s.file.Format; given != "" && given != h.format() {
		return fmt.Errorf("%s has format %s, not %s: leave format out, it is found out", s.file.Path, h.format(), given)
	}
	s.file.Format, s.run.Rec.Saved.Format = h.format(), h.format()
	s.run.Rec.Name, s.run.Rec.Plan = s.named(), s.worded()
	if err := s.check(); err != nil {
		return err
	}
	s.run.Rec.Saved.Size = record.Of(info.Size())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.run.Rec.Saved.Allocated = record.Of(st.Blocks * 512)
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	f := s.run.Dst.Facts
	s.run.Rec.QEMU.DestinationVersion = f.Version
	switch {
	case f.RunState != "inmigrate":
		return fmt.Errorf("%s is not waiting for a guest, it is %s: start it with -incoming defer (and -S)", f.Name,
			f.RunState)
	case !facts.Idle(f.MigrationStatus):
		return fmt.Errorf("%s already listens or has been used (%s): start another one with -incoming defer", f.Name,
			f.MigrationStatus)
	case h.machine != "" && h.machine != f.Machine:
		return fmt.Errorf("machine types differ: the file has %s, %s has %s: start it with -machine %s", h.machine, f.Name,
			f.Machine, h.machine)
	case h.block == "pc.ram" && h.memory > 0 && h.memory != f.MemoryBytes:
		// another name is a backend's: there may be several
		return fmt.Errorf("memory differs: the file has %d KiB, %s has %d KiB: start it with -m %dk", h.memory>>10, f.Name,
			f.MemoryBytes>>10, h.memory>>10)
	}
	if err := s.options(); err != nil {
		return err
	}
	text := "a restored guest is a second one if the saved one still runs: end that first, or both use one address in " +
		"the network"
	disks, err := facts.Writable(ctx, s.run.Dst.Control)
	if err != nil {
		return err
	}
	if len(disks) > 0 {
		text += " and, where they share it, write one disk (" + strings.Join(diskNames(disks), ", ") +
			"), which destroys it; and its disks must be as they were when it was saved"
	}
	s.run.Rec.Warn("%s", text)
	return nil
}

// prepare keeps the destination from starting by itself and configures it.
func (s *filing) prepare(ctx context.Context) error {
	if err := s.run.Dst.Control.Stop(ctx); err != nil {
		return fmt.Errorf("keep destination paused: %w", err)
	}
	return s.set(ctx)
}

// load has the destination read the file. Where QEMU lets us it stays after a failure, so that it can say what was
// wrong.
func (s *filing) load(ctx context.Context) error {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	s.run.Listening = true
	args := map[string]any{"uri": s.run.Plan.Listen}
	if s.takesFiles() {
		args = (qmp.Address{Kind: "file", Path: s.file.Path}).Channels()
	} else {
		file, err := os.Open(s.file.Path)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := s.run.Dst.Getfd(ctx, s.run.Plan.Listen, file); err != nil {
			return err
		}
	}
	if fit.HasArgument(s.run.Dst.Facts, "migrate-incoming", "exit-on-error") {
		args["exit-on-error"] = false
	}
	if err := s.run.Dst.Control.Execute(ctx, "migrate-incoming", args, nil); err != nil {
		return fmt.Errorf("load %s: %w", s.file.Path, err)
	}
	if err := s.run.Until(ctx, s.run.Dst.Done); err != nil {
		return err
	}
	s.run.End(s.run.Dst.Completed)
	return nil
}

// whole is the decision: the destination has read all of it and nobody has run it.
func (s *filing) whole(context.Context) error {
	s.run.CatchUp()
	return s.run.Dst.Gone
}

// unload is the undo of a restore. The file is as it was; a destination that began to load is of no more use.
func (s *filing) unload(ctx context.Context) run.Verdict {
	if s.run.Dst.Facts == nil || !s.run.Listening {
		return run.Verdict{Guest: record.File}
	}
	s.run.Look(ctx)
	if s.run.ContSent && s.run.Dst.Gone == nil {
		if status, err := s.run.Dst.Asked(ctx); err == nil && (status.Running || run.Resume(ctx, s.run.Dst) == nil) {
			return run.Verdict{Guest: record.Destination}
		}
	}
	if err := s.run.Dst.Kill(ctx); err != nil {
		return run.Verdict{Guest: record.Unknown,
			Mend: fmt.Sprintf("the destination QEMU holds some or all of it and could not be ended (%v): end it before %s is "+
				"restored again", err, s.file.Path)}
	}
	mend := "it is as it was: start another QEMU with -incoming defer and try again"
	if !s.run.Dst.Resumed.IsZero() {
		mend = "it ran on the destination, which died; the file holds it as it was when it was saved"
	}
	return run.Verdict{Guest: record.File, Mend: mend}
}
