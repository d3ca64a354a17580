package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record"
	"qmigrate/internal/near"
	"qmigrate/qmp"
)

// Facts is what one QEMU says about itself; reading them changes nothing.
type Facts struct {
	Name            string // of the endpoint
	Version         string // 10.0.2, with the package's name where QEMU tells one
	Major, Minor    int
	RunState        string // query-status: running, paused, inmigrate, postmigrate, ...
	Running         bool
	Machine         string // the versioned type: pc-q35-7.2
	MemoryBytes     int64
	VCPUs           int
	Accelerator     string // kvm or tcg
	Capabilities    map[string]bool
	Parameters      map[string]any // in QEMU's names and units
	Blockers        []string       // why QEMU says that it cannot migrate
	MigrationStatus string         // query-migrate: none, active, completed, ...
	Chardevs        []string       // the character devices' addresses: two monitors with the same ones are one QEMU
	Schema          *qmp.Schema    // nil if it was not needed
	SchemaKnown     bool           // the introspection came from the cache

	// What of the machine a stream depends on, or a guest sees; nil where this QEMU does not tell.
	Devices        []Device
	RAM            []RAMBlock
	Disks          []Disk
	Netdevs        map[string]string // the network backends: name and type (tap, user, ...); nil: not asked for, see readNetwork
	CPU            CPU
	Topology       map[string]int64 // sockets, dies, cores, threads, maxcpus, ...
	MemorySlots    int64            // for memory that is plugged in later
	MaxMemoryBytes int64            // with that; 0: none can be
	Backends       []Backend        // nil: not asked for, see readBackends
	BaseBytes      int64            // MemoryBytes without MemoryDevices
	MemoryDevices  []MemoryDevice   // what was plugged in
	MachineTypes   []string         // those of QEMU's binary; nil: not asked for, see readMachineTypes
	UUID           string           // the guest's; "" if it has none
	Jobs           []Job            // block jobs, those of our mirrors excepted

	dumps      bool              // dump-guest-memory is at work
	scripts    map[string]string // the network backends that a script sets up, and the script
	sent       bool              // query-migrate spoke of a migration from here: it had a section ram
	mirrors    []string          // our mirror jobs that it has
	here       bool              // the process is known, so it runs on this machine
	memoryLock *int64            // what QEMU's process may lock, in bytes; nil: all, or it is not known
	vcpuThread int               // the first vCPU's thread, as QEMU's host numbers it; 0: QEMU names none
}

// Inspect opens the endpoint's control monitor, reads the facts and lets it go.
func Inspect(ctx context.Context, ep *Endpoint, o Options) (*Facts, error) {
	conn, err := connect(ctx, ep, o)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	f, err := inspect(ctx, conn, ep.Name)
	err = ep.because(err, nil)
	if err == nil {
		f.Schema, f.SchemaKnown, err = o.Schemas.Schema(ctx, conn)
	}
	if err == nil {
		err = together(ctx, func(ctx context.Context) error { return readBackends(ctx, conn, f) },
			func(ctx context.Context) error { return readIdentity(ctx, conn, f) },
			func(ctx context.Context) error { return readMachineTypes(ctx, conn, f) })
	}
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", ep.Name, err)
	}
	f.here = ep.Process != nil && (&side{ep: ep, facts: f}).proved()
	if f.here {
		readOpened(ep, f.Disks)
	}
	return f, nil
}

// connect opens an endpoint's control monitor for some questions.
func connect(ctx context.Context, ep *Endpoint, o Options) (*qmp.Conn, error) {
	return ep.talk(ctx, ep.Control, "", qmp.Options{Logger: o.Logger})
}

// talk opens one monitor of the endpoint; role is for the error.
func (ep *Endpoint) talk(ctx context.Context, d Dialer, role record.Holder, o qmp.Options) (conn *qmp.Conn, err error) {
	err = ep.greet(ctx, d, role, func(ctx context.Context, nc net.Conn) error {
		conn, err = qmp.NewConn(ctx, nc, o)
		return err
	})
	return conn, err
}

// greet dials a monitor and has greeted wait for its greeting; role is for the error.
func (ep *Endpoint) greet(ctx context.Context, d Dialer, role record.Holder,
	greeted func(context.Context, net.Conn) error) error {
	name := strings.TrimPrefix(string(role)+" "+ep.Name, " ")
	nc, err := d(ctx)
	if err != nil {
		return fmt.Errorf("reach %s: %w", name, err)
	}
	limited, cancel := context.WithTimeout(ctx, greetLimit)
	defer cancel()
	if err = ep.because(greeted(limited, nc), nc); err != nil {
		return fmt.Errorf("talk to %s: %w", name, err)
	}
	return nil
}

// because puts the reason that the endpoint's host knows in the place of an answer that did not come; nc: see
// Explainer.
func (ep *Endpoint) because(err error, nc net.Conn) error {
	if x, ok := ep.Process.(Explainer); ok && errors.Is(err, context.DeadlineExceeded) {
		if why := x.WhyMute(nc); why != "" {
			return &explained{why, err}
		}
	}
	return err
}

// explained is an error with better words than its own.
type explained struct {
	why string
	err error
}

func (e *explained) Error() string { return e.why }
func (e *explained) Unwrap() error { return e.err }

// greetLimit is how long a monitor that was reached may take to greet: one that hangs, or serves another client, never
// does.
const greetLimit = 5 * time.Second

// inspectLimit is how long a QEMU may take over all these questions together: some milliseconds are usual, and one that was
// stopped, or whose main loop is stuck, never answers.
const inspectLimit = 10 * time.Second

// inspect reads the facts but for the schema, which is not always needed and takes longer than all others.
func inspect(ctx context.Context, c *qmp.Conn, name string) (*Facts, error) {
	limited, cancel := context.WithTimeout(ctx, inspectLimit)
	defer cancel()
	f, err := readFacts(limited, c, name)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: no answer within %s: is this QEMU stopped, or stuck?", err, inspectLimit)
	}
	if isRefusal(err) && strings.Contains(err.Error(), "only after machine initialization") {
		err = &explained{"QEMU was started with -preconfig and has no machine yet: `x-exit-preconfig` on its monitor makes it", err}
	}
	return f, err
}

func readFacts(ctx context.Context, c *qmp.Conn, name string) (*Facts, error) {
	v := c.Greeting().Version
	f := &Facts{Name: name, Version: fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro), Major: v.Major, Minor: v.Minor, Accelerator: "tcg"}
	if v.Package != "" {
		f.Version += " (" + v.Package + ")"
	}
	err := together(ctx, func(ctx context.Context) error {
		status, err := c.QueryStatus(ctx)
		f.RunState, f.Running = status.Status, status.Running
		return err
	}, func(ctx context.Context) (err error) {
		f.Machine, err = c.MachineType(ctx)
		return err
	}, func(ctx context.Context) error { return readMemory(ctx, c, f) }, func(ctx context.Context) error {
		cpus, err := c.CPUs(ctx)
		if f.VCPUs = len(cpus); err != nil || f.VCPUs == 0 {
			return err
		}
		f.vcpuThread, f.CPU.path = cpus[0].Thread, cpus[0].Path
		return readFeatures(ctx, c, f)
	}, func(ctx context.Context) error {
		kvm, err := c.KVM(ctx)
		if kvm {
			f.Accelerator = "kvm"
		}
		return err
	}, func(ctx context.Context) (err error) {
		f.Capabilities, err = c.QueryMigrateCapabilities(ctx)
		return err
	}, func(ctx context.Context) (err error) {
		f.Parameters, err = c.QueryMigrateParameters(ctx)
		return err
	}, func(ctx context.Context) error {
		info, err := c.QueryMigrate(ctx)
		if err != nil {
			return err
		}
		f.MigrationStatus, f.Blockers = info.Status, info.BlockedReasons
		f.sent = info.Has.Contains(qmp.FieldTransferred)
		if idle(f.MigrationStatus) && len(info.SocketAddress) > 0 {
			f.MigrationStatus = "setup" // it listens, for which 7.2 has no status
		}
		return nil
	}, func(ctx context.Context) (err error) {
		f.Chardevs, err = chardevs(ctx, c)
		return err
	}, func(ctx context.Context) (err error) {
		f.mirrors, f.Jobs, err = blockJobs(ctx, c)
		return err
	}, func(ctx context.Context) error {
		var dump struct{ Status string }
		err := c.Execute(ctx, "query-dump", nil, &dump)
		f.dumps = dump.Status == "active"
		return optional(err)
	}, func(ctx context.Context) (err error) {
		f.UUID, err = readUUID(ctx, c)
		return optional(err)
	}, func(ctx context.Context) error { return readNetwork(ctx, c, f) },
		func(ctx context.Context) error { return readMachine(ctx, c, f) })
	var refused *qmp.CommandError
	if errors.As(err, &refused) && strings.Contains(refused.Desc, "machine initialization has completed") {
		err = fmt.Errorf("this QEMU was started with -preconfig and has no machine yet: send it x-exit-preconfig (%w)", err)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// chardevs are the addresses of the character devices.
func chardevs(ctx context.Context, c *qmp.Conn) ([]string, error) {
	var list []chardev
	if err := c.Execute(ctx, "query-chardev", nil, &list); err != nil {
		return nil, err
	}
	return addresses(list), nil
}

// chardev is one of query-chardev's.
type chardev struct {
	Label    string `json:"label"`
	Filename string `json:"filename"`
}

// addresses are those of sockets and terminals, without the state of their connections.
func addresses(list []chardev) (all []string) {
	for _, d := range list {
		address, _, _ := strings.Cut(strings.TrimPrefix(d.Filename, "disconnected:"), ",")
		if strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "tcp:") || strings.HasPrefix(address, "pty:") {
			all = append(all, d.Label+"="+address)
		}
	}
	slices.Sort(all)
	return all
}

// same tells whether two QEMUs are one. Two that have the same sockets may be on two hosts, or in two containers: then
// their vCPUs' threads differ, or one of them waits for the guest of the other.
func (f *Facts) same(g *Facts) bool {
	return len(f.Chardevs) > 0 && slices.Equal(f.Chardevs, g.Chardevs) && f.vcpuThread == g.vcpuThread &&
		f.RunState == g.RunState &&
		f.MigrationStatus == g.MigrationStatus
}

// twin tells whether two QEMUs are the same program, as far as they say: version, package and the names of what migration can do.
func (f *Facts) twin(g *Facts) bool {
	return f.Version == g.Version &&
		maps.EqualFunc(f.Capabilities, g.Capabilities, func(bool, bool) bool { return true }) &&
		maps.EqualFunc(f.Parameters, g.Parameters, func(any, any) bool { return true })
}

// before tells whether this QEMU is older than major.minor. It is for behaviours that introspection cannot tell.
func (f *Facts) before(major, minor int) bool {
	return f.Major < major || f.Major == major && f.Minor < minor
}

// Mismatch is one reason why a pair cannot migrate, and what would mend it.
type Mismatch struct{ Problem, Mend string }

func (m Mismatch) Error() string {
	if m.Mend == "" {
		return m.Problem
	}
	return m.Problem + ": " + m.Mend
}

// Compare says everything that keeps a guest behind src from moving to dst.
func Compare(src, dst *Facts) []Mismatch {
	refusals, _ := compareMachines(src, dst)
	stops, _ := sortOut(Conditions(src, dst, Plan{}))
	return slices.Concat(compareStates(src, dst), stops, refusals)
}

// Doubts says what might go wrong with a pair that Compare lets pass.
func Doubts(src, dst *Facts) []Mismatch {
	_, doubts := compareMachines(src, dst)
	_, warnings := sortOut(Conditions(src, dst, Plan{}))
	return append(warnings, doubts...)
}

// sortOut parts the findings: those that keep a guest from moving, and those that are only said.
func sortOut(all []Finding) (refusals, doubts []Mismatch) {
	for _, f := range all {
		switch f.Answer {
		case Wait, Refuse:
			refusals = append(refusals, f.Mismatch)
		case Warn:
			doubts = append(doubts, f.Mismatch)
		}
	}
	return refusals, doubts
}

// compareStates finds a pair that is not source and destination, and machines that cannot be the same.
func compareStates(src, dst *Facts) (all []Mismatch) {
	add := func(problem, mend string, args ...any) {
		all = append(all, Mismatch{fmt.Sprintf(problem, args...), mend})
	}
	if m, ok := mayBegin(src, dst); !ok {
		all = append(all, m)
		if src.same(dst) {
			return all // nothing else can differ
		}
	}
	if src.Machine != dst.Machine {
		add("machine types differ: source %s, destination %s", machineMend(src, dst), src.Machine, dst.Machine)
	}
	if a, b := src.base(), dst.base(); a != b {
		mend := "start the destination with " + memoryOption(src)
		add("memory differs: source %d KiB, destination %d KiB", mend, a>>10, b>>10)
	}
	compareMemoryDevices(src, dst, func(problem, mend string) { all = append(all, Mismatch{problem, mend}) })
	if src.VCPUs != dst.VCPUs {
		add("vCPUs differ: source %d, destination %d", "start the destination with "+smpOption(src), src.VCPUs, dst.VCPUs)
	}
	for _, reason := range src.Blockers {
		if !src.dumps { // it is waited for
			add("source cannot migrate: %s", blockerMend(reason), reason)
		}
	}
	return all
}

// machineMend is how two machine types become one. A QEMU has only so many.
func machineMend(src, dst *Facts) string {
	if len(dst.MachineTypes) == 0 || slices.Contains(dst.MachineTypes, src.Machine) {
		return "start the destination with -machine " + src.Machine
	}
	mend := fmt.Sprintf("destination QEMU %s has no %s: use a QEMU there that has it", dst.Version, src.Machine)
	family := src.Machine[:strings.LastIndex(src.Machine, "-")+1] // pc-q35- of pc-q35-7.2
	var common []string
	for _, name := range dst.MachineTypes {
		same := family != "" && strings.HasPrefix(name, family)
		if same && slices.Contains(src.MachineTypes, name) && !slices.Contains(common, name) {
			common = append(common, name)
		}
	}
	if len(common) > 0 {
		slices.Sort(common)
		mend += ", or start the guest anew with a machine type that both have (" + list(common) + ")"
	}
	return mend
}

// blockerMend is what to do about a reason of QEMU's for not migrating.
func blockerMend(reason string) string {
	switch has := func(words string) bool { return strings.Contains(reason, words) }; {
	case has("VirtFS"):
		return "unmount the share in the guest"
	case has("non-migratable CPU"):
		return "start the guest anew without the CPU flag that QEMU names"
	case has("non-migratable device"):
		return "unplug that device (device_del) if it can be, or start the guest anew without it"
	case has("format used by node"):
		return "convert the image, or copy it to one of format raw or qcow2 while the guest runs " +
			"(blockdev-mirror, job-complete)"
	}
	return "undo what QEMU names"
}

// unsafeSource says in what way this source is known to lose memory.
func unsafeSource(f *Facts) []string {
	if f.Accelerator != "tcg" || !f.before(9, 0) {
		return nil
	}
	if f.MemoryBytes%(256<<10) == 0 {
		return []string{fmt.Sprintf("source QEMU %s under TCG loses dirty pages when RAM is a multiple of 256 KiB, as here (fixed upstream in 9.0, commit 03bfc2188f): the guest on the destination may be corrupt; use QEMU >= 9.0 or RAM such as %dk", f.Version, f.MemoryBytes>>10+8)}
	}
	return []string{fmt.Sprintf("source QEMU %s under TCG: this RAM is not a multiple of 256 KiB, which avoids its loss of dirty pages but stalls the guest when migration starts", f.Version)}
}

// check refuses what needs no QEMU to be refused.
func (p Plan) check() error {
	switch {
	case !slices.Contains([]record.Mode{record.PreCopyMode, record.StopAndCopyMode, record.PostCopyMode, record.HybridMode}, p.Mode):
		return &UnsupportedError{fmt.Sprintf("mode %q", p.Mode), fmt.Sprintf("have %s, %s, %s, %s", record.PreCopyMode, record.StopAndCopyMode, record.PostCopyMode, record.HybridMode)}
	case p.postCopies() && !p.Capabilities["postcopy-ram"]:
		return fmt.Errorf("mode %s needs the capability postcopy-ram: leave out --capability postcopy-ram=off", p.Mode)
	case p.SwitchAfter != (SwitchAfter{}) && p.Mode != record.HybridMode:
		return fmt.Errorf("--switch-after is for mode %s, this one is %s", record.HybridMode, p.Mode)
	case p.Channels != FormURI && p.Channels != FormChannels:
		return fmt.Errorf("channels %q: have %s, %s", p.Channels, FormURI, FormChannels)
	case p.DowntimeLimit < time.Millisecond || p.DowntimeLimit > maxDowntimeLimit || p.DowntimeLimit%time.Millisecond != 0:
		return fmt.Errorf("downtime-limit %s: QEMU takes whole milliseconds from 1ms to 2000s", p.DowntimeLimit)
	}
	if err := p.checkMirror(); err != nil {
		return err
	}
	for _, name := range []string{"x-colo", "background-snapshot", "mapped-ram"} {
		if p.Capabilities[name] {
			return &UnsupportedError{"capability " + name, "it makes `migrate` something else than a move of a running guest, which is what mode " + string(p.Mode) + " does"}
		}
	}
	if on, set := p.Capabilities["events"]; set && !on {
		return fmt.Errorf("capability events=off: qmigrate times the stages by MIGRATION events and needs them")
	}
	for flag, name := range map[string]string{"--max-bandwidth": "max-bandwidth", "--downtime-limit": "downtime-limit"} {
		if _, set := p.Parameters[name]; set {
			return fmt.Errorf("parameter %s: give it as %s, with its unit", name, flag)
		}
	}
	if p.TLS != nil {
		return p.TLS.check(p)
	}
	return nil
}

// resolve checks the capabilities and parameters against what both sides have, and turns the parameters' words into the types
// that QEMU's introspection names; without parameters no schema is needed.
func (p Plan) resolve(src, dst *Facts) (map[string]any, error) {
	out := map[string]any{
		"max-bandwidth":  p.MaxBandwidth,
		"downtime-limit": p.DowntimeLimit.Milliseconds(),
	}
	for _, f := range []*Facts{src, dst} {
		for _, name := range slices.Sorted(maps.Keys(p.Capabilities)) {
			if _, ok := f.Capabilities[name]; !ok {
				return nil, &UnsupportedError{fmt.Sprintf("capability %s on %s (QEMU %s)", name, f.Name, f.Version),
					near.Hint(name, slices.Sorted(maps.Keys(f.Capabilities)))}
			}
		}
		if len(p.Parameters) == 0 {
			continue
		}
		members := map[string]qmp.Member{}
		for _, member := range f.Schema.MigrationParameters() {
			members[member.Name] = member
		}
		for _, name := range slices.Sorted(maps.Keys(p.Parameters)) {
			member, ok := members[name]
			if !ok {
				return nil, &UnsupportedError{fmt.Sprintf("parameter %s on %s (QEMU %s)", name, f.Name, f.Version),
					near.Hint(name, slices.Sorted(maps.Keys(members)))}
			}
			value, err := typed(member, p.Parameters[name])
			if err != nil {
				return nil, fmt.Errorf("parameter %s on %s: %w", name, f.Name, err)
			}
			out[name] = value
		}
	}
	return out, nil
}

// typed reads a parameter's value as the introspection says it is.
func typed(m qmp.Member, text string) (any, error) {
	switch {
	case len(m.Enum) > 0:
		if !slices.Contains(m.Enum, text) {
			return nil, fmt.Errorf("%q is not one of %s", text, strings.Join(m.Enum, ", "))
		}
		return text, nil
	case m.Type == "boolean" || m.Type == "bool":
		switch text {
		case "on", "true":
			return true, nil
		case "off", "false":
			return false, nil
		}
		return nil, fmt.Errorf("%q is neither on nor off", text)
	case m.Type == "int" || m.Type == "number":
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number in QEMU's unit", text)
		}
		return n, nil
	}
	return text, nil
}
