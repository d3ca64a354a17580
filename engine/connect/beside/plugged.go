package beside

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/qmp"
)

// Plugged is how the devices of a QEMU differ from those of its command line: what its monitor plugged in and out.
type Plugged struct {
	// Added are the options that stand for what was plugged in, in an order in which QEMU can take them. The command
	// line may have the backends among them already, by their ids.
	Added []Word
	// Devices are those that the guest had when it started, by id: where on its bus each is, as -device takes it. One of
	// the command line that is not here was unplugged, even where its id was given to another one later. A device without
	// an id is device[0], device[1], ... as QEMU names it. nil: not known.
	Devices map[string]map[string]any
	// Backends are the ids of all backends, by option: -netdev, -drive, -blockdev, -object.
	Backends map[string][]string
}

// Word is an option of QEMU's command line that stands for what its monitor was told.
type Word struct {
	Option, ID string // -device; "" if it has none
	Value      string // as JSON, where the option takes that
	Device     string // the device that was plugged in, which this is or which uses it
	Over       string // the node of the image that this one is based on; "" if it has none, or QEMU named it
	Reason     string // why it cannot be had twice; "" if it can
	Lost       string // what of it QEMU does not let be read; "" if nothing
}

// readPlugged asks a QEMU what was plugged in and out since it started. Where another QEMU is to have the devices,
// machine is the type of both machines: what that type sets for old guests is left to it, because a QEMU of another
// version may not know its name. QEMU needs up to 80 ms to tell (10.0.2), so otherwise machine is "".
func readPlugged(ctx context.Context, e *endpoint.Endpoint, machine string, o plan.Options) (*Plugged, error) {
	conn, err := e.Talk(ctx, e.Control, "", qmp.Options{Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, facts.ReadLimit)
	defer cancel()
	p := &plugReader{conn: conn, done: map[string]bool{}, compat: map[string]any{}}
	p.Backends = map[string][]string{}
	if err := p.read(ctx, machine); err != nil {
		return nil, fmt.Errorf("ask %s for its devices: %w", e.Name, err)
	}
	return &p.Plugged, nil
}

// plugReader carries one ReadPlugged.
type plugReader struct {
	Plugged
	conn     *qmp.Conn
	plugged  []plugged // all of them
	devices  []facts.Device
	blocks   []qmp.BlockDevice
	nodes    []openNode
	chardevs map[string]string // label: what it is
	objects  map[string]string // id: type
	network  string            // info network
	forwards string            // info usernet
	cpus     []qmp.CPUSlot
	compat   map[string]any  // what the machine type sets
	done     map[string]bool // option and id of words
	device   string          // that is at hand
}

// property is one of QOM's. Source: qapi/qom.json, ObjectPropertyInfo.
type property struct {
	Name    string          `json:"name"`
	Type    string          `json:"type"`
	Default json.RawMessage `json:"default-value"`
}

// plugged is a device of -device or device_add.
type plugged struct {
	path, name string // name is the last part of its path
	id, kind   string
	bus        string // its bus's path; "" if it has none
	later      bool   // it was plugged in while the guest ran
	place      map[string]any
}

// The paths of devices that -device and device_add made: by their ids, and in the order of their making.
const (
	peripheral = "/machine/peripheral"
	anonymous  = "/machine/peripheral-anon"
)

func (p *plugReader) read(ctx context.Context, machine string) error {
	for _, root := range []string{peripheral, anonymous} {
		var children []property
		if err := p.conn.Execute(ctx, "qom-list", map[string]string{"path": root}, &children); err != nil {
			return facts.Optional(err)
		}
		for _, c := range children {
			kind, ok := strings.CutPrefix(c.Type, "child<")
			if !ok {
				continue
			}
			d := plugged{path: root + "/" + c.Name, name: c.Name, kind: strings.TrimSuffix(kind, ">")}
			if root == peripheral {
				d.id = c.Name
			}
			bus, err := p.get(ctx, d.path, "parent_bus")
			if err != nil {
				return err
			}
			d.bus, _ = bus.(string)
			later, err := p.get(ctx, d.path, "hotplugged")
			if err != nil {
				return err
			}
			d.later = later == true
			p.plugged = append(p.plugged, d)
		}
	}
	if err := p.readBehind(ctx); err != nil {
		return err
	}
	p.Devices = map[string]map[string]any{}
	for i, d := range p.plugged {
		place, err := p.place(ctx, d)
		if err != nil {
			return err
		}
		if p.plugged[i].place = place; !d.later {
			p.Devices[d.name] = place
		}
	}
	if machine != "" && len(p.Devices) < len(p.plugged) {
		if err := p.readMachine(ctx, machine); err != nil {
			return err
		}
	}
	p.sort()
	for _, d := range p.plugged {
		if !d.later {
			continue
		}
		if err := p.add(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// readMachine reads the switches that a machine type sets for old guests. QEMU 9.1 and newer tell.
func (p *plugReader) readMachine(ctx context.Context, machine string) error {
	var all []struct {
		Name  string `json:"name"`
		Props []struct {
			Property string `json:"property"`
			Value    string `json:"value"`
		} `json:"compat-props"`
	}
	err := p.conn.Execute(ctx, "query-machines", map[string]bool{"compat-props": true}, &all)
	for _, m := range all {
		for _, c := range m.Props {
			switch {
			case m.Name != machine:
			case c.Value == "on" || c.Value == "true":
				p.compat[c.Property] = true
			case c.Value == "off" || c.Value == "false":
				p.compat[c.Property] = false
			}
		}
	}
	return facts.Optional(err)
}

// sort puts a device behind the one that has its bus, or the USB hub that has its port.
func (p *plugReader) sort() {
	var depth func(d plugged) int
	depth = func(d plugged) int {
		i := slices.IndexFunc(p.plugged, func(e plugged) bool { return strings.HasPrefix(d.bus, e.path+"/") })
		if i < 0 {
			return strings.Count(p.port(d), ".")
		}
		return depth(p.plugged[i]) + 1 + strings.Count(p.port(d), ".")
	}
	depths := map[string]int{}
	for _, d := range p.plugged {
		depths[d.path] = depth(d)
	}
	slices.SortFunc(p.plugged, func(a, b plugged) int {
		return cmp.Or(cmp.Compare(depths[a.path], depths[b.path]), a.compare(b))
	})
}

// compare is in the order in which devices without an id were made: device[2] comes before device[10].
func (d plugged) compare(e plugged) int {
	return cmp.Or(cmp.Compare(len(d.path), len(e.path)), cmp.Compare(d.path, e.path))
}

// get is a property's value, numbers as QEMU wrote them; nil where it cannot be read.
func (p *plugReader) get(ctx context.Context, path, property string) (value any, err error) {
	var text json.RawMessage
	err = p.conn.Execute(ctx, "qom-get", map[string]string{"path": path, "property": property}, &text)
	return decoded(text), facts.Optional(err)
}

func decoded(text json.RawMessage) (value any) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if d.Decode(&value) != nil {
		return nil
	}
	return value
}

// word adds an option, once.
func (p *plugReader) word(w Word, value map[string]any) {
	if w.ID != "" && p.done[w.Option+" "+w.ID] {
		return
	}
	p.done[w.Option+" "+w.ID] = true
	if w.Device = p.device; w.Value == "" {
		text, err := json.Marshal(value)
		if err != nil {
			panic(err) // it was JSON
		}
		w.Value = string(text)
	}
	p.Added = append(p.Added, w)
}

// Properties that are no settings: the host finds them, or they are what a device of the machine type has anyway.
var foundProperties = []string{"busnr", "cyls", "heads", "secs", "lcyls", "lheads", "lsecs", "romsize", "pcap",
	"parent_bus", "attached", "vhostfd"}

// add adds the options of a device and those of what it uses.
func (p *plugReader) add(ctx context.Context, d plugged) error {
	p.device = strings.TrimSpace(d.kind + " " + d.id)
	value := map[string]any{"driver": d.kind}
	if d.id != "" {
		value["id"] = d.id
	}
	for _, slot := range p.cpus {
		if slot.Path == d.path {
			for name, n := range slot.Place { // its features are those of -cpu
				value[name] = n
			}
			p.word(Word{Option: "-device", ID: d.id}, value)
			return nil
		}
	}
	maps.Copy(value, d.place)
	if d.bus != "" {
		value["bus"] = d.busName()
	}
	var all []property
	if err := p.conn.Execute(ctx, "device-list-properties", map[string]string{"typename": d.kind}, &all); err != nil {
		return facts.Optional(err)
	}
	card := slices.ContainsFunc(all, func(t property) bool { return t.Name == "netdev" })
	for _, t := range all {
		if _, ok := value[t.Name]; ok || strings.HasPrefix(t.Name, "x-") || slices.Contains(foundProperties, t.Name) {
			continue
		}
		v, err := p.get(ctx, d.path, t.Name)
		if err != nil {
			return err
		}
		text, isText := v.(string)
		switch {
		case v == nil: // a device need not let a property be read
		case t.Name == "drive":
			if drive := p.drive(d, text); drive != "" {
				value["drive"] = p.addNode(drive)
			}
		case t.Name == "bootindex":
			if number, ok := v.(json.Number); ok && number != "-1" {
				value[t.Name] = v
			}
		case t.Name == "iothread-vq-mapping":
			list, _ := v.([]any)
			for _, e := range list {
				m, _ := e.(map[string]any)
				if err := p.addObject(ctx, fmt.Sprint(m["iothread"])); err != nil {
					return err
				}
				value[t.Name] = v
			}
		case strings.HasPrefix(t.Type, "link<"):
			id, ok := strings.CutPrefix(text, "/objects/")
			if !ok {
				continue
			}
			value[t.Name] = id
			if err := p.addObject(ctx, id); err != nil {
				return err
			}
		case t.Default == nil && !isText, reflect.DeepEqual(decoded(t.Default), v), strings.HasPrefix(t.Type, "child<"):
		case v == p.compat[t.Name]: // or anyway there, and not of this type: the pair check compares
		case v == "" && (t.Name != "romfile" || !card): // a network card's ROM can be taken away
		default:
			value[t.Name] = v
			switch t.Name {
			case "netdev":
				p.addNetdev(text)
			case "chardev":
				p.addChardev(text)
			}
		}
	}
	p.word(Word{Option: "-device", ID: d.id}, value)
	return nil
}

// places are the properties that say where on its bus a device is, by the bus's type; memory has no bus.
var places = map[string][]string{"PCI": {"addr"}, "PCIE": {"addr"}, "usb-bus": {"port"},
	"SCSI": {"channel", "scsi-id", "lun"}, "IDE": {"unit"}, "virtio-serial-bus": {"nr"}, "": {"addr", "slot"}}

// place is where on its bus a device is, as -device takes it; empty where its bus has no places.
func (p *plugReader) place(ctx context.Context, d plugged) (map[string]any, error) {
	kind := ""
	if i := slices.IndexFunc(p.devices, func(e facts.Device) bool { return e.Type == d.kind && e.ID == d.id }); i >= 0 {
		kind = p.devices[i].Bus
	}
	place := map[string]any{}
	for _, name := range places[kind] {
		if name == "port" {
			if port := p.port(d); port != "" {
				place[name] = port
			}
			continue
		}
		v, err := p.get(ctx, d.path, name)
		if err != nil {
			return nil, err
		}
		number, ok := v.(json.Number)
		if n, err := number.Int64(); ok && err == nil && strings.HasPrefix(kind, "PCI") {
			place[name] = fmt.Sprintf("%02x.%x", n>>3, n&7)
		} else if ok {
			place[name] = v
		}
	}
	if len(place) > 0 && d.bus != "" {
		place["bus"] = d.busName()
	}
	return place, nil
}

func (d plugged) busName() string { return d.bus[strings.LastIndex(d.bus, "/")+1:] }

// port is where a USB device is plugged in. QEMU names the newest device of a bus first.
func (p *plugReader) port(d plugged) string {
	newer := 0
	for _, e := range p.plugged {
		if d.id == "" && e.id == "" && e.kind == d.kind && e.compare(d) > 0 {
			newer++
		}
	}
	for _, e := range p.devices {
		if e.Bus != "usb-bus" || e.Type != d.kind || e.ID != d.id {
			continue
		}
		if newer == 0 {
			return e.Address
		}
		newer--
	}
	return ""
}
