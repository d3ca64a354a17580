package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/fit"
	"qmigrate/engine/internal/run"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/qmp"
)

// The formats of a saved guest.
const (
	StreamFormat = "stream" // what goes over the wire in a migration, one thing after the other
	// every page has its place in the file (QEMU 9.0+): it can be written and read by several threads
	MappedRAMFormat = "mapped-ram"
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

// step is one stage of the line.
type step struct {
	name record.StageName
	run  func(context.Context) error
}

// through goes through the line, and undoes it where a stage fails.
func (s *filing) through(ctx context.Context, line []step) error {
	for _, st := range line {
		if err := s.run.Do(ctx, st.name, st.run); err != nil {
			return s.run.Abort(ctx, err)
		}
	}
	return nil
}

// filing is a migration with a file for one of its sides.
type filing struct {
	run    *run.Run
	file   File
	made   bool // the part is ours
	saved  bool // the file has its name
	holder *run.Side
}

// newFiling is for one of Save and Restore: the side that has a QEMU holds the file's options.
func newFiling(src, dst *endpoint.Endpoint, mode record.Mode, p plan.Plan, f File, o plan.Options) *filing {
	p.Mode = record.StopAndCopyMode
	if f.DirectIO && f.Channels == 0 {
		f.Channels = 2
	}
	p.Listen, p.Connect = "file:"+f.Path, "file:"+f.Path+partSuffix
	s := &filing{run.New(src, dst, p, o), f, false, false, nil}
	s.run.Plan.Capabilities, s.run.Plan.Parameters = maps.Clone(s.run.Plan.Capabilities), maps.Clone(s.run.Plan.Parameters)
	if s.holder = s.run.Src; mode == record.RestoreMode {
		s.holder = s.run.Dst
	}
	s.run.Rec.Mode, s.run.Rec.Saved = mode, &record.Saved{Path: f.Path, Format: f.Format}
	s.run.Rec.Name, s.run.Rec.Plan = s.named(), s.worded()
	return s
}

// named is derived from what is done, as Plan.name is.
func (s *filing) named() string {
	words := []string{string(s.run.Rec.Mode), s.file.Format}
	for _, w := range []struct {
		on   bool
		text string
	}{{s.file.Background, "background"}, {s.file.DirectIO, "direct-io"}, {s.file.Channels > 0,
		"channels=" + strconv.Itoa(s.file.Channels)},
		{s.run.Rec.Mode == record.SaveMode && !s.file.Background, s.run.Plan.Bandwidth()}} {
		if w.on {
			words = append(words, w.text)
		}
	}
	return strings.ReplaceAll(strings.Join(words, ","), " ", "")
}

func (s *filing) worded() map[string]any {
	w := s.run.Plan.Words()
	for _, name := range []string{"listen", "connect", "downtime_limit_ns"} { // they are not asked for
		delete(w, name)
	}
	w["mode"], w["file"], w["format"] = s.run.Rec.Mode, s.file.Path, s.file.Format
	for name, on := range map[string]bool{"background": s.file.Background, "direct_io": s.file.DirectIO,
		"continue": s.file.Continue, "paused": s.file.Paused} {
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
	if s.run.Plan.TLS != nil || s.run.Plan.Tunnel != "" {
		return errors.New("tls, tunnel: a file has no other end that could prove who it is: encrypt the file system that it is on")
	}
	f := s.file
	switch {
	case !filepath.IsAbs(f.Path) || strings.HasSuffix(f.Path, "/"):
		return fmt.Errorf("file %q: give a file's absolute path", f.Path)
	case f.Format != StreamFormat && f.Format != MappedRAMFormat:
		return fmt.Errorf("format %q: have %s, %s", f.Format, StreamFormat, MappedRAMFormat)
	case f.Format != MappedRAMFormat && (f.DirectIO || f.Channels > 0):
		return fmt.Errorf("format %s is one stream of bytes: direct-io and multifd channels are for %s", f.Format,
			MappedRAMFormat)
	case f.Channels < 0 || f.Channels > 255:
		return fmt.Errorf("multifd channels %d: QEMU takes 1 to 255", f.Channels)
	case f.Background && f.Channels > 0:
		return errors.New("a background save is written by one thread: leave direct-io and multifd channels out")
	case !s.holder.Endpoint.Files:
		return fmt.Errorf("%s is not known to see the files of this machine: run qmigrate on its host, with its monitor's "+
			"unix socket", s.holder.Endpoint.Name)
	}
	return s.run.Plan.Check()
}

// open opens the side's monitors and reads what decides about files.
func (s *filing) open(ctx context.Context) error {
	if err := s.holder.Open(ctx, s.run.Opts); err != nil {
		return err
	}
	if s.holder.Endpoint.Process == nil { // who listens is a forwarder
		return fmt.Errorf("the process behind %s is not the QEMU: it may be on another machine, and a file there is not "+
			"one here: run qmigrate on its host", s.holder.Endpoint.Name)
	}
	found := s.holder.Facts
	var err error
	if found.Schema, found.SchemaKnown, err = s.run.Opts.Schemas.Schema(ctx, s.holder.Control); err != nil {
		return fmt.Errorf("inspect %s: %w", s.holder.Endpoint.Name, err)
	}
	q := &s.run.Rec.QEMU
	q.Accelerator, q.Machine, q.MemoryBytes, q.VCPUs = found.Accelerator, found.Machine, found.MemoryBytes, found.VCPUs
	return nil
}

// takesFiles tells by introspection whether this QEMU has file: addresses (8.2+). An older one is handed a descriptor.
func (s *filing) takesFiles() bool {
	return slices.Contains(s.holder.Facts.Schema.Enum("migrate", "channels.addr.transport"), "file")
}

// options adds the file's capabilities and parameters to the plan and has the whole checked against this QEMU.
func (s *filing) options() error {
	found, f := s.holder.Facts, s.file
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
		return &plan.UnsupportedError{Feature: fmt.Sprintf("format mapped-ram on %s (QEMU %s)", found.Name, found.Version),
			Have: "QEMU 9.0 and newer have it; this one has format stream"}
	}
	if _, have := found.Parameters["direct-io"]; f.DirectIO && !have {
		return &plan.UnsupportedError{Feature: fmt.Sprintf("direct-io on %s (QEMU %s)", found.Name, found.Version),
			Have: "QEMU 9.1 and newer have it"}
	}
	s.run.Plan.Capabilities = set(s.run.Plan.Capabilities, "mapped-ram", f.Format == MappedRAMFormat)
	s.run.Plan.Capabilities = set(s.run.Plan.Capabilities, "multifd", f.Channels > 0)
	s.run.Plan.Capabilities = set(s.run.Plan.Capabilities, "background-snapshot", f.Background)
	if s.run.Plan.Parameters == nil {
		s.run.Plan.Parameters = map[string]string{}
	}
	if f.Channels > 0 {
		s.run.Plan.Parameters["multifd-channels"] = strconv.Itoa(f.Channels)
	}
	if f.DirectIO {
		s.run.Plan.Parameters["direct-io"] = "on"
	}
	if s.run.Plan.Channels = plan.FormChannels; !s.takesFiles() {
		s.run.Plan.Channels, s.run.Plan.Listen, s.run.Plan.Connect = plan.FormURI, "fd:qmigrate", "fd:qmigrate"
	}
	var err error
	if s.run.Parameters, err = fit.Resolve(s.run.Plan, found, found); err != nil {
		return err
	}
	return fit.FirstMismatch(fit.Rules(found, nil, s.run.Plan))
}

func diskNames(disks []qmp.BlockDevice) (names []string) {
	for _, d := range disks {
		names = append(names, cmp.Or(d.Inserted.File, d.Device, d.Path))
	}
	return names
}

// set configures the one QEMU and reads back what it has.
func (s *filing) set(ctx context.Context) (err error) {
	if err := s.run.Configure(ctx, s.holder); err != nil {
		return err
	}
	if s.run.Rec.Capabilities, err = s.holder.Control.QueryMigrateCapabilities(ctx); err != nil {
		return fmt.Errorf("read capabilities back: %w", err)
	}
	if s.run.Rec.Parameters, err = s.holder.Control.QueryMigrateParameters(ctx); err != nil {
		return fmt.Errorf("read parameters back: %w", err)
	}
	return nil
}

// limited is a context with the plan's time-out.
func (s *filing) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.run.Plan.Timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, s.run.Plan.Timeout, run.ErrTimeout)
}

// goOn runs the guest: on the source after it was saved, or on the destination. Nobody can cancel it.
func (s *filing) goOn(ctx context.Context) error {
	switch {
	case s.holder == s.run.Src && (!s.file.Continue || s.file.Background || !s.run.Src.Facts.Running || s.run.Held != ""),
		s.holder == s.run.Dst && s.file.Paused:
		return nil
	case s.holder == s.run.Src && s.run.Src.Gone != nil:
		return nil // Save says so
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), run.ActivateLimit)
	defer cancel()
	s.run.ContSent = true
	if err := s.holder.Control.Cont(ctx); err != nil {
		return fmt.Errorf("run the guest: %w", err)
	}
	before := s.holder.Stopped
	if err := s.run.Until(ctx, func() bool { return s.holder.Resumed.After(before) }); err != nil {
		return err
	}
	s.run.End(s.holder.Resumed)
	return nil
}

// reset switches off again what was switched on for the file: each would make the next migration something else.
func (s *filing) reset(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), run.AnswerLimit)
	defer cancel()
	if s.holder.Control == nil || s.holder.Control.Err() != nil {
		return
	}
	off := map[string]bool{}
	for name, on := range s.run.Plan.Capabilities {
		if on {
			off[name] = false
		}
	}
	err := s.holder.Control.SetMigrateCapabilities(ctx, off)
	if s.file.DirectIO {
		err = errors.Join(err, s.holder.Control.SetMigrateParameters(ctx, map[string]any{"direct-io": false}))
	}
	if err != nil {
		s.run.Rec.Warn("%s could not be set back to what it was: %v", s.holder.Endpoint.Name, err)
	}
}

// describe says in what state the guest is left.
func (s *filing) describe(ctx context.Context, on *run.Side) {
	if status, err := on.Asked(context.WithoutCancel(ctx)); err == nil {
		on.RunState = status.Status
		s.run.Rec.Saved.RunState = status.Status
	}
}

// figured leaves out of the record what has no meaning for a file: there is no other side to have a downtime, and a
// background save has no passes.
func (s *filing) figured() *record.Migration {
	s.run.Rec.Downtime = record.Downtime{}
	if s.run.Rec.Outcome == record.Recovered && s.run.Rec.Mode == record.SaveMode {
		s.run.Rec.Outcome = record.Failed // the guest is where it was; it is the save that failed
	}
	if s.file.Background {
		s.run.Rec.Passes = []record.Pass{}
	}
	return s.run.Rec
}
