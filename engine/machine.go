package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"qmigrate/qmp"
)

// optional is for a question that not every QEMU, or not every machine, has: one that is refused leaves the fact unknown.
func optional(err error) error {
	var refused *qmp.CommandError
	if errors.As(err, &refused) {
		return nil
	}
	return err
}

// readMachine reads what the guest's machine is made of. All questions are sent at once: QEMU answers each from its main loop, some 0.1 to 0.6 ms
// each, and does not wait for us in between.
func readMachine(ctx context.Context, c *qmp.Conn, f *Facts) error {
	var tree, ram string
	var blocks []qmp.BlockDevice
	err := together(ctx, func(ctx context.Context) (err error) {
		tree, err = c.HumanMonitor(ctx, "info qtree")
		return optional(err)
	}, func(ctx context.Context) (err error) {
		ram, err = c.RAMBlocks(ctx)
		return optional(err)
	}, func(ctx context.Context) (err error) {
		blocks, err = c.BlockDevices(ctx)
		return optional(err)
	}, func(ctx context.Context) error {
		slots, err := c.CPUSlots(ctx)
		f.Topology = topology(slots)
		for _, s := range slots {
			if s.Path != "" {
				f.CPU.Type = s.Type
			}
		}
		return optional(err)
	})
	if err != nil {
		return err
	}
	f.Devices = parseDevices(tree)
	f.RAM = parseRAMBlocks(ram)
	f.Disks = disks(blocks, f.Devices)
	return nil
}

// topology counts the places for CPUs: all of them (maxcpus), and in each dimension that QEMU names (socket-id, core-id, ...).
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
	if err = optional(c.Property(ctx, "/machine", "memory", &m)); err != nil { // 7.1 and later have it
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
	return optional(err)
}

// readUUID reads the guest's UUID; "" if it has none.
func readUUID(ctx context.Context, c *qmp.Conn) (string, error) {
	var reply struct{ UUID string }
	err := c.Execute(ctx, "query-uuid", nil, &reply)
	if strings.Trim(reply.UUID, "0-") == "" {
		reply.UUID = ""
	}
	return reply.UUID, err
}

// readMachineTypes reads which machine types the binary has. It is asked where the two sides' differ.
func readMachineTypes(ctx context.Context, c *qmp.Conn, f *Facts) error {
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
	return optional(err)
}

// readFeatures reads what the guest's first CPU can do; others have the same.
func readFeatures(ctx context.Context, c *qmp.Conn, f *Facts) error {
	if f.CPU.path == "" {
		return nil
	}
	var words []qmp.FeatureWord
	if err := c.Property(ctx, f.CPU.path, "feature-words", &words); err != nil {
		return optional(err)
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
		f.Netdevs, f.scripts = parseNetdevs(text)
	}
	return optional(err)
}

// readIdentity reads what else a guest sees of its CPU. It is asked where the models' names differ.
func readIdentity(ctx context.Context, c *qmp.Conn, f *Facts) error {
	if f.CPU.path == "" {
		return nil
	}
	f.CPU.Identity = map[string]string{}
	for _, name := range []string{"vendor", "family", "model", "stepping"} {
		var value any
		if err := c.Property(ctx, f.CPU.path, name, &value); err != nil {
			return optional(err)
		}
		f.CPU.Identity[name] = fmt.Sprint(value)
	}
	return nil
}

// readBackends reads the memory backends and the files behind them.
func readBackends(ctx context.Context, c *qmp.Conn, f *Facts) error {
	list, err := c.MemoryBackends(ctx)
	if err != nil {
		return optional(err)
	}
	f.Backends = []Backend{}
	for _, b := range list {
		backend := Backend{ID: b.ID, Bytes: b.Bytes, Share: b.Share}
		if b.Share && b.ID != "" {
			if err := optional(c.Property(ctx, "/objects/"+b.ID, "mem-path", &backend.File)); err != nil { // only memory-backend-file has it
				return err
			}
		}
		f.Backends = append(f.Backends, backend)
	}
	return nil
}

// parseNetdevs reads the answer to `info network`, where each backend stands below its card, or alone:
//
//	nic: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:71:6d:01
//	 \ net: index=0,type=tap,ifname=tap0,...
//
// scripts are those that set up a TAP.
func parseNetdevs(text string) (kinds, scripts map[string]string) {
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

// compareMachines finds where the two machines differ: what keeps a guest from moving, and what only might matter.
func compareMachines(src, dst *Facts) (refusals, doubts []Mismatch) {
	refuse := func(problem, mend string) { refusals = append(refusals, Mismatch{problem, mend}) }
	doubt := func(problem, mend string) { doubts = append(doubts, Mismatch{problem, mend}) }
	if src.Machine != dst.Machine {
		return nil, nil // that is said, and explains the rest
	}
	compareCPU(src, dst, refuse, doubt)
	compareTopology(src, dst, refuse)
	compareDevices(src, dst, refuse, doubt)
	compareMemory(src, dst, refuse)
	compareDisks(src, dst, refuse, doubt)
	compareNetwork(src, dst, doubt)
	compareUUIDs(src, dst, doubt)
	for _, side := range []struct {
		name string
		of   *Facts
	}{{"source", src}, {"destination", dst}} {
		var unknown []string
		for what, missing := range map[string]bool{"devices": len(side.of.Devices) == 0, "memory blocks": len(side.of.RAM) == 0, "CPU features": side.of.CPU.Features == nil} {
			if missing {
				unknown = append(unknown, what)
			}
		}
		if slices.Sort(unknown); len(unknown) > 0 {
			doubt(fmt.Sprintf("%s %s does not tell its %s: they were not compared", side.name, side.of.Name, strings.Join(unknown, ", ")), "compare the two command lines yourself")
		}
	}
	return refusals, doubts
}

// compareTopology compares how the CPUs are arranged, in the words that both have: it is in the guest's CPUID, ACPI tables and APIC ids.
func compareTopology(src, dst *Facts, refuse func(problem, mend string)) {
	if src.VCPUs != dst.VCPUs {
		return // that is said
	}
	var here, there []string
	for _, name := range slices.Sorted(maps.Keys(src.Topology)) {
		a := src.Topology[name]
		b, both := dst.Topology[name]
		switch {
		case !both || a == b || name == "cpus": // how many there are is compared by itself
		case name == "nodes":
			refuse(fmt.Sprintf("NUMA nodes of the CPUs differ: source %d, destination %d", a, b),
				"start the destination with the source's -numa")
		default:
			here, there = append(here, fmt.Sprintf("%s=%d", name, a)), append(there, fmt.Sprintf("%s=%d", name, b))
		}
	}
	if len(here) > 0 {
		refuse(fmt.Sprintf("CPU topology differs: source %s, destination %s", strings.Join(here, ","),
			strings.Join(there, ",")), "start the destination with "+smpOption(src))
	}
}

// smpOption is the -smp of a guest. What is one by default is left out: not every QEMU knows every word.
func smpOption(f *Facts) string {
	text := fmt.Sprintf("-smp %d", f.VCPUs)
	if most := f.Topology["maxcpus"]; most > int64(f.VCPUs) {
		text += fmt.Sprintf(",maxcpus=%d", most)
	}
	for _, name := range []string{"sockets", "dies", "clusters", "modules", "cores", "threads"} {
		if n := f.Topology[name]; n > 1 || n == 1 && (name == "sockets" || name == "cores") {
			text += fmt.Sprintf(",%s=%d", name, n)
		}
	}
	return text
}

// compareUUIDs: the guest has read its UUID when it started, and QEMU compares them with validate-uuid alone.
func compareUUIDs(src, dst *Facts, say func(problem, mend string)) {
	if src.UUID == dst.UUID {
		return
	}
	mend := "start the destination with -uuid " + src.UUID
	if src.UUID == "" {
		mend = "start the destination without -uuid"
	}
	say(fmt.Sprintf("UUIDs differ: source %s, destination %s: the guest finds another one after its next reset",
		cmp.Or(src.UUID, "none"), cmp.Or(dst.UUID, "none")), mend)
}

// compareNetwork looks at what is behind the network cards.
func compareNetwork(src, dst *Facts, doubt func(problem, mend string)) {
	there := byPath(dst.Devices)
	for _, d := range src.Devices {
		e, ok := there[d.Path]
		here, has := d.Properties["netdev"]
		if !ok || !has {
			continue
		}
		here, there := strings.Trim(here, `"`), strings.Trim(e.Properties["netdev"], `"`)
		a, b := src.Netdevs[here], dst.Netdevs[there]
		switch {
		case here != "" && there == "":
			doubt(fmt.Sprintf("network card %s has the backend %s on the source and none on the destination: the "+
				"guest loses its network", d, here), "start the destination with a -netdev for it")
		case d.Type == "virtio-net-device" && a == "tap" && b != "" && b != "tap" && !strings.HasPrefix(b, "vhost"):
			doubt(fmt.Sprintf("network card %s has a TAP on the source and a %s backend on the destination: QEMU "+
				"refuses it (\"saved image requires vnet_hdr=on\") unless the source's TAP has "+
				"vnet_hdr=off", d, b), "start the destination with a TAP too (-netdev tap)")
		}
	}
}

// compareFor says what keeps the guest from moving by this plan only.
func compareFor(src, dst *Facts, p Plan) (refusals, doubts []Mismatch) {
	refuse := func(problem, mend string) { refusals = append(refusals, Mismatch{problem, mend}) }
	doubt := func(problem, mend string) { doubts = append(doubts, Mismatch{problem, mend}) }
	if p.Capabilities["validate-uuid"] {
		compareUUIDs(src, dst, refuse)
	}
	if p.Capabilities["x-ignore-shared"] {
		compareShared(src, dst, refuse, doubt)
	}
	if p.Capabilities["postcopy-ram"] {
		comparePages(src, dst, refuse)
	}
	return refusals, doubts
}

// compare refuses a pair that will not do, by this plan, and notes what only might matter. What few plans and pairs need is asked for here.
func (m *migration) compare(ctx context.Context) error {
	src, dst := m.src.facts, m.dst.facts
	both := func(read func(context.Context, *qmp.Conn, *Facts) error) error {
		return together(ctx, func(ctx context.Context) error { return read(ctx, m.src.control, src) }, func(ctx context.Context) error { return read(ctx, m.dst.control, dst) })
	}
	if m.plan.Capabilities["x-ignore-shared"] {
		if err := both(readBackends); err != nil {
			return fmt.Errorf("ask for memory backends: %w", err)
		}
	}
	if src.Machine != dst.Machine {
		if err := both(readMachineTypes); err != nil {
			return fmt.Errorf("ask for machine types: %w", err)
		}
	}
	if !src.CPU.sameModel(dst.CPU) {
		if err := both(readIdentity); err != nil {
			return fmt.Errorf("ask for CPU models: %w", err)
		}
	}
	for i, d := range src.Disks {
		src.Disks[i].mirrored = slices.Contains(m.plan.Mirror.Nodes, d.Node)
	}
	exports, err := readExports(ctx, m.src.control)
	if err != nil {
		return fmt.Errorf("ask source %s for its exports: %w", m.src.ep.Name, err)
	}
	refusals, doubts := compareMachines(src, dst)
	more, warnings := compareFor(src, dst, m.plan)
	stops, states := sortOut(Conditions(src, dst, m.plan))
	refusals = slices.Concat(compareStates(src, dst), stops, refusals, more)
	switch len(refusals) {
	case 0:
	case 1:
		return refusals[0]
	default:
		return fmt.Errorf("%w (and %d more: see `qmigrate caps`)", refusals[0], len(refusals)-1)
	}
	for _, d := range slices.Concat(states, doubts, warnings) {
		m.rec.Warn("%s", d)
	}
	if len(exports) > 0 {
		m.rec.Warn("the source exports disks, and exports do not move with the guest: %s: start them on the destination "+
			"(nbd-server-start, block-export-add) and let their clients connect there", strings.Join(exports, ", "))
	}
	return nil
}
