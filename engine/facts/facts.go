package facts

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/holder"
	"qmigrate/engine/plan"
	"qmigrate/engine/tracing"
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
	Plugged         bool   // some of them are more than -smp gave the machine: -device or device_add brought them
	Accelerator     string // kvm or tcg
	Capabilities    map[string]bool
	Parameters      map[string]any // in QEMU's names and units
	Blockers        []string       // why QEMU says that it cannot migrate
	MigrationStatus string         // query-migrate: none, active, completed, ...
	Chardevs        []string       // the character devices' addresses: two monitors with the same ones are one QEMU
	Schema          *qmp.Schema    // nil if it was not needed
	SchemaKnown     bool           // the introspection came from the cache

	// What of the machine a stream depends on, or a guest sees; nil where this QEMU does not tell.
	Devices []Device
	RAM     []RAMBlock
	Disks   []Disk
	// the network backends: name and type (tap, user, ...); nil: not asked for, see readNetwork
	Netdevs        map[string]string
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

	Dumps      bool              // dump-guest-memory is at work
	Scripts    map[string]string // the network backends that a script sets up, and the script
	sent       bool              // query-migrate spoke of a migration from here: it had a section ram
	Mirrors    []string          // our mirror jobs that it has
	Where      endpoint.Where    // where it runs, as far as that is proved
	On         string            // the machine that it runs on, as Endpoint.Machine says; "": its process is not known
	MemoryLock *int64            // what QEMU's process may lock, in bytes; nil: all, or it is not known
	VCPUThread int               // the first vCPU's thread, as QEMU's host numbers it; 0: QEMU names none
}

// RestoreTraces switches off again what a qmigrate that has died had switched on of a QEMU's trace events. What cannot
// be is left to the next command, for nobody waits for it.
func RestoreTraces(ctx context.Context, c *qmp.Conn, ep *endpoint.Endpoint, o plan.Options) {
	if err := tracing.Notes(o.Traces).Restore(ctx, c, tracing.Who(ep)); err != nil && o.Logger != nil {
		o.Logger.Warn("restore trace events", "qemu", ep.Name, "err", err)
	}
}

// Inspect opens the endpoint's control monitor, reads the facts and lets it go.
func Inspect(ctx context.Context, ep *endpoint.Endpoint, o plan.Options) (*Facts, error) {
	conn, err := ep.Talk(ctx, ep.Control, "", qmp.Options{Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	f, err := Read(ctx, conn, ep.Name)
	err = ep.Because(err, nil)
	if err == nil {
		RestoreTraces(ctx, conn, ep, o)
	}
	if err == nil {
		f.Schema, f.SchemaKnown, err = o.Schemas.Schema(ctx, conn)
	}
	if err == nil {
		err = Together(ctx, func(ctx context.Context) error { return ReadBackends(ctx, conn, f) },
			func(ctx context.Context) error { return ReadIdentity(ctx, conn, f) },
			func(ctx context.Context) error { return ReadMachineTypes(ctx, conn, f) })
	}
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", ep.Name, err)
	}
	if f.Locate(ep); f.Found() {
		ReadOpened(ep, f.Disks)
	}
	return f, nil
}

// inspectLimit is how long a QEMU may take over all these questions together: some milliseconds are usual, and one that
// was stopped, or whose main loop is stuck, never answers.
const ReadLimit = 10 * time.Second

// inspect reads the facts but for the schema, which is not always needed and takes longer than all others.
func Read(ctx context.Context, c *qmp.Conn, name string) (*Facts, error) {
	limited, cancel := context.WithTimeout(ctx, ReadLimit)
	defer cancel()
	f, err := readFacts(limited, c, name)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: no answer within %s: is this QEMU stopped, or stuck?", err, ReadLimit)
	}
	if qmp.IsRefusal(err) && strings.Contains(err.Error(), "only after machine initialization") {
		err = endpoint.Explain("QEMU was started with -preconfig and has no machine yet: `x-exit-preconfig` on its monitor makes it", err)
	}
	return f, err
}

func readFacts(ctx context.Context, c *qmp.Conn, name string) (*Facts, error) {
	v := c.Greeting().Version
	f := &Facts{Name: name, Version: fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro), Major: v.Major, Minor: v.Minor,
		Accelerator: "tcg"}
	if v.Package != "" {
		f.Version += " (" + v.Package + ")"
	}
	err := Together(ctx, func(ctx context.Context) error {
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
		f.VCPUThread, f.CPU.path = cpus[0].Thread, cpus[0].Path
		f.Plugged = slices.ContainsFunc(cpus, func(c qmp.CPU) bool { return strings.HasPrefix(c.Path, "/machine/peripheral") })
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
		if Idle(f.MigrationStatus) && len(info.SocketAddress) > 0 {
			f.MigrationStatus = "setup" // it listens, for which 7.2 has no status
		}
		return nil
	}, func(ctx context.Context) (err error) {
		f.Chardevs, err = chardevs(ctx, c)
		return err
	}, func(ctx context.Context) (err error) {
		f.Mirrors, f.Jobs, err = BlockJobs(ctx, c)
		return err
	}, func(ctx context.Context) error {
		var dump struct{ Status string }
		err := c.Execute(ctx, "query-dump", nil, &dump)
		f.Dumps = dump.Status == "active"
		return Optional(err)
	}, func(ctx context.Context) (err error) {
		f.UUID, err = ReadUUID(ctx, c)
		return Optional(err)
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
	var list []Chardev
	if err := c.Execute(ctx, "query-chardev", nil, &list); err != nil {
		return nil, err
	}
	return ChardevAddresses(list), nil
}

// Chardev is one of query-chardev's.
type Chardev struct {
	Label    string `json:"label"`
	Filename string `json:"filename"`
}

// addresses are those of sockets and terminals, without the state of their connections.
func ChardevAddresses(list []Chardev) (all []string) {
	for _, d := range list {
		address, _, _ := strings.Cut(strings.TrimPrefix(d.Filename, "disconnected:"), ",")
		if strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "tcp:") || strings.HasPrefix(address, "pty:") {
			all = append(all, d.Label+"="+address)
		}
	}
	slices.Sort(all)
	return all
}

// Same tells whether two QEMUs are one. Two that have the same sockets may be on two hosts, or in two containers: then
// their vCPUs' threads differ, or one of them waits for the guest of the other.
func (f *Facts) Same(g *Facts) bool {
	return len(f.Chardevs) > 0 && slices.Equal(f.Chardevs, g.Chardevs) && f.VCPUThread == g.VCPUThread &&
		f.RunState == g.RunState &&
		f.MigrationStatus == g.MigrationStatus
}

// Twin tells whether two QEMUs are the same program, as far as they say: version, package and the names of what
// migration can do.
func (f *Facts) Twin(g *Facts) bool {
	return f.Version == g.Version &&
		maps.EqualFunc(f.Capabilities, g.Capabilities, func(bool, bool) bool { return true }) &&
		maps.EqualFunc(f.Parameters, g.Parameters, func(any, any) bool { return true })
}

// Before tells whether this QEMU is older than major.minor. It is for behaviours that introspection cannot tell.
func (f *Facts) Before(major, minor int) bool {
	return f.Major < major || f.Major == major && f.Minor < minor
}

// Proved tells whether the process is this QEMU: it has the vCPU threads that QEMU names. Who listens on a socket may
// also be a forwarder, or a manager that made the socket, and neither's death would be the guest's.
func (f *Facts) Proved(p endpoint.Process) bool {
	return p != nil && f.VCPUThread > 0 && p.HasThread(f.VCPUThread)
}

// Wakes tells whether this QEMU cannot keep a sleeping guest asleep, as 9.0 can. As a source it wakes the guest up at
// the switch-over (7.2: migration_completion). As a destination it does not start the clocks of a guest that arrives
// asleep: they stand still when the guest wakes up (seen on 7.2.22).
func (f *Facts) Wakes() bool { return f.Before(9, 0) }

// Live tells whether the guest goes on by itself: it runs, or sleeps (S3) and may wake up.
func (f *Facts) Live() bool { return f.Running || f.RunState == Asleep }

// Asleep is the run state of a guest in ACPI S3.
const Asleep = "suspended"

// Migration is what query-migrate says of this QEMU.
func (f *Facts) Migration() holder.Status {
	return holder.StatusOf(f.MigrationStatus, f.sent || f.RunState == string(holder.Post),
		f.RunState == string(holder.InMigrate))
}

// Idle tells whether there has been no migration at all.
func Idle(status string) bool { return status == "" || status == "none" }

// UnderWay tells whether this status of a source is one of a migration that goes on.
func UnderWay(status string) bool { return !holder.StatusOf(status, true, false).Final() }

// Jams tells whether this QEMU keeps its guest for ever if its connection breaks in the switch to post-copy. The
// failure is noted only for a migration that is in postcopy-active already, and it is in `device` then: finish-migrate
// never ends, and `cont` is refused (seen on 10.0.2, read in its postcopy_start; mended by 10.2).
func (f *Facts) Jams() bool { return !f.Before(9, 0) && f.Before(10, 2) }

// Together runs all at the same time and returns when all have ended: with the first error, which ends the others'
// context.
func Together(ctx context.Context, all ...func(context.Context) error) (first error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var once sync.Once
	var wait sync.WaitGroup
	for _, f := range all {
		wait.Go(func() {
			if err := f(ctx); err != nil {
				once.Do(func() { first = err })
				cancel()
			}
		})
	}
	wait.Wait()
	return first
}

// Here tells whether this QEMU is known to run on this machine.
func (f *Facts) Here() bool { return f.Where == endpoint.Here }

// Found tells whether its process is known.
func (f *Facts) Found() bool { return f.On != "" }

// Beside tells whether both are known to run on one machine, so that a file's number means the same file.
func (f *Facts) Beside(o *Facts) bool { return f.Found() && f.On == o.On }

// Locate finds out where this QEMU runs. A process that has its vCPUs proves that it is on that process's machine. A
// process that has not is a forwarder's, and proves nothing.
func (f *Facts) Locate(ep *endpoint.Endpoint) {
	f.On = ""
	switch {
	case f.Proved(ep.Process):
		f.On, f.Where = endpoint.ThisMachine, endpoint.Here
		if ep.Machine != nil {
			f.On = ep.Machine()
		}
		if f.On != endpoint.ThisMachine {
			f.Where = endpoint.Elsewhere
		}
	case ep.Process != nil && ep.Where == endpoint.Here:
		f.Where = endpoint.Unknown
	default:
		if f.Where = ep.Where; f.Where == endpoint.Here {
			f.On = endpoint.ThisMachine
		}
	}
}
