package experiment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"qmigrate/engine/connect"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/lab"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/setting"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/image"
	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
	"qmigrate/qmp"
)

// Check refuses each cell that this host, or the pair of QEMUs that it names, cannot do, with the line that asks for
// it, and leaves those of optional sweeps out. QEMUs without a guest are started and asked; nothing else is.
func (e *Experiment) Check(ctx context.Context, schemas qmp.SchemaCache) error {
	e.hash = e.meaning()
	h := &machine{schemas: schemas, facts: map[[2]string]*facts.Facts{}, accelerators: map[[3]string]guest.Accelerator{},
		binaries: map[string]guest.Binary{}, trials: map[string]*fit.Trial{},
		images: map[[5]string]guest.Image{}, machines: map[string]bool{}}
	h.memory = memoryTotal()
	var errs []error
	said := map[string]bool{}
	var kept []*Cell
	left := map[string]int{} // how many cells a reason leaves out
	var reasons, first []string
	for _, c := range e.Cells {
		line, err := h.check(ctx, e, c)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			kept = append(kept, c)
		case c.Sweep.Optional:
			reason := fmt.Sprintf("line %d: %v", line, err)
			if left[reason]++; left[reason] == 1 {
				reasons, first = append(reasons, reason), append(first, c.Name)
			}
		default:
			err := &Error{e.File, line, err.Error()}
			if !said[err.Error()] { // many cells share a line
				said[err.Error()] = true
				errs = append(errs, err)
			}
		}
	}
	e.Cells = kept
	for i, reason := range reasons {
		more := ""
		if n := left[reason] - 1; n > 0 {
			more = fmt.Sprintf(" and %d cells more", n)
		}
		e.LeftOut = append(e.LeftOut, fmt.Sprintf("%s%s: %s", first[i], more, reason))
	}
	if len(errs) == 0 && len(kept) == 0 {
		return fmt.Errorf("%s: nothing is left to run here: %s", e.File, strings.Join(e.LeftOut, "; "))
	}
	return errors.Join(errs...)
}

// machine is what this machine has, asked once.
type machine struct {
	memory       int64 // bytes of RAM; 0: not known
	schemas      qmp.SchemaCache
	binaries     map[string]guest.Binary
	facts        map[[2]string]*facts.Facts
	accelerators map[[3]string]guest.Accelerator
	trials       map[string]*fit.Trial // by binary
	images       map[[5]string]guest.Image
	machines     map[string]bool // those that both QEMUs have
}

// check returns what is wrong with a cell and the line that says so.
func (h *machine) check(ctx context.Context, e *Experiment, c *Cell) (line int, err error) {
	if err := c.Lab.CheckTransport(c.Plan); err != nil {
		return c.blame(err), err
	}
	if e.Boot == PerCell {
		if err := c.Lab.CheckAgain(); err != nil {
			return c.line("storage", "source-qemu", "destination-qemu"), fmt.Errorf("boot = %q: %w", PerCell, err)
		}
	}
	if c.Lab.Storage.Kind == storage.Mirror && c.Plan.Tunnel != "" {
		return c.line("tunnel"), setting.Errorf("tunnel", string(c.Plan.Tunnel),
			"the disks of storage mirror would travel beside the tunnel, in clear: use tls, which encrypts them too")
	}
	if err := c.Lab.CheckHardware(); err != nil {
		return c.blame(err), err
	}
	if line, err := c.checkMemory(h.memory); err != nil {
		return line, err
	}
	if err := fit.Check(c.Plan, nil, nil); err != nil { // before any QEMU is needed
		return c.blame(err), err
	}
	boot := c.Lab.ForHardware()
	if _, ok := h.images[imageKey(c)]; !ok {
		if h.images[imageKey(c)], err = image.Build(ctx, boot); err != nil {
			return c.line("guest", "kernel", "nic", "disk-bus"), err
		}
	}
	var sides [2]*facts.Facts
	for i, side := range []struct{ want, factor string }{{c.Lab.SourceQEMU, "source-qemu"},
		{c.Lab.DestinationQEMU, "destination-qemu"}} {
		b, ok := h.binaries[side.want]
		if !ok {
			if b, err = guest.FindQEMU(ctx, side.want); err != nil {
				return c.line(side.factor, "qemu"), err
			}
			h.binaries[side.want] = b
		}
		accelerator := guest.Accelerator{Name: "tcg"}
		if i == 0 {
			if accelerator, err = h.accelerator(ctx, c, b.Path); err != nil {
				return c.line("accelerator", "kernel"), err
			}
		}
		key := [2]string{b.Path, accelerator.Name}
		if h.facts[key] == nil {
			if h.facts[key], err = connect.Facts(ctx, b.Path, accelerator.Name, h.schemas); err != nil {
				return c.line(side.factor, "qemu"), err
			}
		}
		f := *h.facts[key]
		f.Name = map[int]string{0: "source", 1: "destination"}[i]
		f.Accelerator, f.MemoryBytes, f.VCPUs = accelerator.Name, c.memory(), max(c.Lab.Guest.VCPUs, 1)
		sides[i] = &f
	}
	if machine := c.Lab.Guest.Machine; machine != "" && !h.machines[machine+c.Lab.SourceQEMU+" "+c.Lab.DestinationQEMU] {
		if err := guest.CheckMachine(ctx, machine, h.binaries[c.Lab.SourceQEMU].Path,
			h.binaries[c.Lab.DestinationQEMU].Path); err != nil {
			return c.line("machine"), err
		}
		h.machines[machine+c.Lab.SourceQEMU+" "+c.Lab.DestinationQEMU] = true
	}
	sides[1].Accelerator = sides[0].Accelerator
	if err := fit.Check(c.Plan, sides[0], sides[1]); err != nil {
		return c.blame(err), err
	}
	return h.try(ctx, c)
}

// try finds what introspection cannot tell: a capability that this host does not let QEMU have, such as post-copy
// without userfaultfd.
func (h *machine) try(ctx context.Context, c *Cell) (line int, err error) {
	wanted := map[string]string{} // capability: the factor that wants it
	for name, on := range c.Plan.Capabilities {
		if on {
			wanted[name] = "capability"
		}
	}
	if c.Plan.Mode == record.PostCopyMode || c.Plan.Mode == record.HybridMode {
		wanted["postcopy-ram"] = "mode"
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		for _, want := range []string{c.Lab.SourceQEMU, c.Lab.DestinationQEMU} {
			qemu := h.binaries[want].Path
			if h.trials[qemu] == nil {
				if h.trials[qemu], err = connect.Throwaway(ctx, []string{qemu}, nil, "tcg"); err != nil {
					return c.line(wanted[name]), err
				}
			}
			if refusal := h.trials[qemu].Refused[name]; refusal != "" && name != "dirty-limit" { // Rules knows that one
				return c.line(wanted[name]), fmt.Errorf("%s: QEMU refuses %s here: %s", wanted[name], name, refusal)
			}
		}
	}
	return 0, nil
}

// imageKey is what images differ by.
func imageKey(c *Cell) [5]string {
	i := c.Lab.ForHardware()
	return [5]string{i.Kernel, i.Modules, i.NIC, i.DiskBus, i.Guest}
}

// accelerator is what the guest will run under; KVM counts only if a guest boots.
func (h *machine) accelerator(ctx context.Context, c *Cell, qemu string) (guest.Accelerator, error) {
	key := [3]string{qemu, c.Lab.Accelerator, c.Lab.Image.Kernel}
	if a, ok := h.accelerators[key]; ok {
		return a, nil
	}
	g := c.Lab.Guest
	g.QEMU, g.Image = qemu, h.images[imageKey(c)]
	a, err := guest.ProbeAccelerator(ctx, host.Local(), g, c.Lab.Accelerator)
	if err == nil {
		h.accelerators[key] = a
	}
	return a, err
}

// memory is the guest's RAM, bytes.
func (c *Cell) memory() int64 {
	return cmp.Or(c.Lab.Guest.Memory, lab.DefaultMemory(c.Lab.Image.Guest))
}

// kernelRoom is what of a guest's RAM its kernel and agent may need beside the filled pages, bytes.
const kernelRoom = 80 << 20

// hostShare of this host's RAM is what the two QEMUs of a trial may have together.
const hostShare = 0.85

// checkMemory fills as much of the guest as its workload writes to, and refuses what does not fit into the guest, or
// into this host twice.
func (c *Cell) checkMemory(total int64) (line int, err error) {
	memory := c.memory()
	set := int64(c.Lab.Workload.Number("working-set"))
	if need := max(set, c.Lab.Fill); need > memory-kernelRoom {
		return c.line("workload-working-set", "fill", "workload", "memory"),
			fmt.Errorf("%s are to be filled, and a guest of %s has %s for that", units.FormatSize(need),
				units.FormatSize(memory), units.FormatSize(memory-kernelRoom))
	}
	if c.Lab.Fill > 0 && set > c.Lab.Fill {
		return c.line("fill"), fmt.Errorf("fill %s is less than the workload's working set of %s",
			units.FormatSize(c.Lab.Fill), units.FormatSize(set))
	}
	if c.Lab.Fill == 0 && set > (memory-kernelRoom)/2 {
		c.Lab.Fill = set
	}
	if need := 2 * memory; total > 0 && float64(need) > hostShare*float64(total) {
		return c.line("memory"), fmt.Errorf("two QEMUs of %s each: this host has %s, of which they may have %.0f %%: take "+
			"less, or shrink = %d",
			units.FormatSize(memory), units.FormatSize(total), 100*hostShare, shrinkFor(need, total))
	}
	return 0, nil
}

// shrinkFor is the least power of two by which a need fits.
func shrinkFor(need, total int64) int64 {
	by := int64(2)
	for float64(need/by) > hostShare*float64(total) {
		by *= 2
	}
	return by
}

// memoryTotal is MemTotal of /proc/meminfo, bytes.
func memoryTotal() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	return procfs.Bytes(b, "MemTotal")
}

// blame is the line of the first of the settings that an error is about and the cell gives.
func (c *Cell) blame(err error) int {
	return c.line(append(setting.Of(err), "mode", "policy", "capability")...)
}
