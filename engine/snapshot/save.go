package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/internal/atomicfile"
)

// Save writes the guest behind src into a file. Its name is given to a whole file only, which is on the disk by then:
// after an error there is none, and the guest runs on. After a save the guest is paused on src (postmigrate), unless
// f.Continue or f.Background lets it run. The record is returned also with an error, which is a *record.StageError.
func Save(ctx context.Context, src *endpoint.Endpoint, p plan.Plan, f File, o plan.Options) (*record.Migration, error) {
	f.Format = cmp.Or(f.Format, StreamFormat)
	s := newFiling(src, &endpoint.Endpoint{}, record.SaveMode, p, f, o)
	s.run.Undo = s.unsave
	defer s.run.Close()
	line := []step{
		{record.Initialization, s.examineSource}, // the monitor answers; this QEMU can do it; the name is free
		{record.Reservation, s.makeFile},         // the file under another name, the source configured
		{record.PreCopy, s.run.StandStill},       // nothing: the guest is stopped first, so that each page is written once
		{record.StopAndCopy, s.write},            // STOP .. completed
		{record.Commitment, s.keep},              // the file on the disk, and under its name
		{record.Activation, s.goOn},              // f.Continue: our cont on src .. RESUME
	}
	if f.Background {
		// `migrate` .. completed, a short stop at its beginning
		line = slices.Replace(line, 2, 4, step{record.Snapshot, s.snapshot})
	}
	if err := s.through(ctx, line); err != nil {
		return s.figured(), err
	}
	s.run.Finish(ctx)
	s.run.Rec.Outcome, s.run.Rec.GuestOn = record.Completed, record.Source
	s.reset(ctx)
	s.describe(ctx, s.run.Src)
	s.run.TellLife()
	if s.run.Src.Gone != nil || s.run.Src.Control.Err() != nil {
		s.run.Rec.GuestOn = record.File
		s.run.Rec.Warn("the source QEMU went away after the guest was saved: it is in the file alone")
	}
	return s.figured(), nil
}

// examineSource changes nothing.
func (s *filing) examineSource(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	for _, name := range []string{s.file.Path, s.file.Path + partSuffix} {
		if _, err := os.Lstat(name); err == nil {
			return fmt.Errorf("%s exists: %s", name,
				map[bool]string{true: "remove it or give another name: a saved guest is never written over",
					false: "another save is writing it, or one was killed: remove it if none runs"}[name == s.file.Path])
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for %s: %w", name, err)
		}
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	conditions := func() []fit.Finding { return fit.SaveConditions(s.run.Src.Facts, s.run.Plan, s.file.Background) }
	if err := s.run.AwaitEnd(ctx, conditions); err != nil {
		return err
	}
	found := s.run.Src.Facts
	s.run.Rec.QEMU.SourceVersion = found.Version
	switch {
	case found.RunState == "inmigrate":
		return fmt.Errorf("%s has no guest: it waits for a migration itself", found.Name)
	case found.RunState == "postmigrate":
		return fmt.Errorf("%s has been saved or migrated away already (postmigrate): `cont` runs it again, if it surely "+
			"runs nowhere else", found.Name)
	case !found.Migration().Final():
		return fmt.Errorf("a migration is under way on %s (%s)", found.Name, found.MigrationStatus)
	case len(found.Blockers) > 0:
		return fmt.Errorf("%s cannot be saved: %s", found.Name, strings.Join(found.Blockers, "; "))
	case s.file.Background && !found.Running:
		return fmt.Errorf("%s is %s: a background save is for a guest that runs; leave background out", found.Name,
			found.RunState)
	}
	refusals, doubts := fit.SortOut(conditions())
	if err := fit.FirstMismatch(refusals); err != nil {
		return err
	}
	for _, d := range doubts {
		s.run.Rec.Warn("%s", d)
	}
	if err := s.options(); err != nil {
		return err
	}
	if s.file.Background && found.Before(8, 1) {
		s.run.Rec.Warn("source QEMU %s: had this background save failed half-way, the guest would have been lost (mended in 8.1)", found.Version)
	}
	if s.file.Background {
		s.run.Rec.Warn("a background save is written as fast as it can be: QEMU ignores max-bandwidth then " +
			"(migration/migration.c, bg_migration_thread)")
	}
	disks, err := facts.Writable(ctx, s.run.Src.Control)
	if err != nil {
		return err
	}
	if len(disks) > 0 && (s.file.Background || s.file.Continue) {
		s.run.Rec.Warn("the file holds memory and devices, not the disks (%s), which go on changing: a guest that is "+
			"restored later would find other contents than it remembers, unless they are put back to this instant too", strings.Join(diskNames(disks), ", "))
	}
	return nil
}

// makeFile makes the part, which proves that there is a place for it, and configures the source.
func (s *filing) makeFile(ctx context.Context) error {
	part, err := os.OpenFile(s.file.Path+partSuffix, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	s.made = true
	if s.takesFiles() {
		part.Close()
	} else {
		s.run.Stream = part
	}
	return s.set(ctx)
}

// write writes the stopped guest.
func (s *filing) write(ctx context.Context) error {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	if err := s.run.SendMigrate(ctx); err != nil {
		return err
	}
	if err := s.run.Until(ctx, s.run.Src.Done); err != nil {
		return err
	}
	s.run.End(s.run.Src.Completed)
	return nil
}

// snapshot writes the guest while it runs. QEMU stops it for as long as it takes to save its devices and to protect its
// memory; from then on a page is written before the guest may change it.
func (s *filing) snapshot(ctx context.Context) error {
	s.run.StartPolling(ctx)
	if err := s.write(ctx); err != nil {
		return err
	}
	x := &record.SnapshotFigures{Duration: s.run.Src.Completed.Sub(s.run.IssuedAt)}
	if stands := s.run.Src.Stands; len(stands) == 1 && !stands[0].From.Before(s.run.IssuedAt) {
		x.Stopped, x.StopError = record.Of(stands[0].To.Sub(stands[0].From)), record.Of(s.run.Src.StampError(stands[0].From)+
			s.run.Src.StampError(stands[0].To))
		s.run.Src.Stands = nil // it was QEMU's
	} else if len(stands) > 1 || s.run.Src.Still() {
		s.run.Rec.Warn("the guest was stopped by somebody else too: how long it stood still for the save itself is not known")
	}
	s.run.Rec.Snapshot = x
	return nil
}

// keep puts the file on the disk and gives it its name; whoever finds that name finds all of it, also after a loss of
// power.
func (s *filing) keep(context.Context) error {
	name := s.file.Path + partSuffix
	part, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("find what QEMU wrote: %w", err)
	}
	defer part.Close()
	info, err := part.Stat()
	if err == nil {
		_, err = readHeader(part) // QEMU may see another file under this name than we do
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := part.Sync(); err != nil {
		return fmt.Errorf("put the file on the disk: %w", err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, s.file.Path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system without it
		if err = os.Link(name, s.file.Path); err == nil {
			err = os.Remove(name)
		}
	}
	if err != nil {
		return fmt.Errorf("name the file %s: %w", s.file.Path, err)
	}
	s.saved = true
	s.run.Rec.Saved.Size = record.Of(info.Size())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.run.Rec.Saved.Allocated = record.Of(st.Blocks * 512)
	}
	if err := atomicfile.SyncFolder(filepath.Dir(s.file.Path)); err != nil {
		s.run.Rec.Warn("the file's name may not survive a loss of power: %v", err)
	}
	return nil
}

// unsave is the undo of a save: no file, and the guest runs as before.
func (s *filing) unsave(ctx context.Context) run.Verdict {
	if s.run.Src.Facts == nil {
		return run.Verdict{Guest: record.Unknown, Mend: "the source was not reached, and nothing was changed"}
	}
	if s.file.Background {
		s.run.Src.Stands = nil // it cannot be told who stopped it
	}
	if s.run.Src.Shutdown != "" && !s.run.Src.LivesOn() {
		_ = s.run.DrainFor(ctx, run.KillLimit, func() bool { return s.run.Src.Gone != nil })
	}
	s.run.Look(ctx)
	if s.run.Issued && !s.saved && s.run.Src.Gone == nil {
		_ = s.run.EndSource(ctx)
		if !s.run.Src.Ended() && s.run.DrainFor(ctx, run.KillLimit, s.run.Src.Ended) != nil {
			return run.Verdict{Guest: record.Unknown,
				Mend: fmt.Sprintf("the source does not end its save: the guest is its own; ask %s for query-status",
					s.run.Src.Endpoint.Name)}
		}
	}
	mend := ""
	if s.made && !s.saved {
		if err := os.Remove(s.file.Path + partSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.run.Rec.Warn("a useless part of a file is left: %v", err)
		}
	}
	if s.saved {
		mend = s.file.Path + " is whole"
	}
	switch {
	case s.run.Src.Gone == nil:
		s.reset(ctx)
	case s.saved:
		return run.Verdict{Guest: record.File, Mend: "`qmigrate restore --file " + s.file.Path +
			"` runs it, once the source is surely dead"}
	case s.endedItself(ctx):
		return run.Verdict{Guest: record.None, Outcome: record.GuestEnded, Ended: s.run.Src, Mend: "there is no file"}
	case s.run.Src.Dead(ctx):
		return run.Verdict{Guest: record.None, Mend: "it is lost: the source QEMU died before it was saved"}
	default:
		return run.Verdict{Guest: record.Unknown,
			Mend: fmt.Sprintf("the source's monitor was lost: if that QEMU lives, it holds the guest: ask %s for query-status",
				s.run.Src.Endpoint.Name)}
	}
	v := run.Verdict{Guest: record.Source}
	if s.run.Paused || s.run.Issued {
		v = s.run.ContinueSource(ctx)
	}
	v.Mend = cmp.Or(v.Mend, mend)
	return v
}

// endedItself tells whether the guest ended the source QEMU.
func (s *filing) endedItself(ctx context.Context) bool {
	return s.run.Src.Itself && s.run.Src.Shutdown != "" && s.run.Src.Dead(ctx)
}
