package facts

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"qmigrate/qmp"
)

// Optional is for a question that not every QEMU, or not every machine, has: one that is refused leaves the fact
// unknown.
func Optional(err error) error {
	var refused *qmp.CommandError
	if errors.As(err, &refused) {
		return nil
	}
	return err
}

// readMachine reads what the guest's machine is made of. All questions are sent at once: QEMU answers each from its
// main loop, some 0.1 to 0.6 ms each, and does not wait for us in between.
func readMachine(ctx context.Context, c *qmp.Conn, f *Facts) error {
	var tree, ram string
	var blocks []qmp.BlockDevice
	err := Together(ctx, func(ctx context.Context) (err error) {
		tree, err = c.HumanMonitor(ctx, "info qtree")
		return Optional(err)
	}, func(ctx context.Context) (err error) {
		ram, err = c.RAMBlocks(ctx)
		return Optional(err)
	}, func(ctx context.Context) (err error) {
		blocks, err = c.BlockDevices(ctx)
		return Optional(err)
	}, func(ctx context.Context) error {
		slots, err := c.CPUSlots(ctx)
		f.Topology = topology(slots)
		for _, s := range slots {
			if s.Path != "" {
				f.CPU.Type = s.Type
			}
		}
		return Optional(err)
	})
	if err != nil {
		return err
	}
	f.Devices = ParseDevices(tree)
	f.RAM = parseRAMBlocks(ram)
	f.Disks = DisksOf(blocks, f.Devices)
	return nil
}

// topology counts the places for CPUs: all of them (maxcpus), and in each dimension that QEMU names (socket-id,
// core-id, ...).
func topology(slots []qmp.CPUSlot) map[string]int64 {
	if len(slots) == 0 {
		return nil
	}
	all := map[string]int64{"maxcpus": int64(len(slots))}
	for _, s := range slots {
		for name, id := range s.Place {
			if word, ok := strings.CutSuffix(name, "-id"); ok {
				all[word+"s"] = max(all[word+"s"], id+1)
			}
		}
	}
	return all
}

// MemoryDevice is memory that was plugged in: a DIMM, or virtio-mem. Source: qapi/machine.json, MemoryDeviceInfo.
type MemoryDevice struct {
	Kind   string // dimm, nvdimm, virtio-pmem, virtio-mem, ...
	ID     string // "" if it has none
	Memdev string // the id of its memory backend, by which its RAMBlock is named
	Bytes  int64
	Slot   int64 // of a DIMM
	Node   int64 // of NUMA
	Addr   int64 // in the guest's memory
}

// readMemory reads how much memory there is, and room for more.
func readMemory(ctx context.Context, c *qmp.Conn, f *Facts) (err error) {
	var m struct {
		Size  int64 `json:"size"`
		Max   int64 `json:"max-size"`
		Slots int64 `json:"slots"`
	}
	if err = Optional(c.Property(ctx, "/machine", "memory", &m)); err != nil { // 7.1 and later have it
		return err
	}
	if f.MemoryBytes, f.BaseBytes, f.MemorySlots = m.Size, m.Size, m.Slots; m.Size > 0 && m.Max <= m.Size && m.Slots == 0 {
		return nil
	}
	f.MaxMemoryBytes = m.Max
	if f.MemoryBytes, err = c.MemorySize(ctx); err != nil { // with what has been plugged in
		return err
	}
	if f.BaseBytes == 0 {
		f.BaseBytes = f.MemoryBytes
	}
	list, err := c.MemoryDevices(ctx)
	for _, d := range list {
		_, backend, _ := strings.Cut(d.Data.Memdev, "/objects/")
		f.MemoryDevices = append(f.MemoryDevices, MemoryDevice{d.Type, d.Data.ID, backend, d.Data.Size, d.Data.Slot,
			d.Data.Node, d.Data.Addr + d.Data.Memaddr})
	}
	return Optional(err)
}

// ReadUUID reads the guest's UUID; "" if it has none.
func ReadUUID(ctx context.Context, c *qmp.Conn) (string, error) {
	var reply struct{ UUID string }
	err := c.Execute(ctx, "query-uuid", nil, &reply)
	if strings.Trim(reply.UUID, "0-") == "" {
		reply.UUID = ""
	}
	return reply.UUID, err
}

// ReadMachineTypes reads which machine types the binary has. It is asked where the two sides' differ.
func ReadMachineTypes(ctx context.Context, c *qmp.Conn, f *Facts) error {
	var list []struct {
		Name  string `json:"name"`
		Alias string `json:"alias"`
	}
	err := c.Execute(ctx, "query-machines", nil, &list)
	for _, m := range list {
		f.MachineTypes = append(f.MachineTypes, m.Name)
		if m.Alias != "" {
			f.MachineTypes = append(f.MachineTypes, m.Alias)
		}
	}
	return Optional(err)
}

// readFeatures reads what the guest's first CPU can do; others have the same.
func readFeatures(ctx context.Context, c *qmp.Conn, f *Facts) error {
	if f.CPU.path == "" {
		return nil
	}
	var words []qmp.FeatureWord
	if err := c.Property(ctx, f.CPU.path, "feature-words", &words); err != nil {
		return Optional(err)
	}
	f.CPU.Features = map[FeatureWord]int64{}
	for _, w := range words {
		f.CPU.Features[FeatureWord{w.EAX, w.ECX, w.Register}] = w.Features
	}
	return nil
}

// readNetwork reads what is behind the network cards.
func readNetwork(ctx context.Context, c *qmp.Conn, f *Facts) error {
	text, err := c.HumanMonitor(ctx, "info network")
	if err == nil {
		f.Netdevs, f.Scripts = ParseNetdevs(text)
	}
	return Optional(err)
}

// ReadIdentity reads what else a guest sees of its CPU. It is asked where the models' names differ.
func ReadIdentity(ctx context.Context, c *qmp.Conn, f *Facts) error {
	if f.CPU.path == "" {
		return nil
	}
	f.CPU.Identity = map[string]string{}
	for _, name := range []string{"vendor", "family", "model", "stepping"} {
		var value any
		if err := c.Property(ctx, f.CPU.path, name, &value); err != nil {
			return Optional(err)
		}
		f.CPU.Identity[name] = fmt.Sprint(value)
	}
	return nil
}

// ReadBackends reads the memory backends and the files behind them.
func ReadBackends(ctx context.Context, c *qmp.Conn, f *Facts) error {
	list, err := c.MemoryBackends(ctx)
	if err != nil {
		return Optional(err)
	}
	f.Backends = []Backend{}
	for _, b := range list {
		backend := Backend{ID: b.ID, Bytes: b.Bytes, Share: b.Share}
		if b.Share && b.ID != "" {
			// only memory-backend-file has it
			if err := Optional(c.Property(ctx, "/objects/"+b.ID, "mem-path", &backend.File)); err != nil {
				return err
			}
		}
		f.Backends = append(f.Backends, backend)
	}
	return nil
}

// ParseNetdevs reads the answer to `info network`, where each backend stands below its card, or alone:
//
//	nic: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:71:6d:01
//	 \ net: index=0,type=tap,ifname=tap0,...
//
// scripts are those that set up a TAP.
func ParseNetdevs(text string) (kinds, scripts map[string]string) {
	kinds, scripts = map[string]string{}, map[string]string{}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(strings.Trim(line, " \\\r\n"), ": ")
		_, kind, typed := strings.Cut(rest, "type=")
		kind, _, _ = strings.Cut(kind, ",")
		if !ok || !typed || kind == "nic" {
			continue
		}
		kinds[name] = kind
		_, script, has := strings.Cut(rest, ",script=")
		if script, _, _ = strings.Cut(script, ","); kind == "tap" && has && script != "" && script != "no" {
			scripts[name] = script
		}
	}
	return kinds, scripts
}
