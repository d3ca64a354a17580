package experiment

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/internal/near"
)

// factor is one thing that an experiment may vary: a flag of the command line, by its name and in its words.
type factor struct {
	name, example, meaning string
	apply                  func(c *Cell, text string) error // reads the text into the cell's lab or plan
}

// factors are all of them, in the order in which they are applied: what narrows another down comes after it. docs/experiments.md lists them, by a test.
func factors() []factor {
	all := []factor{
		{"case", "m1.tiny", "a name for what the other values of a listed cell stand for; changes nothing", func(*Cell, string) error { return nil }},

		// The migration.
		{"mode", "pre-copy", "how the guest is moved: pre-copy, stop-and-copy, post-copy, hybrid", func(c *Cell, text string) error {
			c.Plan.Mode = record.Mode(text)
			return oneOf(text, string(record.PreCopyMode), string(record.StopAndCopyMode), string(record.PostCopyMode), string(record.HybridMode))
		}},
		{"max-bandwidth", "32MiB/s", "what the migration may send; 0B/s is unlimited; 128MiB/s if not given", func(c *Cell, text string) (err error) {
			if c.Plan.MaxBandwidth, err = units.Rate(text); c.Plan.MaxBandwidth == 0 {
				c.Plan.MaxBandwidth = -1 // the plan's word for unlimited
			}
			return err
		}},
		{"downtime-limit", "300ms", "QEMU stops the guest when it expects to need no longer than this; 300ms if not given", func(c *Cell, text string) (err error) {
			if c.Plan.DowntimeLimit, err = units.Duration(text); err == nil && c.Plan.DowntimeLimit == 0 {
				err = errors.New("QEMU takes 1ms to 2000s")
			}
			return err
		}},
		{"switch-after", "2", "hybrid: go over to post-copy after so many passes, or after a time", func(c *Cell, text string) (err error) {
			if n, err := strconv.Atoi(text); err == nil && n > 0 {
				c.Plan.SwitchAfter = plan.SwitchAfter{Passes: n}
				return nil
			}
			if c.Plan.SwitchAfter.Time, err = units.Duration(text); err != nil || c.Plan.SwitchAfter.Time == 0 {
				return errors.New("give a number of passes, such as 2, or a time with its unit, such as 5s")
			}
			return nil
		}},
		{"policy", "switchover", "what to do about a pre-copy that does not converge: " + strings.Join(policy.Names(), ", "), func(c *Cell, text string) (err error) {
			c.Plan.Policy, err = policy.Parse(text)
			return err
		}},
		{"timeout", "30s", "cancel a pre-copy that has not converged by then; never if not given", duration(func(c *Cell) *time.Duration { return &c.Plan.Timeout })},
		{"sample-interval", "10ms", "how often query-migrate and query-status are asked; 0ms: never", func(c *Cell, text string) (err error) {
			if c.Plan.SampleInterval, err = units.Duration(text); c.Plan.SampleInterval == 0 {
				c.Plan.SampleInterval = -1 // the plan's word for no polling
			}
			return err
		}},
		{"capability", "multifd=on,return-path=on", "a set of QEMU's migration capabilities, NAME=on|off; none is \"\"", func(c *Cell, text string) error {
			c.Plan.Capabilities = map[string]bool{}
			return pairs(text, func(name, value string) error {
				c.Plan.Capabilities[name] = value == "on"
				return oneOf(value, "on", "off")
			})
		}},
		{"parameter", "multifd-channels=4", "a set of QEMU's migration parameters, NAME=VALUE in QEMU's own units; none is \"\"", func(c *Cell, text string) error {
			c.Plan.Parameters = map[string]string{}
			return pairs(text, func(name, value string) error {
				c.Plan.Parameters[name] = value
				return nil
			})
		}},
		{"tls", "x509", "QEMU encrypts, by certificates or one key: x509, psk; none if not given", func(c *Cell, text string) error {
			if text != "none" {
				c.Plan.TLS = &plan.TLS{Kind: plan.TLSKind(text)}
			}
			return oneOf(text, "none", string(plan.X509), string(plan.PSK))
		}},
		{"tunnel", "ssh", "all of it in one connection of ours: tls, ssh; none if not given", func(c *Cell, text string) error {
			if text != "none" {
				c.Plan.Tunnel = plan.TunnelKind(text)
			}
			return oneOf(text, "none", string(plan.TLSTunnel), string(plan.SSHTunnel))
		}},
		{"channels", "uri", "the form of the addresses in QEMU's commands: uri, channels", func(c *Cell, text string) error {
			c.Plan.Channels = text
			return oneOf(text, plan.FormURI, plan.FormChannels)
		}},

		// The guest and its hosts.
		{"guest", "debian", "what boots: tiny (our agent alone), or debian (with sysbench, iperf3, stress-ng, redis and sshd); tiny if not given", func(c *Cell, text string) error {
			c.Lab.Image.Guest = text
			return oneOf(text, wire.Guests()...)
		}},
		{"memory", "256MiB", "guest RAM; 256MiB, and 512MiB of a Debian guest, if not given", func(c *Cell, text string) (err error) {
			if c.Lab.Guest.Memory, err = units.Size(text); err == nil && (c.Lab.Guest.Memory < minMemory || c.Lab.Guest.Memory%4096 != 0) {
				err = fmt.Errorf("the lab's guest needs at least %s, in whole pages of 4 KiB", units.FormatSize(minMemory))
			}
			return err
		}},
		{"vcpus", "2", "guest processors; 1 if not given", func(c *Cell, text string) (err error) {
			if c.Lab.Guest.VCPUs, err = strconv.Atoi(text); err != nil || c.Lab.Guest.VCPUs < 1 || c.Lab.Guest.VCPUs > maxVCPUs {
				return fmt.Errorf("a whole number, 1 to %d", maxVCPUs)
			}
			return nil
		}},
		{"cpu-cap", "50%", "percent of one processor that the vCPUs may take together, on each host; no limit if not given", func(c *Cell, text string) (err error) {
			digits, ok := strings.CutSuffix(text, "%")
			if c.Lab.CPUCap, err = strconv.Atoi(digits); err != nil || !ok || c.Lab.CPUCap < 1 {
				return errors.New("whole percent of one processor with their sign, such as 50% or 150%")
			}
			return nil
		}},
		{"cpu-cap-period", "100ms", "in each of which the cap holds; 20ms if not given", func(c *Cell, text string) (err error) {
			c.Lab.CPUCapPeriod, err = units.Duration(text)
			return err
		}},
		{"beat-interval", "20ms", "between two heartbeats of the guest's, and looks at its clock; 0s: none; 5ms, and 100ms under TCG, if not given", func(c *Cell, text string) (err error) {
			if c.Lab.BeatInterval, err = units.Duration(text); err == nil {
				c.Lab.BeatInterval, err = lab.Interval(c.Lab.BeatInterval)
			}
			return err
		}},
		{"ping-interval", "20ms", "between two pings, and two TCP echoes; 0s: none; 5ms, and 20ms under TCG, if not given", func(c *Cell, text string) (err error) {
			if c.Lab.PingInterval, err = units.Duration(text); err == nil {
				c.Lab.PingInterval, err = lab.Interval(c.Lab.PingInterval)
			}
			return err
		}},
		{"machine", "pc-q35-7.2", "versioned machine type; pc-q35-7.2 if not given", func(c *Cell, text string) error {
			c.Lab.Guest.Machine = text
			return nil
		}},
		{"accelerator", "tcg", "auto, kvm or tcg; auto, which takes KVM if a guest really boots under it, if not given", func(c *Cell, text string) error {
			c.Lab.Accelerator = text
			return oneOf(text, "auto", "kvm", "tcg")
		}},
		{"qemu", "10.0", "QEMU of both sides: a path, or a version; the newest but for the unpacked 11.1 if not given", func(c *Cell, text string) error {
			c.Lab.SourceQEMU, c.Lab.DestinationQEMU = text, text
			return nil
		}},
		{"source-qemu", "7.2", "QEMU of the source alone", func(c *Cell, text string) error {
			c.Lab.SourceQEMU = text
			return nil
		}},
		{"destination-qemu", "10.0", "QEMU of the destination alone", func(c *Cell, text string) error {
			c.Lab.DestinationQEMU = text
			return nil
		}},
		{"kernel", "/boot/vmlinuz", "guest kernel; Debian's if not given", func(c *Cell, text string) error {
			c.Lab.Image.Kernel = text
			return nil
		}},
		{"modules", "/lib/modules/6.1.0", "that kernel's modules", func(c *Cell, text string) error {
			c.Lab.Image.Modules = text
			return nil
		}},
		{"nic", "virtio-net", "model of the guest's network card: " + strings.Join(guest.NICs(), ", "), func(c *Cell, text string) error {
			c.Lab.Guest.NIC.Model = text
			return guest.CheckNIC(text)
		}},
		{"disk-bus", "ahci", "by which the guest has the disks of storage: " + strings.Join(guest.DiskBuses(), ", "), func(c *Cell, text string) error {
			c.Lab.Guest.DiskBus = text
			return guest.CheckDiskBus(text)
		}},
		{"storage", "mirror:size=64MiB", "the guest's disks: none, shared, mirror, iscsi, nfs", func(c *Cell, text string) (err error) {
			c.Lab.Storage, err = storage.Parse(text)
			return err
		}},
		{"link-rate", "1Gbit/s", "what each host may send to the link; 0B/s is unshaped", func(c *Cell, text string) (err error) {
			c.Lab.LinkRate, err = units.Rate(text)
			return err
		}},
		{"transport", "tcp", "kind of the stream between the hosts: " + strings.Join(lab.Transports(), ", "), func(c *Cell, text string) error {
			c.Lab.Transport = text
			return oneOf(text, lab.Transports()...)
		}},
		{"fill", "64MiB", "guest memory that is filled with checked pages; half of it if not given", func(c *Cell, text string) (err error) {
			c.Lab.Fill, err = units.Size(text)
			return err
		}},
		{"observe", "2s", "how long the guest is watched before the migration and after it; 1 s and half a second if not given", duration(func(c *Cell) *time.Duration { return &c.Lab.Observe })},
		{"allow-unsafe", "false", "take the RAM size as given, even where this QEMU is known to lose pages", func(c *Cell, text string) (err error) {
			if c.Lab.AllowUnsafe, err = strconv.ParseBool(text); err != nil {
				err = errors.New("true or false")
			}
			return err
		}},
		{"workload", "dirty:rate=2000/s,working-set=16MiB", "what the guest does meanwhile, NAME[:k=v,...]; idle if not given", func(c *Cell, text string) (err error) {
			c.Lab.Workload, err = wire.ParseWorkload(text)
			return err
		}},
	}
	// Each parameter of each workload by itself, over the workload's text: workload-rate, workload-working-set, workload-pattern, ...
	seen := map[string]bool{}
	for _, w := range wire.WorkloadTypes() {
		for _, p := range w.Params {
			if seen[p.Name] {
				continue
			}
			seen[p.Name] = true
			all = append(all, factor{"workload-" + p.Name, p.Default, "of the workload: " + p.Text, func(c *Cell, text string) error {
				w := wire.Workload{Name: c.Lab.Workload.Name, Params: maps.Clone(c.Lab.Workload.Params)}
				if w.Name == "" {
					w.Name = "idle"
				}
				if w.Params == nil {
					w.Params = map[string]string{}
				}
				w.Params[p.Name] = text
				c.Lab.Workload = w
				return w.Validate()
			}})
		}
	}
	return all
}

// Vocabulary is each factor's name, an example and its meaning, for people.
func Vocabulary() (rows [][3]string) {
	for _, f := range factors() {
		rows = append(rows, [3]string{f.name, f.example, f.meaning})
	}
	return rows
}

func isFactor(name string) bool {
	return slices.ContainsFunc(factors(), func(f factor) bool { return f.name == name })
}

func oneOf(text string, of ...string) error {
	if slices.Contains(of, text) {
		return nil
	}
	return errors.New(near.Hint(text, of))
}

func duration(of func(*Cell) *time.Duration) func(*Cell, string) error {
	return func(c *Cell, text string) (err error) {
		*of(c), err = units.Duration(text)
		return err
	}
}

// pairs reads NAME=VALUE,...
func pairs(text string, take func(name, value string) error) error {
	if text == "" {
		return nil
	}
	for word := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(word), "=")
		if !ok || name == "" {
			return fmt.Errorf("%q is not NAME=VALUE", word)
		}
		if err := take(name, value); err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	return nil
}

// maxVCPUs is what a PC without an IOMMU numbers: the IDs of its interrupt controllers have 8 bits.
const maxVCPUs = 255

// minMemory is what Debian's cloud kernel boots in with room for more than 10,000 checked pages.
const minMemory = 128 << 20
