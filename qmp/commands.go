package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Status is a QEMU's run state.
type Status struct {
	Status  string `json:"status"` // running, paused, inmigrate, postmigrate, prelaunch, ...; an unknown one is kept
	Running bool   `json:"running"`
}

// QueryStatus asks for the run state.
func (c *Conn) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	err := c.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// QueryMigrate asks for the state of the migration; before the first one nothing in the answer is set.
func (c *Conn) QueryMigrate(ctx context.Context) (*MigrationInfo, error) {
	var r migrationReply
	if err := c.Execute(ctx, "query-migrate", nil, &r); err != nil {
		return nil, err
	}
	return &r.info, nil
}

type capability struct {
	Capability string `json:"capability"`
	State      bool   `json:"state"`
}

// QueryMigrateCapabilities reads all migration capabilities back.
func (c *Conn) QueryMigrateCapabilities(ctx context.Context) (map[string]bool, error) {
	var list []capability
	if err := c.Execute(ctx, "query-migrate-capabilities", nil, &list); err != nil {
		return nil, err
	}
	m := make(map[string]bool, len(list))
	for _, e := range list {
		m[e.Capability] = e.State
	}
	return m, nil
}

// SetMigrateCapabilities sets the capabilities given, in one command and the order of their names, and leaves the
// others.
func (c *Conn) SetMigrateCapabilities(ctx context.Context, set map[string]bool) error {
	list := make([]capability, 0, len(set))
	for _, name := range slices.Sorted(maps.Keys(set)) {
		list = append(list, capability{name, set[name]})
	}
	return c.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": list}, nil)
}

// parameters keeps QEMU's numbers whole: an integer is int64 and not float64, at any depth.
type parameters map[string]any

func (p *parameters) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return err
	}
	for name, v := range m {
		m[name] = plain(v)
	}
	*p = m
	return nil
}

// plain replaces every json.Number in v: by an int64 if it is one, else a float64, else its text.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		if f, err := v.Float64(); err == nil {
			return f
		}
		return v.String()
	case map[string]any:
		for name, e := range v {
			v[name] = plain(e)
		}
	case []any:
		for i, e := range v {
			v[i] = plain(e)
		}
	}
	return v
}

// QueryMigrateParameters reads all migration parameters back, in QEMU's names and units: bool, int64, string, float64,
// and for a nested one (block-bitmap-mapping) []any and map[string]any.
func (c *Conn) QueryMigrateParameters(ctx context.Context) (map[string]any, error) {
	var p parameters
	err := c.Execute(ctx, "query-migrate-parameters", nil, &p)
	return p, err
}

// SetMigrateParameters sets the parameters given, in QEMU's names and units, and leaves the others. A Go number becomes
// a JSON number, a string stays a string.
func (c *Conn) SetMigrateParameters(ctx context.Context, set map[string]any) error {
	for name, v := range set {
		if d, ok := v.(time.Duration); ok {
			return fmt.Errorf("set migration parameter %s: %v has a Go unit: give the number in QEMU's", name, d)
		}
	}
	return c.Execute(ctx, "migrate-set-parameters", set, nil)
}

type uriArgument struct {
	URI string `json:"uri"`
}

// Migrate starts a migration to uri: tcp:HOST:PORT, unix:PATH, fd:NAME, exec:COMMAND. QEMU answers when it has started,
// and MIGRATION events may come before the answer.
func (c *Conn) Migrate(ctx context.Context, uri string) error {
	return c.Execute(ctx, "migrate", uriArgument{uri}, nil)
}

// MigrateIncoming makes a QEMU that was started with -incoming defer listen at uri.
func (c *Conn) MigrateIncoming(ctx context.Context, uri string) error {
	return c.Execute(ctx, "migrate-incoming", uriArgument{uri}, nil)
}

// MigrateCancel asks the source to give up. It is no error when no migration runs.
func (c *Conn) MigrateCancel(ctx context.Context) error {
	return c.Execute(ctx, "migrate_cancel", nil, nil)
}

// MigrateContinue lets a migration go on that waits in the state given, such as pre-switchover.
func (c *Conn) MigrateContinue(ctx context.Context, state string) error {
	return c.Execute(ctx, "migrate-continue", map[string]string{"state": state}, nil)
}

// Stop stops the guest's CPUs.
func (c *Conn) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Cont runs the guest's CPUs. In an incoming QEMU it means: when the migration has arrived.
func (c *Conn) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Quit ends the QEMU process. One that ends before it answers has obeyed too.
func (c *Conn) Quit(ctx context.Context) error {
	err := c.Execute(ctx, "quit", nil, nil)
	if errors.Is(err, ErrDisconnected) {
		return nil
	}
	return err
}

// MachineType is the guest's machine as -machine names it, with its version: pc-q35-7.2.
func (c *Conn) MachineType(ctx context.Context) (string, error) {
	var s string
	err := c.Execute(ctx, "qom-get", map[string]string{"path": "/machine", "property": "type"}, &s)
	return strings.TrimSuffix(s, "-machine"), err
}

// MemorySize is the guest's memory in bytes: what it started with and what has been plugged since.
func (c *Conn) MemorySize(ctx context.Context) (int64, error) {
	var m struct {
		Base    int64 `json:"base-memory"`
		Plugged int64 `json:"plugged-memory"`
	}
	err := c.Execute(ctx, "query-memory-size-summary", nil, &m)
	return m.Base + m.Plugged, err
}

// CPU is one of the guest's CPUs. Source: qapi/machine.json, CpuInfoFast.
type CPU struct {
	Index  int    `json:"cpu-index"`
	Thread int    `json:"thread-id"` // of the thread that runs it, as QEMU's host numbers it
	Path   string `json:"qom-path"`  // in QEMU's tree of objects
}

// CPUs lists the guest's CPUs.
func (c *Conn) CPUs(ctx context.Context) ([]CPU, error) {
	var list []CPU
	err := c.Execute(ctx, "query-cpus-fast", nil, &list)
	return list, err
}

// KVM says whether the guest runs under KVM.
func (c *Conn) KVM(ctx context.Context) (bool, error) {
	var k struct {
		Enabled bool `json:"enabled"`
	}
	err := c.Execute(ctx, "query-kvm", nil, &k)
	return k.Enabled, err
}

// Blockers are QEMU's reasons why it would refuse to migrate now; none if it would not.
func (c *Conn) Blockers(ctx context.Context) ([]string, error) {
	m, err := c.QueryMigrate(ctx)
	if err != nil {
		return nil, err
	}
	return m.BlockedReasons, nil
}

// TraceEvent is one of QEMU's trace events. Source: qapi/trace.json, TraceEventInfo.
type TraceEvent struct {
	Name  string     `json:"name"`
	State TraceState `json:"state"`
}

// TraceState is whether a trace event is written out. A newer QEMU may have more states.
type TraceState string

// The states. One that is unavailable is not in this QEMU's code.
const (
	TraceUnavailable TraceState = "unavailable"
	TraceDisabled    TraceState = "disabled"
	TraceEnabled     TraceState = "enabled"
)

// TraceEvents are the trace events of a name, in which * stands for any text. A pattern that no event has gives none; a
// name without a * that QEMU does not know is refused.
func (c *Conn) TraceEvents(ctx context.Context, name string) ([]TraceEvent, error) {
	var list []TraceEvent
	err := c.Execute(ctx, TraceGet, map[string]string{"name": name}, &list)
	return list, err
}

// SetTraceEvent switches the trace events of a name on or off; * stands for any text. Those that are unavailable are
// left out.
func (c *Conn) SetTraceEvent(ctx context.Context, name string, on bool) error {
	return c.Execute(ctx, TraceSet, map[string]any{"name": name, "enable": on, "ignore-unavailable": true}, nil)
}

// The commands of TraceEvents and SetTraceEvent. A QEMU that was built without traces has neither (Schema.HasCommand).
const (
	TraceGet = "trace-event-get-state"
	TraceSet = "trace-event-set-state"
)
