package lab

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"qmigrate/engine/record/units"
	"qmigrate/engine/setting"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/image"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/cpucap"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/hosts"
)

// Spec is a lab as data.
type Spec struct {
	Owner string     // mark in the names of everything that is made; default lab
	Hosts string     // what the hosts are: Namespaces (default), Containers, or a hosts file
	Pool  *host.Pool // finds hosts that are elsewhere; nil knows this machine and its namespaces
	Guest guest.Spec // memory, vCPUs, machine, NIC model, disk bus; the lab fills in the rest
	// percent of one processor that the guest's vCPUs may take together, on each host; 0: no limit
	CPUCap          int
	CPUCapPeriod    time.Duration // in which the cap holds; 0: cpucap.DefaultPeriod
	SourceQEMU      string        // "10.0", a path, or "" for the newest: see guest.FindQEMU
	DestinationQEMU string        // as SourceQEMU
	Image           image.Spec
	Accelerator     string        // auto (default), kvm, tcg
	Transport       string        // of the stream: one of Transports, default tcp
	Storage         storage.Spec  // the guest's disks; default none
	LinkRate        int64         // bytes/s of each host's way to the link; 0: unshaped
	Workload        wire.Workload // default idle
	Fill            int64         // bytes of guest memory under the memory check; 0: half of what the guest has
	// how long the guest is watched before the first command, and after the end; 0: 1 s, and half a second
	Observe time.Duration
	// of the guest's heartbeats and its looks at its clock; 0: BeatInterval, or BeatIntervalTCG; negative: none
	BeatInterval time.Duration
	PingInterval time.Duration // of the pings and the TCP echoes; 0: PingInterval, or PingIntervalTCG; negative: none
	// for Lab.COLO: both QEMUs are tried for it before the guest boots, and the machine's default is COLOMachine
	COLO        bool
	AllowUnsafe bool         // RAM as asked for, even where that QEMU is known to lose pages
	Log         io.Writer    // one line a step, for people; nil is silent
	Logger      *slog.Logger // nil is silent

	site func(context.Context, Spec) (Site, error) // of tests; nil: by Hosts
}

// DefaultMemory is the RAM in bytes that a guest has unless it is told: half of it is under the memory check, and
// Debian's programs need the rest.
func DefaultMemory(guest string) int64 {
	if guest == wire.DebianGuest {
		return 512 << 20
	}
	return 256 << 20
}

// CheckHardware refuses a guest that cannot be, in one line that lists what exists. It starts nothing; the machine type
// is checked when the QEMUs are known.
func (s Spec) CheckHardware() error {
	if hosts.IsFile(s.Hosts) {
		if s.LinkRate != 0 {
			return setting.Errorf("link-rate", "", "the link of a hosts file is its administrator's, and gets no rate here")
		}
		if t := s.Transport; t != "" && t != TCP {
			return setting.Errorf("transport", t, "the hosts of a hosts file reach each other by tcp")
		}
	}
	if err := guest.CheckNIC(s.Guest.NIC.Model); err != nil {
		return setting.About(err, "nic")
	}
	if err := guest.CheckDiskBus(s.Guest.DiskBus); err != nil {
		return setting.About(err, "disk-bus")
	}
	if bus := s.Guest.DiskBus; bus != "" && bus != guest.VirtioBlk && s.Storage.Disks == 0 {
		return setting.Errorf("disk-bus", bus, "the guest has no disks: give it storage too")
	}
	if err := s.Workload.CheckGuest(cmp.Or(s.Image.Guest, wire.TinyGuest)); err != nil {
		return setting.Errorf("workload", "", "%w", err)
	}
	if s.CPUCap != 0 {
		limit := cpucap.Spec{Owner: "lab", Host: sourceHost, Percent: s.CPUCap, Period: s.CPUCapPeriod}
		return setting.About(limit.Validate(), "cpu-cap", "cpu-cap-period")
	}
	return nil
}

// hostsText is what the hosts are, for people.
func (s Spec) hostsText() string {
	if hosts.IsFile(s.Hosts) {
		return "of " + s.Hosts
	}
	if ownHosts(s.Hosts) && s.Hosts != "" && s.Hosts != Namespaces {
		return "containers"
	}
	return "network namespaces"
}

// ForHardware is the image that a guest with the spec's hardware boots.
func (s Spec) ForHardware() image.Spec {
	i := s.Image
	i.NIC = s.Guest.NIC.Model
	if s.Storage.Disks > 0 {
		i.DiskBus = s.Guest.DiskBus
	}
	return i
}

// Defaults of Spec's intervals. Under TCG each datagram and each wake-up of the guest's kernel is emulated. A busy
// guest pays for that with its vCPU's time: docs/timeline.md has how much.
const (
	BeatInterval    = 5 * time.Millisecond
	BeatIntervalTCG = 100 * time.Millisecond
	PingInterval    = 5 * time.Millisecond
	PingIntervalTCG = 20 * time.Millisecond
)

const (
	minInterval = time.Millisecond
	// some of them in the second before the migration, in each second of the guest's clock
	maxInterval = 250 * time.Millisecond
)

// Interval checks one of the observers' intervals as people give it, and is what Spec takes: 0s is none there, and 0
// the default here.
func Interval(asked time.Duration) (time.Duration, error) {
	if asked == 0 {
		return -1, nil
	}
	if asked < minInterval || asked > maxInterval {
		return 0, fmt.Errorf("%s: 0s, or %s to %s", units.FormatDuration(asked), units.FormatDuration(minInterval),
			units.FormatDuration(maxInterval))
	}
	return asked, nil
}
