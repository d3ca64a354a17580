package lab

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record/units"
	"qmigrate/engine/setting"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/wire"
)

// MinMemory is the least RAM of a lab's guest, bytes: Debian's cloud kernel boots in it, with room for more than 10,000
// checked pages.
const MinMemory = 128 << 20

const (
	maxVCPUs   = 255                    // a PC without an IOMMU numbers its interrupt controllers with 8 bits
	minObserve = 500 * time.Millisecond // room for QEMU's announcements, and for some bins to take a median of
)

// trials is where the settings of a lab can be given.
const trials = setting.Demo | setting.Lab | setting.Run

// Settings are those of a spec, in the order in which they are applied.
func Settings() []setting.Setting[Spec] {
	return slices.Concat(loadSettings(), watchSettings(), guestSettings(), hostSettings(), workloadSettings())
}

// inDemo is a default of the commands that make a lab, where an experiment has the spec's.
func inDemo(text string) map[setting.Place]string {
	return map[setting.Place]string{setting.Demo: text, setting.Lab: text}
}

// loadSettings say what boots and what it does.
func loadSettings() []setting.Setting[Spec] {
	var workloads []string
	for _, w := range wire.WorkloadTypes() {
		name := w.Name
		if w.Guest != "" {
			name += " (" + w.Guest + ")"
		}
		workloads = append(workloads, name)
	}
	return []setting.Setting[Spec]{
		// The default converges: 2,000 pages/s is 8 MB/s against 128 MiB/s.
		{Name: "workload", Shape: "NAME[:k=v,...]", Default: "idle", Own: inDemo("dirty:rate=2000/s,working-set=16MiB"),
			Example: "dirty:rate=2000/s,working-set=16MiB", Where: trials,
			Help: "what the guest does meanwhile: " + strings.Join(workloads, ", ") + " (docs/workloads.md)",
			Apply: func(s *Spec, text string) (err error) {
				s.Workload, err = wire.ParseWorkload(text)
				return err
			}},
		{Name: "guest", Shape: "NAME", Default: wire.TinyGuest, Example: wire.DebianGuest, Where: trials,
			Help:  "what boots: tiny (qmigrate's agent alone), or debian (with sysbench, iperf3, stress-ng, redis and sshd)",
			Apply: setting.Choice(func(s *Spec) *string { return &s.Image.Guest }, wire.Guests()...)},
		{Name: "fill", Shape: "SIZE", Absent: "half of it", Example: "64MiB", Where: setting.Run,
			Help:  "guest memory that is filled with checked pages",
			Apply: setting.Size(func(s *Spec) *int64 { return &s.Fill })},
	}
}

// watchSettings say how the guest is watched.
func watchSettings() []setting.Setting[Spec] {
	interval := func(at func(*Spec) *time.Duration) func(*Spec, string) error {
		return func(s *Spec, text string) (err error) {
			if *at(s), err = units.Duration(text); err == nil {
				*at(s), err = Interval(*at(s))
			}
			return err
		}
	}
	return []setting.Setting[Spec]{
		{Name: "observe", Shape: "TIME", Absent: "1s before, 500ms after", Own: inDemo("1s"), Example: "2s", Where: trials,
			Help: "how long the guest is watched before the migration and after it",
			Apply: func(s *Spec, text string) (err error) {
				if s.Observe, err = units.Duration(text); err == nil && s.Observe < minObserve {
					return setting.Wrong(text, "at least %s, otherwise there is no baseline", minObserve)
				}
				return err
			}},
		{Name: "beat-interval", Shape: "TIME", Absent: "5ms, under TCG 100ms", Example: "20ms", Where: trials,
			Help:  "between two heartbeats of the guest, and looks at its clock; 0s: none",
			Apply: interval(func(s *Spec) *time.Duration { return &s.BeatInterval })},
		{Name: "ping-interval", Shape: "TIME", Absent: "5ms, under TCG 20ms", Example: "20ms", Where: trials,
			Help:  "between two pings, and two TCP echoes; a busy guest pays for each (docs/timeline.md); 0s: none",
			Apply: interval(func(s *Spec) *time.Duration { return &s.PingInterval })},
	}
}

// guestSettings are of the guest's QEMU and hardware.
func guestSettings() []setting.Setting[Spec] {
	return []setting.Setting[Spec]{
		{Name: "memory", Shape: "SIZE", Absent: "256MiB, guest debian 512MiB", Example: "256MiB", Where: trials,
			Help: "guest RAM",
			Apply: func(s *Spec, text string) (err error) {
				if s.Guest.Memory, err = units.Size(text); err == nil && (s.Guest.Memory < MinMemory || s.Guest.Memory%4096 != 0) {
					return setting.Wrong(text, "the lab's guest needs at least %s, in whole pages of 4 KiB",
						units.FormatSize(MinMemory))
				}
				return err
			}},
		{Name: "vcpus", Shape: "N", Default: "1", Example: "2", Where: trials,
			Help: "guest processors",
			Apply: func(s *Spec, text string) (err error) {
				if s.Guest.VCPUs, err = strconv.Atoi(text); err != nil || s.Guest.VCPUs < 1 || s.Guest.VCPUs > maxVCPUs {
					return setting.Wrong(text, "a whole number, 1 to %d", maxVCPUs)
				}
				return nil
			}},
		{Name: "machine", Shape: "TYPE", Default: defaultMachine, Example: defaultMachine, Where: trials,
			Help:  "versioned machine type, the same on both sides",
			Apply: setting.Text(func(s *Spec) *string { return &s.Guest.Machine })},
		{Name: "accelerator", Shape: "NAME", Default: "auto", Example: "tcg", Where: trials,
			Help:  "auto, kvm or tcg; auto takes KVM only if a guest really boots under it",
			Apply: setting.Choice(func(s *Spec) *string { return &s.Accelerator }, "auto", "kvm", "tcg")},
		{Name: "qemu", Shape: "QEMU", Absent: "the newest but for the unpacked 11.1", Example: "10.0", Where: trials,
			Help: "QEMU of both sides: a path, or a version such as 10.0",
			Apply: func(s *Spec, text string) error {
				s.SourceQEMU, s.DestinationQEMU = text, text
				return nil
			}},
		{Name: "source-qemu", Shape: "QEMU", Example: "7.2", Where: trials, Help: "QEMU of the source alone",
			Apply: setting.Text(func(s *Spec) *string { return &s.SourceQEMU })},
		{Name: "destination-qemu", Shape: "QEMU", Example: "10.0", Where: trials, Help: "QEMU of the destination alone",
			Apply: setting.Text(func(s *Spec) *string { return &s.DestinationQEMU })},
		{Name: "kernel", Shape: "FILE", Absent: "Debian's", Example: "/boot/vmlinuz", Where: trials, Help: "guest kernel",
			Apply: setting.Text(func(s *Spec) *string { return &s.Image.Kernel })},
		{Name: "modules", Shape: "DIR", Example: "/lib/modules/6.1.0", Where: trials,
			Help:  "that kernel's modules, as in /lib/modules/VERSION",
			Apply: setting.Text(func(s *Spec) *string { return &s.Image.Modules })},
		{Name: "cpu-cap", Shape: "PERCENT", Absent: "no limit", Example: "50%", Where: trials,
			Help: "of one processor that the vCPUs may take together, on each host, as in 50%; other QEMU threads are not " +
				"limited",
			Apply: func(s *Spec, text string) (err error) {
				digits, ok := strings.CutSuffix(text, "%")
				if s.CPUCap, err = strconv.Atoi(digits); err != nil || !ok || s.CPUCap < 1 {
					return setting.Wrong(text, "whole percent of one processor with their sign, such as 50%% or 150%%")
				}
				return nil
			}},
		{Name: "cpu-cap-period", Shape: "TIME", Absent: "20ms", Example: "100ms", Where: trials,
			Help: "the cap holds in each of these: a longer one is truer to the guest's work, and its vCPUs stand still " +
				"for longer",
			Apply: func(s *Spec, text string) (err error) {
				if s.CPUCapPeriod, err = units.Duration(text); err == nil && s.CPUCap == 0 {
					return setting.Wrong(text, "there is no cpu-cap")
				}
				return err
			}},
		{Name: "nic", Shape: "MODEL", Default: guest.VirtioNet, Example: guest.VirtioNet, Where: trials,
			Help: "guest network card: " + strings.Join(guest.NICs(), ", "),
			Apply: func(s *Spec, text string) error {
				s.Guest.NIC.Model = text
				return guest.CheckNIC(text)
			}},
		{Name: "disk-bus", Shape: "BUS", Default: guest.VirtioBlk, Example: "ahci", Where: trials,
			Help: "the bus by which the guest has the disks of storage: " + strings.Join(guest.DiskBuses(), ", "),
			Apply: func(s *Spec, text string) error {
				s.Guest.DiskBus = text
				return guest.CheckDiskBus(text)
			}},
		{Name: "storage", Shape: "KIND[:k=v,...]", Default: string(storage.None), Example: "mirror:size=64MiB", Where: trials,
			Help: "what the guest's disks are on: none, shared, mirror (each host its own, copied by the migration), iscsi, nfs",
			Apply: func(s *Spec, text string) (err error) {
				s.Storage, err = storage.Parse(text)
				return err
			}},
	}
}

// hostSettings are of the hosts and what is between them.
func hostSettings() []setting.Setting[Spec] {
	return []setting.Setting[Spec]{
		{Name: "link-rate", Shape: "RATE", Default: "0B/s", Example: "1Gbit/s", Where: trials,
			Help:  "what each host may send to the link, as in 1Gbit/s; 0B/s is unshaped",
			Apply: setting.Rate(func(s *Spec) *int64 { return &s.LinkRate })},
		{Name: "transport", Shape: "KIND", Default: TCP, Example: "unix", Where: trials,
			Help: "kind of the stream between the hosts: tcp, unix (not over the link), fd (a TCP connection handed " +
				"over), exec (pipes)",
			Apply: setting.Choice(func(s *Spec) *string { return &s.Transport }, Transports()...)},
		{Name: "hosts", Shape: "KIND", Default: Namespaces, Example: Namespaces, Where: trials,
			Help: "what a host is: netns, a network namespace; lxc, a container that is made from this machine's files " +
				"(lxc:lxd, lxc:incus or lxc:liblxc says by whom); libvirt, such a container with a libvirtd; FILE.toml, the " +
				"hosts of a hosts file: docs/hosts.md",
			Apply: func(s *Spec, text string) error {
				s.Hosts = text
				return checkHosts(text)
			}},
		{Name: "allow-unsafe", Example: "false", Where: trials,
			Help:  "take the RAM size as given, even where this QEMU is known to lose pages",
			Apply: setting.Truth(func(s *Spec) *bool { return &s.AllowUnsafe })},
	}
}

// workloadSettings are each parameter of each workload by itself, over the workload's text.
func workloadSettings() (all []setting.Setting[Spec]) {
	given := map[string]bool{}
	for _, w := range wire.WorkloadTypes() {
		for _, p := range w.Params {
			if given[p.Name] {
				continue
			}
			given[p.Name] = true
			all = append(all, setting.Setting[Spec]{Name: "workload-" + p.Name, Shape: "VALUE", Example: p.Default,
				Help: "of the workload: " + p.Text, Where: setting.Run, Apply: func(s *Spec, text string) error {
					w := wire.Workload{Name: s.Workload.Name, Params: maps.Clone(s.Workload.Params)}
					if w.Name == "" {
						w.Name = "idle"
					}
					if w.Params == nil {
						w.Params = map[string]string{}
					}
					w.Params[p.Name] = text
					s.Workload = w
					return w.Validate()
				}})
		}
	}
	return all
}
