package main

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/image"
	"qmigrate/guest/wire"
	"qmigrate/internal/near"
)

// planFlags are those of every command that migrates.
func planFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "mode", Category: aboutMigration, Value: string(record.PreCopyMode), Usage: "`MODE` pre-copy (copy while the guest runs), stop-and-copy (stop it first), post-copy (run it on the destination at once, its memory follows) or hybrid (pre-copy passes, then post-copy); demo also has colo (a secondary is kept in step and takes over)"},
		&cli.StringFlag{Name: "switch-after", Category: aboutMigration, Usage: "`N|TIME` hybrid: go over to post-copy after N passes, or so long after the start; one pass if not given"},
		&cli.StringFlag{Name: "policy", Category: aboutMigration, Value: "none", Usage: "`NAME[:k=v,...]` what to do about a pre-copy that does not converge: " + strings.Join(policy.Names(), ", ")},
		&cli.StringFlag{Name: "recover-limit", Category: aboutMigration, Value: "1m", Usage: "`TIME` how long a post-copy that lost its link tries to go on, the guest is not lost after it; and how long a QEMU may be silent in a migration before it is taken to hang"},
		&cli.StringFlag{Name: "max-bandwidth", Category: aboutMigration, Value: "128MiB/s", Usage: "`RATE` what the migration may send; 0B/s is unlimited"},
		&cli.StringFlag{Name: "downtime-limit", Category: aboutMigration, Value: "300ms", Usage: "`TIME` QEMU stops the guest when it expects to need no longer than this"},
		&cli.StringSliceFlag{Name: "capability", Category: aboutMigration, Usage: "`NAME=on|off` a migration capability of QEMU's, set on both sides; may be given again"},
		&cli.StringSliceFlag{Name: "parameter", Category: aboutMigration, Usage: "`NAME=VALUE` a migration parameter of QEMU's, in its own unit, set on both sides; may be given again"},
		&cli.StringFlag{Name: "tls", Category: aboutMigration, Usage: "`KIND` QEMU encrypts what it sends and both ends prove who they are: by certificates, x509, or by one key, psk; made for this migration unless --tls-dir-* name others"},
		&cli.StringFlag{Name: "tls-dir-source", Category: aboutMigration, Usage: "`DIR` the source's credentials, as its QEMU sees them: ca-cert.pem, client-cert.pem and client-key.pem, or keys.psk"},
		&cli.StringFlag{Name: "tls-dir-destination", Category: aboutMigration, Usage: "`DIR` the destination's: ca-cert.pem, server-cert.pem and server-key.pem, or keys.psk"},
		&cli.StringFlag{Name: "tls-hostname", Category: aboutMigration, Usage: "`NAME` that the destination's certificate has to be good for, if not the host that the source connects to"},
		&cli.StringFlag{Name: "tls-username", Category: aboutMigration, Usage: "`NAME` whose key in keys.psk is used, if not qemu's"},
		&cli.StringFlag{Name: "tls-authz", Category: aboutMigration, Usage: "`NAME` the only distinguished name that the destination lets in, as in O=lab,CN=host1"},
		&cli.BoolFlag{Name: "tls-no-verify", Category: aboutMigration, Usage: "x509: encrypt, and ask neither end who it is"},
		&cli.StringFlag{Name: "channels", Category: aboutMigration, Value: plan.FormURI, Usage: "`FORM` of the addresses in QEMU's commands: uri, or channels (QEMU 8.2 and newer)"},
		&cli.StringFlag{Name: "tunnel", Category: aboutMigration, Usage: "`KIND` carry all of it through one connection of ours, tls or ssh, in which both ends prove who they are; QEMU itself sends plain text to it"},
		&cli.StringFlag{Name: "timeout", Category: aboutMigration, Value: "0s", Usage: "`TIME` cancel a pre-copy that has not converged by then; 0s: never"},
		&cli.StringFlag{Name: "sample-interval", Category: aboutMigration, Value: "10ms", Usage: "`TIME` how often query-migrate and query-status are asked; 0ms: never"},
		&cli.StringFlag{Name: "out", Category: aboutOutput, Value: "out", Usage: "`DIR` append the record to DIR/records.jsonl"},
		&cli.BoolFlag{Name: "json", Category: aboutOutput, Usage: "print the record, one line, on standard output"},
		detailsFlag(),
		quietFlag(),
		logLevelFlag(),
	}
}

func detailsFlag() cli.Flag {
	return &cli.BoolFlag{Name: "details", Category: aboutOutput,
		Usage: "print everything that was measured, not one screen of it"}
}

func quietFlag() cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Category: aboutOutput, Usage: "print nothing but errors, and what --json prints"}
}

func logLevelFlag() cli.Flag {
	return &cli.StringFlag{Name: "log-level", Category: aboutOutput, Value: "off", Usage: "`LEVEL` log to standard error: debug (each QMP line), info (each stage), warn, error, off"}
}

// guestFlags are those of every command that starts guests of its own.
func guestFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "workload", Category: aboutGuest, Value: demoWorkload, Usage: "`NAME[:k=v,...]` what the guest does meanwhile: " + strings.Join(workloadNames(), ", ") + " (docs/workloads.md)"},
		&cli.StringFlag{Name: "guest", Category: aboutGuest, Value: wire.TinyGuest, Usage: "`NAME` what boots: tiny (our agent alone), or debian (with sysbench, iperf3, stress-ng, redis and sshd, and 512MiB unless --memory says otherwise)"},
		&cli.StringFlag{Name: "observe", Category: aboutGuest, Value: "1s", Usage: "`TIME` how long the guest is watched before the migration and after it"},
		&cli.StringFlag{Name: "beat-interval", Category: aboutGuest, Usage: "`TIME` between two heartbeats of the guest's, and looks at its clock; 0s: none (default 5ms, under TCG 100ms)"},
		&cli.StringFlag{Name: "ping-interval", Category: aboutGuest, Usage: "`TIME` between two pings, and two TCP echoes; a busy guest pays for each (docs/timeline.md); 0s: none (default 5ms, under TCG 20ms)"},
		&cli.StringFlag{Name: "memory", Category: aboutGuest, Value: "256MiB", Usage: "`SIZE` guest RAM"},
		&cli.IntFlag{Name: "vcpus", Category: aboutGuest, Value: 1, Usage: "`N` guest processors"},
		&cli.StringFlag{Name: "machine", Category: aboutGuest, Value: "pc-q35-7.2", Usage: "`TYPE` versioned machine type, the same on both sides"},
		&cli.StringFlag{Name: "accelerator", Category: aboutGuest, Value: "auto", Usage: "`NAME` auto, kvm or tcg; auto takes KVM only if a guest really boots under it"},
		&cli.StringFlag{Name: "qemu", Category: aboutGuest, Usage: "`QEMU` of both sides: a path, or a version such as 10.0; the newest but for the unpacked 11.1 if not given"},
		&cli.StringFlag{Name: "source-qemu", Category: aboutGuest, Usage: "`QEMU` of the source alone"},
		&cli.StringFlag{Name: "destination-qemu", Category: aboutGuest, Usage: "`QEMU` of the destination alone"},
		&cli.StringFlag{Name: "kernel", Category: aboutGuest, Usage: "`FILE` guest kernel; Debian's if not given"},
		&cli.StringFlag{Name: "modules", Category: aboutGuest, Usage: "`DIR` that kernel's modules, as in /lib/modules/VERSION"},
		&cli.StringFlag{Name: "cpu-cap", Category: aboutGuest, Usage: "`PERCENT` of one processor that the vCPUs may take together, on each host, as in 50%; QEMU's other threads are free"},
		&cli.StringFlag{Name: "cpu-cap-period", Category: aboutGuest, Value: "20ms", Usage: "`TIME` in each of which the cap holds: a longer one is truer to the guest's work, and its vCPUs stand still for longer"},
		&cli.StringFlag{Name: "nic", Category: aboutGuest, Value: guest.VirtioNet, Usage: "`MODEL` guest network card: " + strings.Join(guest.NICs(), ", ")},
		&cli.StringFlag{Name: "disk-bus", Category: aboutGuest, Value: guest.VirtioBlk, Usage: "`BUS` by which the guest has the disks of --storage: " + strings.Join(guest.DiskBuses(), ", ")},
		storageFlag(),
		&cli.StringFlag{Name: "link-rate", Category: aboutGuest, Value: "0B/s", Usage: "`RATE` what each host may send to the link, as in 1Gbit/s; 0B/s is unshaped"},
		&cli.StringFlag{Name: "transport", Category: aboutGuest, Value: lab.TCP, Usage: "`KIND` of the stream between the hosts: tcp, unix (not over the link), fd (a TCP connection handed over), exec (pipes)"},
		&cli.StringFlag{Name: "hosts", Category: aboutGuest, Value: "netns", Usage: "`KIND` what a host is: netns, a network namespace"},
		&cli.BoolFlag{Name: "allow-unsafe", Category: aboutGuest, Usage: "take the RAM size as given, even where this QEMU is known to lose pages"},
	}
}

// demoWorkload converges: 2,000 pages/s is 8 MB/s against 128 MiB/s.
const demoWorkload = "dirty:rate=2000/s,working-set=16MiB"

// planOf reads the planFlags.
func planOf(x *cli.Context) (plan.Plan, error) {
	p := plan.Plan{Mode: record.Mode(x.String("mode")), Channels: x.String("channels")}
	if p.Channels != plan.FormURI && p.Channels != plan.FormChannels {
		return p, usagef("--channels %q: %s", p.Channels,
			near.Hint(p.Channels, []string{plan.FormURI, plan.FormChannels}))
	}
	modes := []record.Mode{record.PreCopyMode, record.StopAndCopyMode, record.PostCopyMode, record.HybridMode}
	if demo := x.Command != nil && x.Command.Name == "demo"; p.Mode == record.COLOMode && !demo {
		return p, usagef("--mode colo: a pair in step lives as long as the program that watches it: it is for `qmigrate demo`, and for Go programs by engine.COLO")
	} else if demo {
		modes = append(modes, record.COLOMode)
	}
	if !slices.Contains(modes, p.Mode) {
		return p, usagef("--mode %q: %s", p.Mode, near.Hint(p.Mode, modes))
	}
	var err error
	if p.Policy, err = policy.Parse(x.String("policy")); err != nil {
		return p, usagef("--policy: %w", err)
	}
	if p.SwitchAfter, err = switchAfter(x.String("switch-after")); err != nil {
		return p, err
	}
	if p.SwitchAfter != (plan.SwitchAfter{}) && p.Mode != record.HybridMode {
		return p, usagef("--switch-after is for --mode hybrid, this one is %s", p.Mode)
	}
	if p.MaxBandwidth, err = units.Rate(x.String("max-bandwidth")); err != nil {
		return p, usagef("--max-bandwidth: %w", err)
	}
	if p.MaxBandwidth == 0 {
		p.MaxBandwidth = -1 // the plan's word for unlimited
	}
	for flag, into := range map[string]*time.Duration{"downtime-limit": &p.DowntimeLimit, "sample-interval": &p.SampleInterval, "timeout": &p.Timeout, "recover-limit": &p.RecoverLimit} {
		if *into, err = units.Duration(x.String(flag)); err != nil {
			return p, usagef("--%s: %w", flag, err)
		}
	}
	if p.DowntimeLimit < time.Millisecond || p.DowntimeLimit > 2000*time.Second {
		return p, usagef("--downtime-limit %s: QEMU takes 1ms to 2000s", x.String("downtime-limit"))
	}
	if p.SampleInterval == 0 {
		p.SampleInterval = -1 // the plan's word for no polling
	}
	if p.TLS, err = security(x); err != nil {
		return p, err
	}
	if p.Tunnel, err = tunnelKind(x); err != nil {
		return p, err
	}
	p.Capabilities, p.Parameters, err = qemuOptions(x)
	return p, err
}

// qemuOptions reads --capability and --parameter.
func qemuOptions(x *cli.Context) (capabilities map[string]bool, parameters map[string]string, err error) {
	capabilities = map[string]bool{}
	for _, text := range x.StringSlice("capability") {
		name, value, _ := strings.Cut(text, "=")
		if name == "" || value != "on" && value != "off" {
			return nil, nil, usagef("--capability %s: write it as NAME=on or NAME=off", text)
		}
		capabilities[name] = value == "on"
	}
	parameters = map[string]string{}
	for _, text := range x.StringSlice("parameter") {
		name, value, ok := strings.Cut(text, "=")
		if name == "" || !ok {
			return nil, nil, usagef("--parameter %s: write it as NAME=VALUE", text)
		}
		parameters[name] = value
	}
	return capabilities, parameters, nil
}

// labSpec reads the guestFlags.
func (c *commands) labSpec(x *cli.Context) (lab.Spec, error) {
	s := lab.Spec{
		SourceQEMU: first(x.String("source-qemu"), x.String("qemu")), DestinationQEMU: first(x.String("destination-qemu"), x.String("qemu")),
		Accelerator: x.String("accelerator"), Transport: x.String("transport"), AllowUnsafe: x.Bool("allow-unsafe"),
		Image: image.Spec{Kernel: x.String("kernel"), Modules: x.String("modules"), Guest: x.String("guest")},
		Guest: guest.Spec{Machine: x.String("machine"), VCPUs: x.Int("vcpus"), NIC: guest.NIC{Model: x.String("nic")}, DiskBus: x.String("disk-bus")},
	}
	if hosts := x.String("hosts"); hosts != "netns" {
		return s, usagef("--hosts %s: have netns", hosts)
	}
	switch s.Accelerator {
	case "auto", "kvm", "tcg":
	default:
		return s, usagef("--accelerator %s: %s", s.Accelerator, near.Hint(s.Accelerator, []string{"auto", "kvm", "tcg"}))
	}
	if s.Guest.VCPUs < 1 || s.Guest.VCPUs > maxVCPUs {
		return s, usagef("--vcpus %d: at least 1, at most %d", s.Guest.VCPUs, maxVCPUs)
	}
	var err error
	if !slices.Contains(wire.Guests(), s.Image.Guest) {
		return s, usagef("--guest %s: %s", s.Image.Guest, near.Hint(s.Image.Guest, wire.Guests()))
	}
	if s.Guest.Memory, err = units.Size(x.String("memory")); err != nil {
		return s, usagef("--memory: %w", err)
	}
	if !x.IsSet("memory") {
		s.Guest.Memory = lab.DefaultMemory(s.Image.Guest)
	}
	if s.Guest.Memory < minMemory || s.Guest.Memory%4096 != 0 {
		return s, usagef("--memory %s: the lab's guest needs at least %s, in whole pages of 4 KiB", x.String("memory"), units.FormatSize(minMemory))
	}
	if s.Observe, err = units.Duration(x.String("observe")); err != nil {
		return s, usagef("--observe: %w", err)
	}
	if s.Observe < minObserve {
		return s, usagef("--observe %s: at least %s, for there is nothing to compare with else", x.String("observe"), minObserve)
	}
	for _, f := range []struct {
		flag string
		to   *time.Duration
	}{{"beat-interval", &s.BeatInterval}, {"ping-interval", &s.PingInterval}} {
		if !x.IsSet(f.flag) {
			continue
		}
		if *f.to, err = units.Duration(x.String(f.flag)); err == nil {
			*f.to, err = lab.Interval(*f.to)
		}
		if err != nil {
			return s, usagef("--%s: %w", f.flag, err)
		}
	}
	if s.LinkRate, err = units.Rate(x.String("link-rate")); err != nil {
		return s, usagef("--link-rate: %w", err)
	}
	if s.Workload, err = wire.ParseWorkload(x.String("workload")); err != nil {
		return s, usagef("--workload: %w", err)
	}
	if err := s.Workload.CheckGuest(s.Image.Guest); err != nil {
		return s, usagef("--workload: %w", err)
	}
	if s.Storage, err = storage.Parse(x.String("storage")); err != nil {
		return s, usagef("--storage: %w", err)
	}
	if s.CPUCap, err = cpuCap(x.String("cpu-cap")); err != nil {
		return s, err
	}
	if s.CPUCapPeriod, err = units.Duration(x.String("cpu-cap-period")); err != nil {
		return s, usagef("--cpu-cap-period: %w", err)
	}
	if x.IsSet("cpu-cap-period") && s.CPUCap == 0 {
		return s, usagef("--cpu-cap-period: there is no --cpu-cap")
	}
	if err := s.CheckHardware(); err != nil {
		return s, usageError{err}
	}
	if s.Logger, err = c.logger(x); err != nil {
		return s, err
	}
	if !x.Bool("quiet") {
		s.Log = folding{c.stderr}
	}
	return s, nil
}

// maxVCPUs is what a PC without an IOMMU numbers: the IDs of its interrupt controllers have 8 bits.
const maxVCPUs = 255

// cpuCap reads --cpu-cap.
func cpuCap(text string) (percent int, err error) {
	if text == "" {
		return 0, nil
	}
	digits, ok := strings.CutSuffix(text, "%")
	if percent, err = strconv.Atoi(digits); err != nil || !ok || percent < 1 {
		return 0, usagef("--cpu-cap %q: whole percent of one processor with their sign, such as 50%% or 150%%", text)
	}
	return percent, nil
}

// minObserve has room for QEMU's announcements, and some bins to take a median of.
const minObserve = 500 * time.Millisecond

// minMemory is what Debian's cloud kernel boots in with room for more than 10,000 checked pages.
const minMemory = 128 << 20

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// switchAfter reads N or TIME.
func switchAfter(text string) (s plan.SwitchAfter, err error) {
	if text == "" {
		return s, nil
	}
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 {
			return s, usagef("--switch-after %s: at least one pass; --mode post-copy goes over at once", text)
		}
		return plan.SwitchAfter{Passes: n}, nil
	}
	if s.Time, err = units.Duration(text); err != nil || s.Time <= 0 {
		return plan.SwitchAfter{}, usagef("--switch-after %s: give a number of passes, such as 2, or a time with its unit, such as 5s", text)
	}
	return s, nil
}
