package beside

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/qmp"
)

// openNode is a block node that a QEMU has open. Source: qapi/block-core.json, BlockDeviceInfo.
type openNode struct {
	Name      string         `json:"node-name"`
	Driver    string         `json:"drv"`
	ReadOnly  bool           `json:"ro"`
	Zeroes    string         `json:"detect_zeroes"`
	Encrypted bool           `json:"encrypted"`
	Image     qmp.BlockImage `json:"image"`
	Cache     struct {
		Direct  bool `json:"direct"`
		NoFlush bool `json:"no-flush"`
	} `json:"cache"`
}

// readBehind reads what devices are made of: disks, networks, character devices, objects, places for CPUs.
func (p *plugReader) readBehind(ctx context.Context) error {
	var chardevs []struct {
		Label string `json:"label"`
		File  string `json:"filename"`
	}
	var objects []property
	var tree string
	ask := func(command string, arguments, answer any) func(context.Context) error {
		return func(ctx context.Context) error {
			return facts.Optional(p.conn.Execute(ctx, command, arguments, answer))
		}
	}
	tell := func(line string, answer *string) func(context.Context) error {
		return func(ctx context.Context) (err error) {
			*answer, err = p.conn.HumanMonitor(ctx, line)
			return facts.Optional(err)
		}
	}
	err := facts.Together(ctx, ask("query-block", nil, &p.blocks), ask("query-named-block-nodes", nil, &p.nodes),
		ask("query-chardev", nil, &chardevs), ask("query-hotpluggable-cpus", nil, &p.cpus),
		ask("qom-list", map[string]string{"path": "/objects"}, &objects), tell("info qtree", &tree),
		tell("info network", &p.network), tell("info usernet", &p.forwards))
	p.devices, p.chardevs, p.objects = facts.ParseDevices(tree), map[string]string{}, map[string]string{}
	for _, c := range chardevs {
		p.chardevs[c.Label] = c.File
	}
	for _, o := range objects {
		if kind, ok := strings.CutPrefix(o.Type, "child<"); ok {
			p.objects[o.Name] = strings.TrimSuffix(kind, ">")
		}
	}
	p.Backends["-blockdev"], p.Backends["-drive"] = []string{}, []string{}
	for _, n := range p.nodes {
		p.Backends["-blockdev"] = append(p.Backends["-blockdev"], n.Name)
	}
	for _, b := range p.blocks {
		p.Backends["-drive"] = append(p.Backends["-drive"], b.Device)
	}
	p.Backends["-object"] = slices.AppendSeq([]string{}, maps.Keys(p.objects))
	kinds, _ := facts.ParseNetdevs(p.network)
	p.Backends["-netdev"] = slices.AppendSeq([]string{}, maps.Keys(kinds))
	return err
}

// drive is the name of what is in a device's drive: as its property says, or of the disk that a USB stick is made of.
// "" leaves it empty: CarryOver puts a medium without a name into it.
func (p *plugReader) drive(d plugged, property string) string {
	for _, b := range p.blocks {
		of := b.Path == d.path || b.Path == d.id && d.id != "" || strings.HasPrefix(b.Path, d.path+"/")
		switch unnamed := property == "" || strings.HasPrefix(property, "#"); {
		case !of || !unnamed || b.Inserted == nil:
		case b.Removable && b.Device == "":
			return ""
		default:
			return cmp.Or(b.Device, b.Inserted.Node)
		}
	}
	return property
}

// objectTypes are the objects whose settings can all be read and had twice.
var objectTypes = []string{"memory-backend-ram", "memory-backend-memfd", "memory-backend-file", "rng-random",
	"rng-builtin", "iothread"}

// unset are the properties of objects whose 0 means that they are not set, and cannot be.
var unset = []string{"hugetlbsize", "align", "offset"}

// noSettings are properties of objects that cannot be set, or that only the newest QEMU knows and no guest sees.
var noSettings = []string{"type", "opened", "poll-weight"}

func (p *plugReader) addObject(ctx context.Context, id string) error {
	kind := p.objects[id]
	value := map[string]any{"qom-type": kind, "id": id}
	if !slices.Contains(objectTypes, kind) {
		p.word(Word{Option: "-object", ID: id, Reason: "an object of this type cannot be read back, or had twice"}, value)
		return nil
	}
	path := "/objects/" + id
	var all []property
	if err := p.conn.Execute(ctx, "qom-list", map[string]string{"path": path}, &all); err != nil {
		return facts.Optional(err)
	}
	for _, t := range all {
		if slices.Contains(noSettings, t.Name) || strings.HasPrefix(t.Name, "x-") || strings.Contains(t.Type, "<") {
			continue
		}
		v, err := p.get(ctx, path, t.Name)
		if err != nil {
			return err
		}
		list, isList := v.([]any)
		if v == nil || v == "" || isList && len(list) == 0 || v == json.Number("0") && slices.Contains(unset, t.Name) {
			continue
		}
		value[t.Name] = v
	}
	p.word(Word{Option: "-object", ID: id}, value)
	return nil
}

// addNode adds what is in a drive, and returns its name. A backing file is found by the image that is based on it.
func (p *plugReader) addNode(node string) (name string) {
	name = strings.TrimPrefix(node, "#") // which only QEMU gives
	w := Word{Option: "-blockdev", ID: name, Lost: "discard= and aio= of what is in it"}
	for _, b := range p.blocks {
		if b.Device == name && b.Inserted != nil { // of drive_add: the guest may know it by that name
			w.Option, node = "-drive", b.Inserted.Node
		}
	}
	i := slices.IndexFunc(p.nodes, func(n openNode) bool { return n.Name == node })
	if i < 0 {
		return name // nothing is in it
	}
	n := p.nodes[i]
	for _, below := range p.nodes {
		if b := n.Image.Backing; b != nil && below.Image.File == b.File && below.Driver == b.Format &&
			!strings.HasPrefix(below.Name, "#") {
			w.Over = below.Name
		}
	}
	value := map[string]any{}
	text, whole := strings.CutPrefix(n.Image.File, "json:")
	file := facts.LocalFile(n.Image.File)
	switch isFormat := n.Driver == "raw" || facts.IsFormat(n.Driver); {
	case facts.IsFilter(n.Driver) || n.Encrypted:
		w.Reason = "a disk that is encrypted, or behind a filter such as throttle, cannot be read back"
	case whole && json.Unmarshal([]byte(text), &value) == nil: // how QEMU would open it again
	case file != "" && isFormat:
		value["driver"], value["file"] = n.Driver, map[string]any{"driver": p.protocol(file), "filename": file}
	case file != "":
		value["driver"], value["filename"] = n.Driver, file
	default:
		w.Reason = "a disk that is in no file of this host cannot be read back"
	}
	value["node-name"], value["read-only"] = name, n.ReadOnly
	value["cache"] = map[string]bool{"direct": n.Cache.Direct, "no-flush": n.Cache.NoFlush}
	if n.Zeroes != "off" {
		value["detect-zeroes"] = n.Zeroes
	}
	if w.Option == "-drive" {
		w.Value = fmt.Sprintf("if=none,id=%s,file=%s,readonly=%s,cache.direct=%s,cache.no-flush=%s,detect-zeroes=%s",
			escape(name), escape(n.Image.File), onOff(n.ReadOnly), onOff(n.Cache.Direct), onOff(n.Cache.NoFlush),
			cmp.Or(n.Zeroes, "off"))
		if !whole {
			w.Value += ",format=" + n.Driver
		}
	}
	p.word(w, value)
	return name
}

// escape is a value as QEMU's options take it.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// protocol is the driver of the node under a format's.
func (p *plugReader) protocol(file string) string {
	for _, n := range p.nodes {
		if n.Driver == "host_device" && facts.LocalFile(n.Image.File) == file {
			return n.Driver
		}
	}
	return "file"
}

func (p *plugReader) addChardev(label string) {
	w := Word{Option: "-chardev", ID: label}
	switch kind, _, _ := strings.Cut(p.chardevs[label], ":"); kind {
	case "null", "pty":
		w.Value = kind + ",id=" + escape(label) // it takes no JSON
	default:
		w.Reason = "a character device that was made while the source ran (" + p.chardevs[label] + ") cannot be read back"
	}
	p.word(w, nil)
}

// addNetdev adds a network backend as `info network` tells it.
func (p *plugReader) addNetdev(id string) {
	var told []string
	for line := range strings.Lines(p.network) {
		if rest, ok := strings.CutPrefix(strings.Trim(line, " \\\r\n"), id+": "); ok {
			told = append(told, rest)
		}
	}
	value := map[string]any{"id": id}
	settings := map[string]string{}
	for part := range strings.SplitSeq(strings.Join(told, ","), ",") {
		name, setting, _ := strings.Cut(part, "=")
		settings[name] = setting
	}
	w := Word{Option: "-netdev", ID: id}
	switch kind := settings["type"]; {
	case kind == "user":
		value["type"], value["restrict"] = kind, settings["restrict"] == "on"
		if net := settings["net"]; net != "10.0.2.0" { // QEMU's default; to a network without a mask it gives its class's
			value["net"] = net + "/24"
		}
		if all := forwards(p.forwards, id); len(all) > 0 {
			value["hostfwd"] = all
		}
		w.Lost = "its options but for restrict=, hostfwd= and net= (without the mask)"
	case kind == "tap" && settings["ifname"] != "" && len(told) == 1:
		value["type"], value["ifname"] = kind, settings["ifname"]
		value["script"], value["downscript"] = cmp.Or(settings["script"], "no"), cmp.Or(settings["downscript"], "no")
		w.Lost = "vhost= and sndbuf= of the TAP"
	default:
		w.Reason = "a network backend of type " + kind + " that was made while the source ran cannot be read back"
	}
	p.word(w, value)
}

// forwards reads the ports of the host that lead to the guest, as -netdev user takes them:
//
//	Hub -1 (n1):
//	  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
//	  TCP[HOST_FORWARD]  11       127.0.0.1 33461       10.0.2.15    22     0     0
//
// Seen on 7.2.22, 10.0.2 and 11.1.3.
func forwards(text, netdev string) (all []map[string]string) {
	here := false
	for line := range strings.Lines(text) {
		if strings.HasSuffix(strings.TrimSpace(line), "):") {
			here = strings.Contains(line, "("+netdev+"):")
			continue
		}
		f := strings.Fields(line)
		if !here || len(f) < 6 || !strings.HasSuffix(f[0], "[HOST_FORWARD]") {
			continue
		}
		host := f[2]
		if _, err := netip.ParseAddr(host); err != nil { // * is every address
			host = ""
		}
		network := strings.ToLower(strings.TrimSuffix(f[0], "[HOST_FORWARD]"))
		all = append(all, map[string]string{"str": network + ":" + host + ":" + f[3] + "-" + f[4] + ":" + f[5]})
	}
	return all
}
