package launch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Plugged is what the source's monitor plugged in and out since the source started.
type Plugged struct {
	// Added are the options that stand for what was plugged in, backends before the devices on them.
	Added []Added
	// Devices are those of the source's command line that it still has, by id (device[0], device[1], ... without one):
	// where on its bus each is, as -device takes it; nil: all.
	Devices map[string]map[string]any
	// Backends are the ids of all that the source has, by option: -netdev, -drive, -blockdev, -object.
	Backends map[string][]string
}

// Added is an option for what was plugged in.
type Added struct {
	Option, ID string
	Value      string
	Device     string // the device that this is, or which uses it: "virtio-net-pci nic2"
	Over       string // the block node that it is a layer over; "" if there is none, or none with a name
	Reason     string // why the destination cannot have it; "" if it can
	Lost       string // what of it cannot be known; "" if nothing
}

// plugged leaves out what the source has no more, and adds what it was given.
func (m *mover) plugged(words []word) (all []word) {
	names, lost, order := map[string]bool{}, map[string][]string{}, []string(nil)
	unplugged, ids := m.unplugged(words)
	for i, w := range words {
		if unplugged[i] {
			m.note(w.option, w.value, "", "it was unplugged from the source")
			continue
		}
		if place := m.Plugged.Devices[ids[i]]; len(unplugged) > 0 && len(place) > 0 { // QEMU would give it another place
			to := placed(w.value, place)
			m.note(w.option, w.value, to, "where the source has it")
			w.value = to
		}
		all = append(all, w)
		if v, err := parseValue(w.value); err == nil {
			for _, key := range []string{"id", "node-name", "file.node-name"} {
				names[w.option+" "+v.get(key)] = true
			}
		}
	}
	for _, a := range m.Plugged.Added {
		switch {
		case a.ID != "" && (names[a.Option+" "+a.ID] || a.Option == "-blockdev" && names["-drive "+a.ID]):
			// a backend of the command line
		case a.Reason != "", a.Over != "" && names["-blockdev "+a.Over]:
			if a.Reason == "" { // two nodes would write to that image
				a.Reason = "a layer over " + a.Over + ", which another option names, cannot be opened beside it"
			}
			m.device = a.Device
			m.refuse(a.Option, a.ID, a.Reason+": start the destination yourself")
			m.device = ""
		default:
			m.note(a.Option, "", a.Value, "plugged in while the source ran")
			if a.Lost != "" {
				if lost[a.Lost] == nil {
					order = append(order, a.Lost)
				}
				lost[a.Lost] = append(lost[a.Lost], a.Device)
			}
			all = append(all, word{raw: a.Option, option: a.Option, value: a.Value, plugged: a.Device})
		}
	}
	for _, what := range order {
		m.doubts = append(m.doubts, fmt.Sprintf("%s: plugged in while the source ran, and QEMU does not tell %s: "+
			"the destination has the defaults", strings.Join(lost[what], ", "), what))
	}
	return all
}

// placed is a -device with its place on the bus.
func placed(value string, place map[string]any) string {
	if strings.HasPrefix(value, "{") {
		all := map[string]any{}
		d := json.NewDecoder(strings.NewReader(value))
		d.UseNumber()
		if d.Decode(&all) != nil {
			return value
		}
		for key, v := range place {
			if _, ok := all[key]; !ok {
				all[key] = v
			}
		}
		text, err := json.Marshal(all)
		if err != nil {
			panic(err) // it was JSON
		}
		return string(text)
	}
	o := parseOptions(value)
	for _, key := range slices.Sorted(maps.Keys(place)) {
		if o.get(key) == "" {
			o = append(o, pair{key: key, value: fmt.Sprint(place[key])})
		}
	}
	return o.String()
}

// unplugged tells which words the source has no more: devices, and the backends of these that are gone too. ids are
// those of the words that are devices.
func (m *mover) unplugged(words []word) (gone map[int]bool, ids map[int]string) {
	gone, ids = map[int]bool{}, map[int]string{}
	if m.Plugged.Devices == nil {
		return gone, ids
	}
	backends := map[string]bool{} // that devices used which are gone
	drop := func(i int, o options) {
		gone[i] = true
		for _, p := range o {
			switch p.key {
			case "netdev", "drive", "memdev", "rng", "iothread", "file", "backing":
				backends[p.value] = true
			}
		}
	}
	count := 0
	for i, w := range words {
		v, err := parseValue(w.value)
		switch id := v.get("id"); {
		case w.option == "-virtfs": // its device has no id
			count++
			continue
		case w.option != "-device" || err != nil, id == "" && v.json != nil: // QEMU counts these last
			continue
		case v.get("failover_pair_id") != "": // QEMU plugs it in when the guest asks for it
			continue
		case id != "":
			ids[i] = id
		default:
			ids[i] = fmt.Sprintf("device[%d]", count)
			count++
		}
		if _, has := m.Plugged.Devices[ids[i]]; !has {
			drop(i, v.options)
		}
	}
	for again := len(gone) > 0; again; {
		again = false
		for i, w := range words {
			has, known := m.Plugged.Backends[w.option]
			v, err := parseValue(w.value)
			if !known || err != nil || gone[i] {
				continue
			}
			id := v.get("id")
			if w.option == "-blockdev" {
				id = v.get("node-name")
			}
			if backends[id] && !slices.Contains(has, id) {
				drop(i, v.options)
				again = true
			}
		}
	}
	return gone, ids
}
