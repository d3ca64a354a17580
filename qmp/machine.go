package qmp

import "context"

// HumanMonitor runs a command of the human monitor. Its answer is text for people, which QEMU may change with any
// version.
func (c *Conn) HumanMonitor(ctx context.Context, line string) (string, error) {
	var text string
	err := c.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &text)
	return text, err
}

// RAMBlocks is the table of the guest's memory blocks, as text for people. The command is marked as unstable; 6.2 and
// later have it.
func (c *Conn) RAMBlocks(ctx context.Context) (string, error) {
	var r struct {
		Text string `json:"human-readable-text"`
	}
	err := c.Execute(ctx, "x-query-ramblock", nil, &r)
	return r.Text, err
}

// Property reads one property of an object in QEMU's tree into value.
func (c *Conn) Property(ctx context.Context, path, property string, value any) error {
	return c.Execute(ctx, "qom-get", map[string]string{"path": path, "property": property}, value)
}

// BlockDevice is one of the guest's drives. Source: qapi/block-core.json, BlockInfo.
type BlockDevice struct {
	Device    string       `json:"device"` // the drive's name; "" if it has only a node
	Path      string       `json:"qdev"`   // the guest's device: its id, or its path in QOM; "" if it is on none
	Removable bool         `json:"removable"`
	Inserted  *BlockMedium `json:"inserted"` // nil: there is none
}

// BlockMedium is what is in a drive. Source: qapi/block-core.json, BlockDeviceInfo.
type BlockMedium struct {
	Node     string `json:"node-name"`
	File     string `json:"file"`
	Driver   string `json:"drv"`
	ReadOnly bool   `json:"ro"`
	Bitmaps  []struct {
		Name       string `json:"name"`
		Persistent bool   `json:"persistent"`
	} `json:"dirty-bitmaps"`
	Cache struct {
		Direct bool `json:"direct"`
	} `json:"cache"`
	Image     BlockImage `json:"image"`
	Threshold int64      `json:"write_threshold"` // bytes; 0: none
	Throttle
}

// BlockImage is an image and, under it, the one that it is based on. Source: qapi/block-core.json, ImageInfo.
type BlockImage struct {
	File        string      `json:"filename"`
	Format      string      `json:"format"`
	VirtualSize int64       `json:"virtual-size"` // bytes
	Backing     *BlockImage `json:"backing-image"`
}

// Throttle is how much a drive may do: bytes or requests a second, 0 for no limit, and how long more of them; the
// same names that block_set_io_throttle takes. Source: qapi/block-core.json, BlockIOThrottle.
type Throttle struct {
	BPS      int64  `json:"bps"`
	BPSRd    int64  `json:"bps_rd"`
	BPSWr    int64  `json:"bps_wr"`
	IOPS     int64  `json:"iops"`
	IOPSRd   int64  `json:"iops_rd"`
	IOPSWr   int64  `json:"iops_wr"`
	BPSMax   int64  `json:"bps_max,omitempty"`
	BPSRdMax int64  `json:"bps_rd_max,omitempty"`
	BPSWrMax int64  `json:"bps_wr_max,omitempty"`
	MaxIOPS  int64  `json:"iops_max,omitempty"`
	MaxRd    int64  `json:"iops_rd_max,omitempty"`
	MaxWr    int64  `json:"iops_wr_max,omitempty"`
	BPSLen   int64  `json:"bps_max_length,omitempty"` // seconds
	BPSRdLen int64  `json:"bps_rd_max_length,omitempty"`
	BPSWrLen int64  `json:"bps_wr_max_length,omitempty"`
	IOPSLen  int64  `json:"iops_max_length,omitempty"`
	RdLen    int64  `json:"iops_rd_max_length,omitempty"`
	WrLen    int64  `json:"iops_wr_max_length,omitempty"`
	IOPSSize int64  `json:"iops_size,omitempty"` // bytes
	Group    string `json:"group,omitempty"`
}

// BlockDevices lists the guest's drives.
func (c *Conn) BlockDevices(ctx context.Context) ([]BlockDevice, error) {
	var list []BlockDevice
	err := c.Execute(ctx, "query-block", nil, &list)
	return list, err
}

// CPUSlot is a place for a CPU. Source: qapi/machine.json, HotpluggableCPU.
type CPUSlot struct {
	Type  string           `json:"type"`
	Path  string           `json:"qom-path"` // of the CPU that is in it; "" if it is empty
	Place map[string]int64 `json:"props"`    // socket-id, core-id, thread-id, ...
}

// CPUSlots lists the places for CPUs, the taken ones included.
func (c *Conn) CPUSlots(ctx context.Context) ([]CPUSlot, error) {
	var list []CPUSlot
	err := c.Execute(ctx, "query-hotpluggable-cpus", nil, &list)
	return list, err
}

// FeatureWord is one register of CPUID as a CPU of the guest shows it. Source: qapi/machine-target.json,
// X86CPUFeatureWordInfo.
type FeatureWord struct {
	EAX      int64  `json:"cpuid-input-eax"`
	ECX      int64  `json:"cpuid-input-ecx"`
	Register string `json:"cpuid-register"`
	Features int64  `json:"features"`
}

// MemoryBackend is a memory backend. Source: qapi/machine.json, Memdev.
type MemoryBackend struct {
	ID    string `json:"id"`
	Bytes int64  `json:"size"`
	Share bool   `json:"share"`
}

// MemoryBackends lists the memory backends.
func (c *Conn) MemoryBackends(ctx context.Context) ([]MemoryBackend, error) {
	var list []MemoryBackend
	err := c.Execute(ctx, "query-memdev", nil, &list)
	return list, err
}

// MemoryDevice is memory that was plugged in. Source: qapi/machine.json, MemoryDeviceInfo.
type MemoryDevice struct {
	Type string `json:"type"` // dimm, nvdimm, virtio-pmem, virtio-mem, ...
	Data struct {
		ID      string `json:"id"`
		Memdev  string `json:"memdev"` // the QOM path of its backend
		Size    int64  `json:"size"`   // bytes
		Slot    int64  `json:"slot"`
		Node    int64  `json:"node"`
		Addr    int64  `json:"addr"`    // of a DIMM
		Memaddr int64  `json:"memaddr"` // of the virtio devices
	} `json:"data"`
}

// MemoryDevices lists what was plugged in as memory.
func (c *Conn) MemoryDevices(ctx context.Context) ([]MemoryDevice, error) {
	var list []MemoryDevice
	err := c.Execute(ctx, "query-memory-devices", nil, &list)
	return list, err
}
