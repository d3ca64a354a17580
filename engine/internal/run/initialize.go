package run

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/qmp"
)

// SettleSource waits for what ends by itself on the source. What the source said before that is asked again.
func (r *Run) SettleSource(ctx context.Context) error {
	return r.AwaitEnd(ctx, func() []fit.Finding {
		if _, may := fit.MayBegin(r.Src.Facts, r.Dst.Facts); !may {
			return nil
		}
		return fit.Conditions(r.Src.Facts, r.Dst.Facts, r.Plan)
	})
}

// AwaitEnd waits for the end of what is found and ends by itself.
func (r *Run) AwaitEnd(ctx context.Context, found func() []fit.Finding) error {
	waits := func() bool {
		return slices.ContainsFunc(found(), func(f fit.Finding) bool { return f.Answer == fit.Wait })
	}
	for begun := time.Now(); waits() && time.Since(begun) < waitForEnd; {
		select {
		case <-time.After(lookPause):
		case <-ctx.Done():
			return r.Cause(ctx)
		}
		f, err := facts.Read(ctx, r.Src.Control, r.Src.Endpoint.Name)
		if err != nil {
			return fmt.Errorf("inspect source %s: %w", r.Src.Endpoint.Name, err)
		}
		f.Schema, f.SchemaKnown = r.Src.Facts.Schema, r.Src.Facts.SchemaKnown
		r.Src.learn(f)
	}
	return nil
}

// Compare refuses a pair that will not do, by this plan, and notes what only might matter. What few plans and pairs
// need is asked for here.
func (r *Run) Compare(ctx context.Context) error {
	src, dst := r.Src.Facts, r.Dst.Facts
	r.Rec.Hosts.Source, r.Rec.Hosts.Destination = r.Src.Endpoint.Host, r.Dst.Endpoint.Host // known since they were reached
	both := func(read func(context.Context, *qmp.Conn, *facts.Facts) error) error {
		return facts.Together(ctx, func(ctx context.Context) error { return read(ctx, r.Src.Control, src) },
			func(ctx context.Context) error { return read(ctx, r.Dst.Control, dst) })
	}
	if r.Plan.Capabilities["x-ignore-shared"] {
		if err := both(facts.ReadBackends); err != nil {
			return fmt.Errorf("ask for memory backends: %w", err)
		}
	}
	if src.Machine != dst.Machine {
		if err := both(facts.ReadMachineTypes); err != nil {
			return fmt.Errorf("ask for machine types: %w", err)
		}
	}
	if !fit.SameModel(src.CPU, dst.CPU) {
		if err := both(facts.ReadIdentity); err != nil {
			return fmt.Errorf("ask for CPU models: %w", err)
		}
	}
	for i, d := range src.Disks {
		src.Disks[i].Mirrored = slices.Contains(r.Plan.Mirror.Nodes, d.Node)
	}
	exports, err := facts.ReadExports(ctx, r.Src.Control)
	if err != nil {
		return fmt.Errorf("ask source %s for its exports: %w", r.Src.Endpoint.Name, err)
	}
	refusals, doubts := fit.Compare(src, dst, r.Plan)
	switch len(refusals) {
	case 0:
	case 1:
		return refusals[0]
	default:
		return fmt.Errorf("%w (and %d more: see `qmigrate caps`)", refusals[0], len(refusals)-1)
	}
	for _, d := range doubts {
		r.Rec.Warn("%s", d)
	}
	if len(exports) > 0 {
		r.Rec.Warn("the source exports disks, and exports do not move with the guest: %s: start them on the destination "+
			"(nbd-server-start, block-export-add) and let their clients connect there", strings.Join(exports, ", "))
	}
	return nil
}

// Doubts warns of parameters that QEMU took and did not keep (7.2 with multifd's levels), and of figures that do not
// mean what they say.
func (r *Run) Doubts() {
	for _, name := range slices.Sorted(maps.Keys(r.Parameters)) {
		if got, ok := r.Rec.Parameters[name]; ok && fmt.Sprint(got) != fmt.Sprint(r.Parameters[name]) {
			r.Rec.Warn("parameter %s was set to %v and is %v: QEMU %s took it and did not keep it", name, r.Parameters[name],
				got, r.Src.Facts.Version)
		}
	}
	// migration/multifd.c, multifd_send_pages, of 7.2; 10.0 counts what is written.
	if method := r.Rec.Parameters["multifd-compression"]; r.Rec.Capabilities["multifd"] && method != "none" && r.Src.Facts.Before(8, 0) {
		r.Rec.Warn("source QEMU %s counts multifd's pages before it compresses them: the bytes and rates are not those on "+
			"the wire, and max-bandwidth bounds the former", r.Src.Facts.Version)
	}
}

// Describe notes what the two QEMUs are.
func (r *Run) Describe() {
	q, src := &r.Rec.QEMU, r.Src.Facts
	if q.SourceVersion = src.Version; r.Dst.Facts != nil {
		q.DestinationVersion = r.Dst.Facts.Version
	}
	q.Accelerator, q.Machine, q.MemoryBytes, q.VCPUs = src.Accelerator, src.Machine, src.MemoryBytes, src.VCPUs
	for _, warning := range fit.UnsafeSource(src) {
		r.Rec.Warn("%s", warning)
	}
}

// ReadBack notes the source's capabilities and parameters.
func (r *Run) ReadBack(ctx context.Context) (err error) {
	if r.Rec.Capabilities, err = r.Src.Control.QueryMigrateCapabilities(ctx); err != nil {
		return fmt.Errorf("read capabilities back: %w", err)
	}
	if r.Rec.Parameters, err = r.Src.Control.QueryMigrateParameters(ctx); err != nil {
		return fmt.Errorf("read parameters back: %w", err)
	}
	return nil
}

// OpenBoth opens the two sides at the same time. If one cannot be reached, the other may hold, paused, what an
// interrupted migration left; a destination that does not answer is then not waited for.
func (r *Run) OpenBoth(ctx context.Context) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	var both sync.WaitGroup
	var srcErr, dstErr error
	both.Go(func() {
		if srcErr = r.Src.Open(ctx, r.Opts); srcErr != nil {
			time.AfterFunc(AnswerLimit, cancel)
		}
	})
	both.Go(func() { dstErr = r.Dst.Open(waiting, r.Opts) })
	both.Wait()
	const mend = "%w; %s holds a guest and does not run it (%s): if an interrupted migration left it so, `qmigrate " +
		"migrate --recover` with the same endpoints runs it where that is safe"
	switch {
	case srcErr != nil && dstErr == nil && r.Dst.Facts.MigrationStatus == "completed" && !r.Dst.Facts.Running:
		return fmt.Errorf(mend, srcErr, "destination "+r.Dst.Endpoint.Name, r.Dst.Facts.RunState)
	case srcErr == nil && dstErr != nil && !r.Src.Facts.Running && r.Src.Facts.RunState != "inmigrate":
		return fmt.Errorf(mend, dstErr, "source "+r.Src.Endpoint.Name, r.Src.Facts.RunState)
	}
	return cmp.Or(srcErr, dstErr)
}

// Introspect reads the schemas that a plan with parameters is checked against. A QEMU whose schema is not known is busy
// with the answer for some 40 ms (7.2, 10.0), in which its guest's devices wait. So it is asked for only when it is
// needed, and a source that is the destination's twin is not asked.
func (r *Run) Introspect(ctx context.Context) error {
	if len(r.Plan.Parameters) == 0 && r.Plan.Channels == plan.FormURI {
		return nil
	}
	read := func(s *Side) (err error) {
		if s.Facts.Schema, s.Facts.SchemaKnown, err = r.Opts.Schemas.Schema(ctx, s.Control); err != nil {
			return fmt.Errorf("inspect %s %s: %w", s.Role, s.Endpoint.Name, err)
		}
		return nil
	}
	if r.Src.Facts.Twin(r.Dst.Facts) {
		err := read(r.Dst)
		r.Src.Facts.Schema, r.Src.Facts.SchemaKnown = r.Dst.Facts.Schema, r.Dst.Facts.SchemaKnown
		return err
	}
	var both sync.WaitGroup
	var srcErr, dstErr error
	both.Go(func() { srcErr = read(r.Src) })
	both.Go(func() { dstErr = read(r.Dst) })
	both.Wait()
	return cmp.Or(srcErr, dstErr)
}

// Configure sets one side's capabilities, those left on by somebody included, and its parameters.
func (r *Run) Configure(ctx context.Context, s *Side) error {
	want := map[string]bool{"events": true}
	for name, on := range s.Facts.Capabilities {
		if on && name != "events" {
			want[name] = false
		}
	}
	for name, on := range r.Plan.Capabilities {
		want[name] = on
	}
	if s == r.Dst && r.faultTimes() {
		want[blocktime] = true
	}
	if err := s.Control.SetMigrateCapabilities(ctx, want); err != nil {
		return fmt.Errorf("set %s capabilities: %w", s.Role, err)
	}
	if err := s.Control.SetMigrateParameters(ctx, r.parametersOf(s)); err != nil {
		return fmt.Errorf("set %s parameters: %w", s.Role, err)
	}
	return nil
}

// blocktime is the capability by which a destination counts how long page requests of post-copy took.
const blocktime = "postcopy-blocktime"

// faultTimes tells whether the destination is to count how long page requests took: if the migration may go over to
// post-copy, unless the plan says otherwise. QEMU counts by vCPU in tables of -smp's length, and writes behind them for
// one that was plugged in (migration/postcopy-ram.c, blocktime_context_new; read in 7.2 to 11.1).
func (r *Run) faultTimes() bool {
	if on, asked := r.Plan.Capabilities[blocktime]; asked {
		return on
	}
	_, has := r.Dst.Facts.Capabilities[blocktime]
	return has && r.Plan.Capabilities["postcopy-ram"] && !r.Dst.Facts.Plugged
}

// waitForEnd is how long a migration waits for something on the source that ends by itself.
const waitForEnd = 10 * time.Second

// Unsettable are those that "" unsets. An empty tls-authz means that nobody is let in, and null, which the schema
// allows, trips an assertion in 7.2 (migrate_params_apply): so that one is touched only on a destination for which it
// was asked.
var Unsettable = plan.TlsParameters[:2]

// parametersOf are the plan's parameters and those that name one side's credentials. What a killed run of ours left is
// unset, and so is a mode in which `migrate` is something else than a move.
func (r *Run) parametersOf(s *Side) map[string]any {
	all := maps.Clone(r.Parameters)
	if mode := s.Facts.Parameters["mode"]; mode != nil && mode != "normal" && all["mode"] == nil {
		all["mode"] = "normal"
	}
	switch {
	case r.Plan.TLS != nil:
		maps.Copy(all, r.Plan.TLS.Parameters(s.Role))
	case s.Facts.Parameters["tls-creds"] == plan.CredsID:
		if _, set := all["tls-creds"]; !set {
			for _, name := range Unsettable {
				all[name] = ""
			}
		}
	}
	return all
}
