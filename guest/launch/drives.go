package launch

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Medium is what one drive of a running QEMU holds now, which may not be what its command line says: a snapshot puts a
// layer on a disk, a commit or a mirror that was completed puts the guest on another file, and a CD is changed.
type Medium struct {
	Drive    string // QEMU's name of the drive: -drive's id, or what QEMU made up, such as ide2-cd0; "" if it has none
	Device   string // the guest's device: its id, or its path among QEMU's objects
	Empty    bool
	Told     string // the file as QEMU names it
	File     string // the same with its whole path; "" if it is on a server
	Block    bool   // File is a block device
	Format   string // raw, qcow2, ...
	ReadOnly bool
	Removed  bool // the file is in no folder any more: another QEMU cannot open it
	Known    bool // Removed is known
	Mirrored bool // it need not be the same on the destination
}

// presentDrives rewrites the drives to what they hold now: file and format together. Files that the caller maps stay as
// they are, and so does what cannot be read here: the caller compares what the destination opens with what the source
// has.
func (m *mover) presentDrives(words []word) (out []word) {
	d := &drives{mover: m, taken: map[string]bool{}, nodes: map[string]*node{}}
	for _, w := range words {
		d.word(w)
	}
	for _, u := range d.uses {
		d.node(u)
	}
	return d.words
}

// drives carries one presentDrives.
type drives struct {
	*mover
	taken     map[string]bool  // places of drives: "ide0.1"
	nodes     map[string]*node // by their names
	uses      []use
	anonymous int // devices without an id
	words     []word
}

// node is a -blockdev.
type node struct {
	at    int // in words
	value blockNode
}

// use is a device on a node.
type use struct {
	node, device string // device as its path among QEMU's objects
	id           string
}

// shorthand is what the options for one image mean. Source: system/vl.c, 7.2 to 10.0.
var shorthand = map[string]string{
	"-hda": "index=0,media=disk", "-hdb": "index=1,media=disk", "-hdc": "index=2,media=disk", "-hdd": "index=3,media=disk",
	"-cdrom": "index=2,media=cdrom", "-fda": "if=floppy,index=0", "-fdb": "if=floppy,index=1",
	"-pflash": "if=pflash", "-mtdblock": "if=mtd", "-sd": "if=sd",
}

func (d *drives) word(w word) {
	switch {
	case w.flag:
	case w.option == "":
		w = d.image(w, "index=0,media=disk")
	case shorthand[w.option] != "":
		w = d.image(w, shorthand[w.option])
	case w.option == "-drive":
		to, changed := d.drive(w, parseOptions(w.value))
		if changed {
			d.note(w.option, w.value, to, present)
		}
		w.value = to
	case w.option == "-blockdev":
		if n, ok := parseNode(w.value); ok {
			d.nodes[n.get("node-name")] = &node{len(d.words), n}
		}
	case w.option == "-device":
		n, ok := parseNode(w.value)
		id := n.get("id")
		path := "/machine/peripheral/" + id
		if id == "" {
			path = fmt.Sprintf("/machine/peripheral-anon/device[%d]", d.anonymous)
			d.anonymous++
		}
		if ok && n.get("drive") != "" {
			d.uses = append(d.uses, use{n.get("drive"), path, id})
		}
	}
	d.words = append(d.words, w)
}

const present = "what the source has there now"

// image is an option whose value is a file, and nothing else.
func (d *drives) image(w word, means string) word {
	to, changed := d.drive(w, append(parseOptions(means), pair{key: "file", value: w.value}))
	if !changed {
		return w
	}
	d.note(cmp.Or(w.option, "image"), w.value, "-drive "+to, present)
	return word{raw: "-drive", option: "-drive", value: to}
}

// drive is what a drive's options have to be.
func (d *drives) drive(w word, o options) (to string, changed bool) {
	name := d.name(o)
	file := strings.TrimPrefix(cmp.Or(o.get("file"), o.get("file.filename")), "file:")
	at := slices.IndexFunc(d.Media, func(m Medium) bool { return m.Drive != "" && m.Drive == name })
	if _, chosen := d.Paths[file]; chosen && file != "" || at < 0 {
		return w.value, false
	}
	m, temporary := d.Media[at], o.on("snapshot")
	switch {
	case m.Mirrored, !m.Empty && m.File == "":
		return w.value, false
	case m.Removed || temporary && !m.Known && !m.Empty:
		d.lost(w.option, w.value, m)
		return o.without("snapshot").String(), false
	case m.Empty && file == "", !m.Empty && m.Told == file && !temporary:
		return w.value, false
	}
	keep := o.without("file", "file.filename", "file.driver", "format", "driver", "snapshot", "readonly", "read-only")
	if !m.Empty {
		keep = append(keep, pair{key: "file", value: fileWord(m.File)}, pair{key: "format", value: m.Format})
		if m.ReadOnly && o.get("media") != "cdrom" {
			keep = append(keep, pair{key: "readonly", value: "on"})
		}
	}
	return keep.String(), true
}

// lost refuses a medium that no other QEMU can open. drive-mirror is no remedy: its target is temporary too if the disk
// is (seen on 7.2.22 to 11.1.3).
func (d *drives) lost(option, value string, m Medium) {
	d.refuse(option, value, "the guest writes to "+m.Told+", a file that is in no folder any more "+
		"(snapshot=on makes it so), and which no other QEMU can open: copy it into an image that stays "+
		"(blockdev-add of that, blockdev-mirror with sync=full, block-job-complete)")
}

// fileWord is a file's name in which QEMU finds no protocol.
func fileWord(file string) string {
	if i := strings.IndexAny(file, ":/"); i >= 0 && file[i] == ':' {
		return "file:" + file
	}
	return file
}

// name is how QEMU names a drive: by its id, or else by the place that it takes. Source: blockdev.c, drive_new; seen on
// 7.2.22 to 11.1.3.
func (d *drives) name(o options) string {
	kind, perBus := o.get("if"), 0
	switch {
	case kind == "" && (strings.HasPrefix(d.Machine, "pc-") || d.Machine == "isapc"):
		kind = "ide"
	case kind == "":
		kind = "none"
	}
	switch kind {
	case "ide":
		if perBus = 2; strings.Contains(d.Machine, "q35") {
			perBus = 1
		}
	case "scsi":
		perBus = 7
	}
	bus, unit := number(o.get("bus"), 0), number(o.get("unit"), -1)
	if index := number(o.get("index"), -1); index >= 0 {
		if unit = index; perBus > 0 {
			bus, unit = index/perBus, index%perBus
		}
	}
	place := func() string { return fmt.Sprintf("%s%d.%d", kind, bus, unit) }
	if unit < 0 {
		for unit = 0; d.taken[place()]; {
			if unit++; perBus > 0 && unit >= perBus {
				bus, unit = bus+1, unit-perBus
			}
		}
	}
	d.taken[place()] = true
	media := ""
	if kind == "ide" || kind == "scsi" {
		if media = "-hd"; o.get("media") == "cdrom" {
			media = "-cd"
		}
	}
	switch {
	case o.get("id") != "":
		return o.get("id")
	case perBus > 0:
		return fmt.Sprintf("%s%d%s%d", kind, bus, media, unit)
	}
	return fmt.Sprintf("%s%s%d", kind, media, unit)
}

func number(text string, other int) int {
	if n, err := strconv.Atoi(text); err == nil && n >= 0 {
		return n
	}
	return other
}

// node rewrites the block node under a device where the device has another image now.
func (d *drives) node(u use) {
	n, ok := d.nodes[u.node]
	at := slices.IndexFunc(d.Media, func(m Medium) bool {
		return m.Device != "" && (m.Device == u.id || m.Device == u.device || strings.HasPrefix(m.Device, u.device+"/"))
	})
	if !ok || at < 0 {
		return
	}
	m, format, file := d.Media[at], n.value.get("driver"), n.value.get("file.filename")
	if below, ok := d.nodes[n.value.get("file")]; ok {
		file = below.value.get("filename")
	}
	switch format {
	case "file", "host_device", "host_cdrom":
		format, file = "raw", n.value.get("filename")
	case "raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "luks", "parallels":
	default:
		return // a filter, or what has no file
	}
	_, chosen := d.Paths[file]
	switch {
	case file == "" || chosen || m.Mirrored || m.Empty || m.File == "":
		return
	case m.Removed:
		d.lost("-blockdev", d.words[n.at].value, m)
		return
	case m.Told == file && m.Format == format:
		return
	}
	to := n.value.rewritten(m)
	d.note("-blockdev", d.words[n.at].value, to, present)
	d.words[n.at].value = to
}

// blockNode is the value of a -blockdev or -device in either form; keys of the JSON form are joined by dots, as in the
// other.
type blockNode struct {
	options options
	json    map[string]any // nil in the other form
}

func parseNode(value string) (n blockNode, ok bool) {
	if !strings.HasPrefix(value, "{") {
		n.options = parseOptions(value)
		return n, true
	}
	return n, json.Unmarshal([]byte(value), &n.json) == nil
}

// get is a text; "" if there is none.
func (n blockNode) get(key string) string {
	if n.json == nil {
		return cmp.Or(n.options.get(key), map[bool]string{true: n.options.first()}[key == "driver"])
	}
	at := n.json
	for {
		head, tail, deeper := strings.Cut(key, ".")
		if !deeper {
			text, _ := at[head].(string)
			return text
		}
		below, ok := at[head].(map[string]any)
		if !ok {
			return ""
		}
		at, key = below, tail
	}
}

// kept are the settings of a node that are not about its format or file.
var kept = []string{"node-name", "read-only", "auto-read-only", "discard", "detect-zeroes", "force-share", "cache"}

// keptOfFile are those of the file's own node, where it stands in the same option.
var keptOfFile = []string{"file.aio", "file.locking", "file.cache.direct", "file.cache.no-flush", "file.discard"}

// rewritten is the node with another image.
func (n blockNode) rewritten(m Medium) string {
	driver := "file"
	if m.Block {
		driver = "host_device"
	}
	if n.json != nil {
		file := map[string]any{"driver": driver, "filename": m.File}
		if was, ok := n.json["file"].(map[string]any); ok {
			for _, key := range []string{"aio", "locking", "cache", "discard"} {
				if v, ok := was[key]; ok {
					file[key] = v
				}
			}
		}
		to := map[string]any{"driver": m.Format, "file": file}
		for _, key := range kept {
			if v, ok := n.json[key]; ok {
				to[key] = v
			}
		}
		text, err := json.Marshal(to)
		if err != nil {
			panic(err) // it was JSON
		}
		return string(text)
	}
	to := options{{key: "driver", value: m.Format}}
	for _, p := range n.options {
		head, _, _ := strings.Cut(p.key, ".")
		if slices.Contains(kept, head) || slices.Contains(keptOfFile, p.key) {
			to = append(to, p)
		}
	}
	return append(to, pair{key: "file.driver", value: driver}, pair{key: "file.filename", value: m.File}).String()
}
