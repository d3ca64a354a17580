package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/internal/atomicfile"
	"qmigrate/qmp"
)

// The formats of a saved guest.
const (
	StreamFormat    = "stream"     // what goes over the wire in a migration, one thing after the other
	MappedRAMFormat = "mapped-ram" // every page has its place in the file (QEMU 9.0+): it can be written and read by several threads
)

// File is where a guest is saved, and how.
type File struct {
	Path       string // absolute
	Format     string // StreamFormat (default of Save) or MappedRAMFormat; Restore finds it out
	Background bool   // Save: the guest runs on meanwhile, and what is saved is one instant, soon after the beginning
	DirectIO   bool   // mapped-ram: the pages pass by the host's cache (QEMU 9.1+)
	Channels   int    // mapped-ram: that many multifd channels at once; 0: one thread, or two channels for DirectIO
	Continue   bool   // Save: the guest goes on afterwards; a background save never stops it for good
	Paused     bool   // Restore: the guest stays paused
}

// partSuffix is what a file is called until it is whole.
const partSuffix = ".part"

// Save writes the guest behind src into a file. Its name is given to a whole file only, which is on the disk by then: after an error there is none, and
// the guest runs on. After a save the guest is paused on src (postmigrate), unless f.Continue or f.Background lets it run.
// The record is returned also with an error, which is a *StageError.
func Save(ctx context.Context, src *endpoint.Endpoint, p plan.Plan, f File, o plan.Options) (*record.Migration, error) {
	f.Format = cmp.Or(f.Format, StreamFormat)
	s := newFiling(src, &endpoint.Endpoint{}, record.SaveMode, p, f, o)
	s.undo = s.unsave
	defer s.close()
	line := []stage{
		{record.Initialization, s.examineSource}, // the monitor answers; this QEMU can do it; the name is free
		{record.Reservation, s.makeFile},         // the file under another name, the source configured
		{record.PreCopy, s.preCopy},              // nothing: the guest is stopped first, so that each page is written once
		{record.StopAndCopy, s.write},            // STOP .. completed
		{record.Commitment, s.keep},              // the file on the disk, and under its name
		{record.Activation, s.goOn},              // f.Continue: our cont on src .. RESUME
	}
	if f.Background {
		line = slices.Replace(line, 2, 4, stage{record.Snapshot, s.snapshot}) // `migrate` .. completed, a short stop at its beginning
	}
	for _, st := range line {
		if err := s.do(ctx, st); err != nil {
			err = s.abort(ctx, st.name, err)
			return s.figured(), err
		}
	}
	s.finish(ctx)
	s.rec.Outcome, s.rec.GuestOn = record.Completed, record.Source
	s.reset(ctx)
	s.describe(ctx, s.src)
	s.tellLife()
	if s.src.gone != nil || s.src.control.Err() != nil {
		s.rec.GuestOn = record.File
		s.rec.Warn("the source QEMU went away after the guest was saved: it is in the file alone")
	}
	return s.figured(), nil
}

// Restore loads a saved guest into dst, which waits with -incoming defer, and runs it there. The file stays as it is: after an error the
// guest is still in it.
func Restore(ctx context.Context, dst *endpoint.Endpoint, p plan.Plan, f File, o plan.Options) (*record.Migration, error) {
	s := newFiling(&endpoint.Endpoint{}, dst, record.RestoreMode, p, f, o)
	s.undo = s.unload
	defer s.close()
	for _, st := range []stage{
		{record.Initialization, s.examineDestination}, // the file's machine and memory are those of a QEMU that waits
		{record.Reservation, s.prepare},               // the destination configured
		{record.Loading, s.load},                      // migrate-incoming .. completed
		{record.Commitment, s.whole},                  // it has all of it, and has not run it
		{record.Activation, s.goOn},                   // our cont .. RESUME
	} {
		if err := s.do(ctx, st); err != nil {
			err = s.abort(ctx, st.name, err)
			return s.figured(), err
		}
	}
	s.finish(ctx)
	s.rec.Outcome, s.rec.GuestOn = record.Completed, record.Destination
	s.reset(ctx)
	s.describe(ctx, s.dst)
	s.tellLife()
	return s.figured(), nil
}

// filing is a migration with a file for one of its sides.
type filing struct {
	*migration
	file   File
	made   bool // the part is ours
	saved  bool // the file has its name
	holder *side
}

// newFiling is for one of Save and Restore: the side that has a QEMU holds the file's options.
func newFiling(src, dst *endpoint.Endpoint, mode record.Mode, p plan.Plan, f File, o plan.Options) *filing {
	p.Mode = record.StopAndCopyMode
	if f.DirectIO && f.Channels == 0 {
		f.Channels = 2
	}
	p.Listen, p.Connect = "file:"+f.Path, "file:"+f.Path+partSuffix
	s := &filing{newMigration(src, dst, p, o), f, false, false, nil}
	s.plan.Capabilities, s.plan.Parameters = maps.Clone(s.plan.Capabilities), maps.Clone(s.plan.Parameters)
	if s.holder = s.src; mode == record.RestoreMode {
		s.holder = s.dst
	}
	s.rec.Mode, s.rec.Saved = mode, &record.Saved{Path: f.Path, Format: f.Format}
	s.rec.Name, s.rec.Plan = s.named(), s.worded()
	return s
}

// named is derived from what is done, as Plan.name is.
func (s *filing) named() string {
	words := []string{string(s.rec.Mode), s.file.Format}
	for _, w := range []struct {
		on   bool
		text string
	}{{s.file.Background, "background"}, {s.file.DirectIO, "direct-io"}, {s.file.Channels > 0, "channels=" + strconv.Itoa(s.file.Channels)},
		{s.rec.Mode == record.SaveMode && !s.file.Background, s.plan.Bandwidth()}} {
		if w.on {
			words = append(words, w.text)
		}
	}
	return strings.ReplaceAll(strings.Join(words, ","), " ", "")
}

func (s *filing) worded() map[string]any {
	w := s.plan.Words()
	for _, name := range []string{"listen", "connect", "downtime_limit_ns"} { // they are not asked for
		delete(w, name)
	}
	w["mode"], w["file"], w["format"] = s.rec.Mode, s.file.Path, s.file.Format
	for name, on := range map[string]bool{"background": s.file.Background, "direct_io": s.file.DirectIO, "continue": s.file.Continue, "paused": s.file.Paused} {
		if on {
			w[name] = on
		}
	}
	if s.file.Channels > 0 {
		w["multifd_channels"] = s.file.Channels
	}
	return w
}

// check refuses what needs no QEMU to be refused.
func (s *filing) check() error {
	if s.plan.TLS != nil || s.plan.Tunnel != "" {
		return errors.New("tls, tunnel: a file has no other end that could prove who it is: encrypt the file system that it is on")
	}
	f := s.file
	switch {
	case !filepath.IsAbs(f.Path) || strings.HasSuffix(f.Path, "/"):
		return fmt.Errorf("file %q: give a file's absolute path", f.Path)
	case f.Format != StreamFormat && f.Format != MappedRAMFormat:
		return fmt.Errorf("format %q: have %s, %s", f.Format, StreamFormat, MappedRAMFormat)
	case f.Format != MappedRAMFormat && (f.DirectIO || f.Channels > 0):
		return fmt.Errorf("format %s is one stream of bytes: direct-io and multifd channels are for %s", f.Format, MappedRAMFormat)
	case f.Channels < 0 || f.Channels > 255:
		return fmt.Errorf("multifd channels %d: QEMU takes 1 to 255", f.Channels)
	case f.Background && f.Channels > 0:
		return errors.New("a background save is written by one thread: leave direct-io and multifd channels out")
	case !s.holder.ep.Files:
		return fmt.Errorf("%s is not known to see the files of this machine: run qmigrate on its host, with its monitor's unix socket", s.holder.ep.Name)
	}
	return s.plan.Check()
}

// open opens the side's monitors and reads what decides about files.
func (s *filing) open(ctx context.Context) error {
	if err := s.holder.open(ctx, s.opts); err != nil {
		return err
	}
	if s.holder.ep.Process == nil { // who listens is a forwarder
		return fmt.Errorf("the process behind %s is not the QEMU: it may be on another machine, and a file there is not one here: run qmigrate on its host", s.holder.ep.Name)
	}
	found := s.holder.facts
	var err error
	if found.Schema, found.SchemaKnown, err = s.opts.Schemas.Schema(ctx, s.holder.control); err != nil {
		return fmt.Errorf("inspect %s: %w", s.holder.ep.Name, err)
	}
	q := &s.rec.QEMU
	q.Accelerator, q.Machine, q.MemoryBytes, q.VCPUs = found.Accelerator, found.Machine, found.MemoryBytes, found.VCPUs
	return nil
}

// takesFiles tells by introspection whether this QEMU has file: addresses (8.2+). An older one is handed a descriptor.
func (s *filing) takesFiles() bool {
	return slices.Contains(s.holder.facts.Schema.Enum("migrate", "channels.addr.transport"), "file")
}

// options adds the file's capabilities and parameters to the plan and has the whole checked against this QEMU.
func (s *filing) options() error {
	found, f := s.holder.facts, s.file
	set := func(m map[string]bool, name string, on bool) map[string]bool {
		if m == nil {
			m = map[string]bool{}
		}
		if on {
			m[name] = true
		}
		return m
	}
	if _, have := found.Capabilities["mapped-ram"]; f.Format == MappedRAMFormat && !have {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("format mapped-ram on %s (QEMU %s)", found.Name, found.Version), Have: "QEMU 9.0 and newer have it; this one has format stream"}
	}
	if _, have := found.Parameters["direct-io"]; f.DirectIO && !have {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("direct-io on %s (QEMU %s)", found.Name, found.Version), Have: "QEMU 9.1 and newer have it"}
	}
	s.plan.Capabilities = set(s.plan.Capabilities, "mapped-ram", f.Format == MappedRAMFormat)
	s.plan.Capabilities = set(s.plan.Capabilities, "multifd", f.Channels > 0)
	s.plan.Capabilities = set(s.plan.Capabilities, "background-snapshot", f.Background)
	if s.plan.Parameters == nil {
		s.plan.Parameters = map[string]string{}
	}
	if f.Channels > 0 {
		s.plan.Parameters["multifd-channels"] = strconv.Itoa(f.Channels)
	}
	if f.DirectIO {
		s.plan.Parameters["direct-io"] = "on"
	}
	if s.plan.Channels = plan.FormChannels; !s.takesFiles() {
		s.plan.Channels, s.plan.Listen, s.plan.Connect = plan.FormURI, "fd:qmigrate", "fd:qmigrate"
	}
	var err error
	if s.parameters, err = fit.Resolve(s.plan, found, found); err != nil {
		return err
	}
	return fit.FirstMismatch(fit.Rules(found, nil, s.plan))
}

// examineSource changes nothing.
func (s *filing) examineSource(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	for _, name := range []string{s.file.Path, s.file.Path + partSuffix} {
		if _, err := os.Lstat(name); err == nil {
			return fmt.Errorf("%s exists: %s", name, map[bool]string{true: "remove it or give another name, for a saved guest is never written over",
				false: "another save is writing it, or one was killed: remove it if none runs"}[name == s.file.Path])
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for %s: %w", name, err)
		}
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	conditions := func() []fit.Finding { return fit.SaveConditions(s.src.facts, s.plan, s.file.Background) }
	if err := s.awaitEnd(ctx, conditions); err != nil {
		return err
	}
	found := s.src.facts
	s.rec.QEMU.SourceVersion = found.Version
	switch {
	case found.RunState == "inmigrate":
		return fmt.Errorf("%s has no guest: it waits for a migration itself", found.Name)
	case found.RunState == "postmigrate":
		return fmt.Errorf("%s has been saved or migrated away already (postmigrate): `cont` runs it again, if it surely runs nowhere else", found.Name)
	case !found.Migration().Final():
		return fmt.Errorf("a migration is under way on %s (%s)", found.Name, found.MigrationStatus)
	case len(found.Blockers) > 0:
		return fmt.Errorf("%s cannot be saved: %s", found.Name, strings.Join(found.Blockers, "; "))
	case s.file.Background && !found.Running:
		return fmt.Errorf("%s is %s: a background save is for a guest that runs; leave --background out", found.Name, found.RunState)
	}
	refusals, doubts := fit.SortOut(conditions())
	if err := fit.FirstMismatch(refusals); err != nil {
		return err
	}
	for _, d := range doubts {
		s.rec.Warn("%s", d)
	}
	if err := s.options(); err != nil {
		return err
	}
	if s.file.Background && found.Before(8, 1) {
		s.rec.Warn("source QEMU %s: had this background save failed half-way, the guest would have been lost (mended in 8.1)", found.Version)
	}
	if s.file.Background {
		s.rec.Warn("a background save is written as fast as it can be: QEMU ignores max-bandwidth then (migration/migration.c, bg_migration_thread)")
	}
	disks, err := writable(ctx, s.src.control)
	if err != nil {
		return err
	}
	if len(disks) > 0 && (s.file.Background || s.file.Continue) {
		s.rec.Warn("the file holds memory and devices, not the disks (%s), which go on changing: a guest that is restored later would find other contents than it remembers, unless they are put back to this instant too", strings.Join(diskNames(disks), ", "))
	}
	return nil
}

// writable lists the block devices that hold something and can be written. A saved guest does not have them in its file.
func writable(ctx context.Context, c *qmp.Conn) ([]qmp.BlockDevice, error) {
	all, err := c.BlockDevices(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for disks: %w", err)
	}
	return slices.DeleteFunc(all, func(d qmp.BlockDevice) bool { return d.Inserted == nil || d.Inserted.ReadOnly }), nil
}

func diskNames(disks []qmp.BlockDevice) (names []string) {
	for _, d := range disks {
		names = append(names, cmp.Or(d.Inserted.File, d.Device, d.Path))
	}
	return names
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
		s.stream = part
	}
	return s.set(ctx)
}

// set configures the one QEMU and reads back what it has.
func (s *filing) set(ctx context.Context) (err error) {
	if err := s.configure(ctx, s.holder); err != nil {
		return err
	}
	if s.rec.Capabilities, err = s.holder.control.QueryMigrateCapabilities(ctx); err != nil {
		return fmt.Errorf("read capabilities back: %w", err)
	}
	if s.rec.Parameters, err = s.holder.control.QueryMigrateParameters(ctx); err != nil {
		return fmt.Errorf("read parameters back: %w", err)
	}
	return nil
}

// limited is a context with the plan's time-out.
func (s *filing) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.plan.Timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, s.plan.Timeout, errTimeout)
}

// write writes the stopped guest.
func (s *filing) write(ctx context.Context) error {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	if err := s.sendMigrate(ctx); err != nil {
		return err
	}
	if err := s.until(ctx, s.src.done); err != nil {
		return err
	}
	s.end(s.src.completed)
	return nil
}

// snapshot writes the guest while it runs. QEMU stops it for as long as it takes to save its devices and to protect its memory; from then on a page
// is written before the guest may change it.
func (s *filing) snapshot(ctx context.Context) error {
	s.startPolling(ctx)
	if err := s.write(ctx); err != nil {
		return err
	}
	x := &record.SnapshotFigures{Duration: s.src.completed.Sub(s.issuedAt)}
	if stands := s.src.stands; len(stands) == 1 && !stands[0].from.Before(s.issuedAt) {
		x.Stopped, x.StopError = record.Of(stands[0].to.Sub(stands[0].from)), record.Of(2*s.src.stampError())
		s.src.stands = nil // it was QEMU's
	} else if len(stands) > 1 || s.src.still() {
		s.rec.Warn("the guest was stopped by somebody else too: how long it stood still for the save itself is not known")
	}
	s.rec.Snapshot = x
	return nil
}

// keep puts the file on the disk and gives it its name; whoever finds that name finds all of it, also after a loss of power.
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
	s.rec.Saved.Size = record.Of(info.Size())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.rec.Saved.Allocated = record.Of(st.Blocks * 512)
	}
	if err := atomicfile.SyncFolder(filepath.Dir(s.file.Path)); err != nil {
		s.rec.Warn("the file's name may not survive a loss of power: %v", err)
	}
	return nil
}

// goOn runs the guest: on the source after it was saved, or on the destination. Nobody can cancel it.
func (s *filing) goOn(ctx context.Context) error {
	switch {
	case s.holder == s.src && (!s.file.Continue || s.file.Background || !s.src.facts.Running || s.held != ""),
		s.holder == s.dst && s.file.Paused:
		return nil
	case s.holder == s.src && s.src.gone != nil:
		return nil // Save says so
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), activateLimit)
	defer cancel()
	s.contSent = true
	if err := s.holder.control.Cont(ctx); err != nil {
		return fmt.Errorf("run the guest: %w", err)
	}
	before := s.holder.stopped
	if err := s.until(ctx, func() bool { return s.holder.resumed.After(before) }); err != nil {
		return err
	}
	s.end(s.holder.resumed)
	return nil
}

// unsave is the undo of a save: no file, and the guest runs as before.
func (s *filing) unsave(ctx context.Context) verdict {
	if s.src.facts == nil {
		return verdict{guest: record.Unknown, mend: "the source was not reached, and nothing was changed"}
	}
	if s.file.Background {
		s.src.stands = nil // it cannot be told who stopped it
	}
	if s.src.shutdown != "" && !s.src.livesOn() {
		_ = s.drainFor(ctx, killLimit, func() bool { return s.src.gone != nil })
	}
	s.look(ctx)
	if s.issued && !s.saved && s.src.gone == nil {
		_ = s.endSource(ctx)
		if !s.src.ended() && s.drainFor(ctx, killLimit, s.src.ended) != nil {
			return verdict{guest: record.Unknown, mend: fmt.Sprintf("the source does not end its save: the guest is its own; ask %s for query-status", s.src.ep.Name)}
		}
	}
	mend := ""
	if s.made && !s.saved {
		if err := os.Remove(s.file.Path + partSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.rec.Warn("a useless part of a file is left: %v", err)
		}
	}
	if s.saved {
		mend = s.file.Path + " is whole"
	}
	switch {
	case s.src.gone == nil:
		s.reset(ctx)
	case s.saved:
		return verdict{guest: record.File, mend: "`qmigrate restore --file " + s.file.Path + "` runs it, once the source is surely dead"}
	case s.endedItself(ctx):
		return verdict{guest: record.None, outcome: record.GuestEnded, ended: s.src, mend: "there is no file"}
	case s.src.dead(ctx):
		return verdict{guest: record.None, mend: "it is lost: the source QEMU died before it was saved"}
	default:
		return verdict{guest: record.Unknown, mend: fmt.Sprintf("the source's monitor was lost: if that QEMU lives, it holds the guest: ask %s for query-status", s.src.ep.Name)}
	}
	v := verdict{guest: record.Source}
	if s.paused || s.issued {
		v = s.continueSource(ctx)
	}
	v.mend = cmp.Or(v.mend, mend)
	return v
}

// endedItself tells whether the guest ended the source QEMU.
func (s *filing) endedItself(ctx context.Context) bool {
	return s.src.itself && s.src.shutdown != "" && s.src.dead(ctx)
}

// examineDestination changes nothing.
func (s *filing) examineDestination(ctx context.Context) error {
	h, info, err := examine(s.file.Path)
	if err != nil {
		return err
	}
	if given := s.file.Format; given != "" && given != h.format() {
		return fmt.Errorf("%s has format %s, not %s: leave --format out, it is found out", s.file.Path, h.format(), given)
	}
	s.file.Format, s.rec.Saved.Format = h.format(), h.format()
	s.rec.Name, s.rec.Plan = s.named(), s.worded()
	if err := s.check(); err != nil {
		return err
	}
	s.rec.Saved.Size = record.Of(info.Size())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.rec.Saved.Allocated = record.Of(st.Blocks * 512)
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	f := s.dst.facts
	s.rec.QEMU.DestinationVersion = f.Version
	switch {
	case f.RunState != "inmigrate":
		return fmt.Errorf("%s is not waiting for a guest, it is %s: start it with -incoming defer (and -S)", f.Name, f.RunState)
	case !facts.Idle(f.MigrationStatus):
		return fmt.Errorf("%s already listens or has been used (%s): start another one with -incoming defer", f.Name, f.MigrationStatus)
	case h.machine != "" && h.machine != f.Machine:
		return fmt.Errorf("machine types differ: the file has %s, %s has %s: start it with -machine %s", h.machine, f.Name, f.Machine, h.machine)
	case h.block == "pc.ram" && h.memory > 0 && h.memory != f.MemoryBytes: // another name is a backend's: there may be several
		return fmt.Errorf("memory differs: the file has %d KiB, %s has %d KiB: start it with -m %dk", h.memory>>10, f.Name, f.MemoryBytes>>10, h.memory>>10)
	}
	if err := s.options(); err != nil {
		return err
	}
	text := "a restored guest is a second one if the saved one still runs: end that first, or both use one address in the network"
	disks, err := writable(ctx, s.dst.control)
	if err != nil {
		return err
	}
	if len(disks) > 0 {
		text += " and, where they share it, write one disk (" + strings.Join(diskNames(disks), ", ") + "), which destroys it; and its disks must be as they were when it was saved"
	}
	s.rec.Warn("%s", text)
	return nil
}

// examine reads a saved guest's header.
func examine(name string) (header, fs.FileInfo, error) {
	file, err := os.Open(name)
	if err != nil {
		return header{}, nil, fmt.Errorf("open saved guest: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	if err != nil {
		return header{}, nil, fmt.Errorf("open saved guest %s: %w", name, err)
	}
	h, err := readHeader(file)
	if err != nil {
		return header{}, nil, fmt.Errorf("read saved guest %s: %w", name, err)
	}
	return h, info, nil
}

// FormatOf is the format of a saved guest.
func FormatOf(name string) (string, error) {
	h, _, err := examine(name)
	if err != nil {
		return "", err
	}
	return h.format(), nil
}

// prepare keeps the destination from starting by itself and configures it.
func (s *filing) prepare(ctx context.Context) error {
	if err := s.dst.control.Stop(ctx); err != nil {
		return fmt.Errorf("keep destination paused: %w", err)
	}
	return s.set(ctx)
}

// load has the destination read the file. Where QEMU lets us it stays after a failure, so that it can say what was wrong.
func (s *filing) load(ctx context.Context) error {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	s.listening = true
	args := map[string]any{"uri": s.plan.Listen}
	if s.takesFiles() {
		args = (qmp.Address{Kind: "file", Path: s.file.Path}).Channels()
	} else {
		file, err := os.Open(s.file.Path)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := s.dst.getfd(ctx, s.plan.Listen, file); err != nil {
			return err
		}
	}
	if fit.HasArgument(s.dst.facts, "migrate-incoming", "exit-on-error") {
		args["exit-on-error"] = false
	}
	if err := s.dst.control.Execute(ctx, "migrate-incoming", args, nil); err != nil {
		return fmt.Errorf("load %s: %w", s.file.Path, err)
	}
	if err := s.until(ctx, s.dst.done); err != nil {
		return err
	}
	s.end(s.dst.completed)
	return nil
}

// whole is the decision: the destination has read all of it and nobody has run it.
func (s *filing) whole(context.Context) error {
	s.catchUp()
	return s.dst.gone
}

// unload is the undo of a restore. The file is as it was; a destination that began to load is of no more use.
func (s *filing) unload(ctx context.Context) verdict {
	if s.dst.facts == nil || !s.listening {
		return verdict{guest: record.File}
	}
	s.look(ctx)
	if s.contSent && s.dst.gone == nil {
		if status, err := s.dst.asked(ctx); err == nil && (status.Running || resume(ctx, s.dst) == nil) {
			return verdict{guest: record.Destination}
		}
	}
	if err := s.dst.kill(ctx); err != nil {
		return verdict{guest: record.Unknown, mend: fmt.Sprintf("the destination QEMU holds some or all of it and could not be ended (%v): end it before %s is restored again", err, s.file.Path)}
	}
	mend := "it is as it was: start another QEMU with -incoming defer and try again"
	if !s.dst.resumed.IsZero() {
		mend = "it ran on the destination, which died; the file holds it as it was when it was saved"
	}
	return verdict{guest: record.File, mend: mend}
}

// reset switches off again what was switched on for the file: each would make the next migration something else.
func (s *filing) reset(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerLimit)
	defer cancel()
	if s.holder.control == nil || s.holder.control.Err() != nil {
		return
	}
	off := map[string]bool{}
	for name, on := range s.plan.Capabilities {
		if on {
			off[name] = false
		}
	}
	err := s.holder.control.SetMigrateCapabilities(ctx, off)
	if s.file.DirectIO {
		err = errors.Join(err, s.holder.control.SetMigrateParameters(ctx, map[string]any{"direct-io": false}))
	}
	if err != nil {
		s.rec.Warn("%s could not be set back to what it was: %v", s.holder.ep.Name, err)
	}
}

// describe says in what state the guest is left.
func (s *filing) describe(ctx context.Context, on *side) {
	if status, err := on.asked(context.WithoutCancel(ctx)); err == nil {
		on.runState = status.Status
		s.rec.Saved.RunState = status.Status
	}
}

// figured leaves out of the record what has no meaning for a file: there is no other side to have a downtime, and a background save has no passes.
func (s *filing) figured() *record.Migration {
	s.rec.Downtime = record.Downtime{}
	if s.rec.Outcome == record.Recovered && s.rec.Mode == record.SaveMode {
		s.rec.Outcome = record.Failed // the guest is where it was; it is the save that failed
	}
	if s.file.Background {
		s.rec.Passes = []record.Pass{}
	}
	return s.rec
}
