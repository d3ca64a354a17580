// Package launch makes the command line of a migration's destination from that of its source.
//
// It knows what QEMU's options take (files, sockets, ports, devices), so that the destination takes nothing that the
// source holds. It starts nothing: guest.StartIncoming does.
package launch

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"qmigrate/guest"
	"qmigrate/guest/debian"
)

// Options say how the destination of a QEMU differs from its source.
type Options struct {
	Dir          string            // folder on the destination for all that QEMU creates (sockets, pid file, logs); needed
	QEMU         string            // another binary; default the source's
	Machine      string            // the source's machine type as its monitor names it ("pc-q35-7.2"); default as its command line has it, which may be an alias
	Paths        map[string]string // path of the source's: the destination's, instead of one in Dir. A path mapped to itself stays
	TAPs         map[string]string // TAP interface of the source's: the destination's
	Ports        map[string]string // TCP or UDP port of the source's: the destination's
	OtherNetwork bool              // the destination is in another network namespace or machine: the same ports and interface names are free there
}

// Change is one difference between the two command lines, for people to read.
type Change struct {
	Option   string // "-pidfile"; "" for the program
	From, To string // values; "" for an option that was added or dropped
	Why      string
}

func (c Change) String() string {
	s := strings.TrimSpace(c.Option + " ")
	switch {
	case c.From == "":
		s += " added: " + c.To
	case c.To == "":
		s += " dropped: " + c.From
	default:
		s += ": " + c.From + " -> " + c.To
	}
	return strings.TrimSpace(s) + " (" + c.Why + ")"
}

// ArgumentError is an option of the source's that a destination cannot have as well.
type ArgumentError struct {
	Option, Value string
	Reason        string // and what to try
}

func (e *ArgumentError) Error() string {
	return fmt.Sprintf("duplicate %s %s: %s", e.Option, e.Value, e.Reason)
}

// IncomingArgs turns the command line of a running QEMU, program first, or before it the dynamic linker that runs it
// (debian.SplitLoader), into that of its destination: it waits for a migration (-incoming defer -S), what QEMU
// creates lies in l.Dir, and it has the three monitors of a VM there. What the guest sees stays as it is. Devices
// that were plugged in while the source ran, and passwords given to its monitor, are not on its command line: the
// caller compares. The error joins an *ArgumentError for each option that cannot be had twice.
func IncomingArgs(args []string, l Options) (out []string, changes []Change, err error) {
	if len(args) == 0 || l.Dir == "" {
		return nil, nil, errors.New("make the destination's command line: the source's and a folder are needed")
	}
	m := &mover{Options: l, used: map[string]bool{}}
	for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
		m.used[role+".qmp"] = true
	}
	m.used["qemu.log"] = true
	by, rest := debian.SplitLoader(args)
	m.out = append(by, rest[0])
	if l.QEMU != "" && l.QEMU != rest[0] {
		m.out = []string{l.QEMU}
		m.note("", rest[0], l.QEMU, "as asked")
	}
	machine := false
	for i := len(by) + 1; i < len(args); i++ {
		a := args[i]
		if !strings.HasPrefix(a, "-") || a == "-" { // an image: the first disk
			m.out = append(m.out, m.mapped("image", a))
			continue
		}
		option := "-" + strings.TrimLeft(a, "-")
		if takesNoValue(option) {
			m.flag(a, option)
			continue
		}
		if i+1 == len(args) {
			return nil, nil, fmt.Errorf("make the destination's command line: %s has no value", a)
		}
		i++
		machine = machine || option == "-machine" || option == "-M"
		m.option(a, option, args[i])
	}
	if l.Machine != "" && !machine {
		m.add("-machine", l.Machine, "the source's default")
	}
	m.add("-incoming", "defer", "wait for the migration")
	m.out = append(m.out, "-S")
	if !slices.ContainsFunc(args, func(a string) bool { return a == "-S" || a == "--S" }) {
		m.note("-S", "", "-S", "the guest starts when it is told to")
	}
	for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
		m.add("-chardev", "socket,id="+monitorPrefix+role+",server=on,wait=off,path="+comma(m.socket(guest.Spec{Dir: l.Dir}.Socket(role))), "our own monitor")
		m.out = append(m.out, "-mon", "chardev="+monitorPrefix+role+",mode=control")
	}
	if err := errors.Join(m.errs...); err != nil {
		return nil, nil, err
	}
	return m.out, m.changes, nil
}

// monitorPrefix begins the names of the chardevs that IncomingArgs adds; a source that was launched so has them already.
const monitorPrefix = "qmigrate-"

// mover carries one IncomingArgs.
type mover struct {
	Options
	used    map[string]bool // names taken in Dir
	out     []string
	changes []Change
	errs    []error
}

func (m *mover) note(option, from, to, why string) {
	if from != to {
		m.changes = append(m.changes, Change{option, from, to, why})
	}
}

func (m *mover) add(option, value, why string) {
	m.out = append(m.out, option, value)
	m.note(option, "", value, why)
}

func (m *mover) refuse(option, value, reason string) {
	m.errs = append(m.errs, &ArgumentError{option, value, reason})
}

// place is a free name in Dir, as near to base as there is.
func (m *mover) place(base string) string {
	base = strings.TrimLeft(path.Base(base), "/.")
	base = cmp.Or(base, "file")
	name, ext := base, path.Ext(base)
	for i := 2; m.used[name]; i++ {
		name = fmt.Sprintf("%s.%d%s", strings.TrimSuffix(base, ext), i, ext)
	}
	m.used[name] = true
	return path.Join(m.Dir, name)
}

// moved is where a file that QEMU creates goes.
func (m *mover) moved(from string) string {
	if to, ok := m.Paths[from]; ok {
		return to
	}
	return m.place(from)
}

// socket checks the length of a socket's path.
func (m *mover) socket(p string) string {
	if len(p) > guest.MaxSocketPath {
		m.refuse("socket", p, fmt.Sprintf("is longer than the kernel's %d bytes: use a shorter folder", guest.MaxSocketPath))
	}
	return p
}

// mapped is the destination's path if the caller gave one.
func (m *mover) mapped(option, from string) string {
	to, ok := m.Paths[from]
	if !ok {
		return from
	}
	m.note(option, from, to, "as asked")
	return to
}

// peer is the destination's path of something that somebody else serves.
func (m *mover) peer(option, value, from, what string) string {
	to, ok := m.Paths[from]
	if !ok {
		m.refuse(option, value, what+" "+from+" serves the source: give the destination one of its own (a path for "+from+")")
	}
	return to
}

// port is the destination's port: mapped, or the same where it is free; ok is false if the source holds it.
func (m *mover) port(from string) (to string, ok bool) {
	if to, ok := m.Ports[from]; ok {
		return to, true
	}
	return from, m.OtherNetwork || from == "0"
}

// flag handles an option without a value.
func (m *mover) flag(raw, option string) {
	switch option {
	case "-S":
		return // added at the end
	case "-daemonize":
		m.note(option, raw, "", "we watch the process")
	case "-s":
		if !m.OtherNetwork {
			m.note(option, raw, "", "the source holds the debugger's port")
			return
		}
		m.out = append(m.out, raw)
	case "-snapshot":
		m.refuse(option, "", "the source's temporary disk images are out of the destination's reach")
	default:
		m.out = append(m.out, raw)
	}
}

// option handles an option with its value.
func (m *mover) option(raw, option, value string) {
	to := value
	switch option {
	case "-incoming", "-loadvm":
		if value != "defer" {
			m.note(option, value, "", "the state comes by the migration")
		}
		return
	case "-writeconfig":
		m.note(option, value, "", "the source wrote it")
		return
	case "-add-fd":
		m.refuse(option, value, "descriptors that another program opened for the source: let that program start the destination")
		return
	case "-pidfile", "-D":
		to = m.moved(value)
		m.note(option, value, to, "the source's own")
	case "-machine", "-M":
		to = m.machine(option, value)
	case "-chardev":
		if to = m.chardev(option, value); to == "" {
			return
		}
	case "-mon":
		if o := parseOptions(value); strings.HasPrefix(cmp.Or(o.get("chardev"), o.first()), monitorPrefix) {
			return
		}
	case "-qmp", "-qmp-pretty", "-monitor", "-serial", "-parallel", "-debugcon":
		to = m.character(option, value)
	case "-gdb":
		if !m.OtherNetwork {
			m.note(option, value, "", "the source holds the debugger's port")
			return
		}
	case "-vnc":
		to = m.vnc(option, value)
	case "-spice":
		to = m.spice(option, value)
	case "-display":
		if o := parseOptions(value); o.first() == "curses" {
			to = "none"
			m.note(option, value, to, "the destination has no terminal")
		}
	case "-netdev", "-nic", "-net":
		to = m.net(option, value)
	case "-object":
		to = m.object(option, value)
	case "-device":
		to = m.device(option, value)
	case "-trace", "-audiodev":
		key := "file"
		if option == "-audiodev" {
			key = "path"
		}
		to = m.output(option, value, key)
	case "-name", "-append", "-uuid", "-smbios", "-fw_cfg":
		// texts for the guest: nothing in them is ours to read
	default:
		to = m.rest(option, value)
	}
	m.out = append(m.out, raw, to)
}

// rest maps the caller's paths in any other option, and refuses descriptors.
func (m *mover) rest(option, value string) string {
	if strings.HasPrefix(value, "{") {
		return m.json(option, value)
	}
	if to, ok := m.Paths[value]; ok {
		m.note(option, value, to, "as asked")
		return to
	}
	o := parseOptions(value)
	m.descriptors(option, value, o)
	changed := false
	for i, p := range o {
		if to, ok := m.Paths[p.value]; ok && !p.bare {
			m.note(option, p.value, to, "as asked")
			o[i].value, changed = to, true
		}
	}
	if !changed {
		return value
	}
	return o.String()
}

// descriptors refuses a value that names open files.
func (m *mover) descriptors(option, value string, o options) bool {
	for _, p := range o {
		if isDescriptor(p.key, p.value) {
			m.refuse(option, value, "it uses descriptors ("+p.key+"="+p.value+") that another program, such as libvirt, opened for the source: let that program start the destination")
			return true
		}
	}
	return false
}

func isDescriptor(key, value string) bool {
	switch key {
	case "fd", "fds", "vhostfd", "vhostfds":
		return value != ""
	}
	return strings.HasPrefix(value, "/dev/fdset/")
}

// json is rest for the JSON form.
func (m *mover) json(option, value string) string {
	d := json.NewDecoder(strings.NewReader(value))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		m.refuse(option, value, "not JSON: "+err.Error())
		return value
	}
	changed, refused := false, false
	var walk func(key string, v any) any
	walk = func(key string, v any) any {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) { // in one order, for the texts
				v[k] = walk(k, v[k])
			}
		case []any:
			for i := range v {
				v[i] = walk(key, v[i])
			}
		case string:
			if isDescriptor(key, v) && !refused {
				refused = true
				m.refuse(option, value, "it uses descriptors ("+key+" "+v+") that another program, such as libvirt, opened for the source: let that program start the destination")
			}
			if to, ok := m.Paths[v]; ok {
				changed = true
				m.note(option, v, to, "as asked")
				return to
			}
		}
		return v
	}
	v = walk("", v)
	if !changed {
		return value
	}
	b, err := json.Marshal(v)
	if err != nil {
		m.refuse(option, value, err.Error())
		return value
	}
	return string(b)
}

func (m *mover) machine(option, value string) string {
	o := parseOptions(value)
	if m.Machine == "" {
		return value
	}
	i := slices.IndexFunc(o, func(p pair) bool { return p.key == "type" && !p.bare })
	if i < 0 && len(o) > 0 && o[0].bare {
		i, o[0] = 0, pair{key: m.Machine, bare: true}
	} else if i >= 0 {
		o[i].value = m.Machine
	} else { // options without a type
		o = append(options{{key: m.Machine, bare: true}}, o...)
	}
	m.note(option, value, o.String(), "the machine type that the source's name stands for")
	return o.String()
}

// chardev handles a character device; "" drops it.
func (m *mover) chardev(option, value string) string {
	o := parseOptions(value)
	if strings.HasPrefix(o.get("id"), monitorPrefix) {
		return ""
	}
	if m.descriptors(option, value, o) {
		return value
	}
	if l := o.get("logfile"); l != "" {
		o.set("logfile", m.moved(l))
	}
	switch kind := cmp.Or(o.get("backend"), o.first()); kind {
	case "socket":
		o = m.socketOptions(option, value, o, o.get("id"))
	case "file":
		o.set("path", m.moved(o.get("path")))
	case "pipe", "serial", "tty", "parallel", "parport":
		o.set("path", m.peer(option, value, o.get("path"), "the host's "+kind))
	case "udp":
		if p := o.get("localport"); p != "" {
			to, ok := m.port(p)
			if !ok {
				m.refuse(option, value, "the source holds port "+p+": give the destination another")
			}
			o.set("localport", to)
		}
	}
	m.note(option, value, o.String(), "the source's own")
	return o.String()
}

// socketOptions handles what a chardev socket and a -netdev stream share: a server's address goes into Dir, a client's is the caller's to say.
func (m *mover) socketOptions(option, value string, o options, name string) options {
	if !o.on("server") {
		if p := o.get("path"); p != "" {
			o.set("path", m.peer(option, value, p, "the socket"))
		}
		return o // a TCP client may connect twice
	}
	if p := o.get("path"); p != "" {
		o.set("path", m.socket(m.moved(p)))
		o = o.without("abstract", "tight")
	} else if to, ok := m.port(o.get("port")); ok {
		o.set("port", to)
	} else {
		o = append(o.without("path", "host", "port", "to", "ipv4", "ipv6", "nodelay", "mptcp"), pair{key: "path", value: m.socket(m.place(cmp.Or(name, "socket") + ".sock"))})
	}
	return append(o.without("wait", "nowait"), pair{key: "wait", value: "off"})
}

// character handles the short form of a character device: unix:PATH,server, tcp:HOST:PORT,server, file:PATH, ...
func (m *mover) character(option, value string) string {
	mux := ""
	v := value
	if rest, ok := strings.CutPrefix(v, "mon:"); ok {
		mux, v = "mon:", rest
	}
	kind, rest, _ := strings.Cut(v, ":")
	to := v
	switch kind {
	case "unix":
		o := parseOptions(rest)
		if m.descriptors(option, value, o) {
			return value
		}
		if len(o) == 0 || o.first() == "" {
			break
		}
		if from := o[0].key; o.on("server") {
			o[0].key = m.socket(m.moved(from))
			o = append(o.without("wait", "nowait", "abstract", "tight"), pair{key: "wait", value: "off"})
		} else {
			o[0].key = m.peer(option, value, from, "the socket")
		}
		to = "unix:" + o.String()
	case "tcp", "telnet", "tn3270", "websocket":
		o := parseOptions(rest)
		if !o.on("server") {
			break
		}
		host, port := rsplit(o.first(), ":")
		if p, ok := m.port(port); ok {
			o[0].key = host + ":" + p
			o = append(o.without("wait", "nowait"), pair{key: "wait", value: "off"})
			to = kind + ":" + o.String()
		} else {
			to = "unix:" + comma(m.socket(m.place(strings.TrimPrefix(option, "-")+".sock"))) + ",server=on,wait=off"
		}
	case "udp":
		// udp:REMOTE@LOCAL
		if _, local, ok := strings.Cut(rest, "@"); ok {
			_, port := rsplit(local, ":")
			if _, ok := m.port(port); !ok {
				m.refuse(option, value, "the source holds port "+port+": use -chardev udp, or another network")
			}
		}
	case "file":
		to = "file:" + m.moved(rest)
	case "pipe":
		to = "pipe:" + m.peer(option, value, rest, "the pipe")
	default:
		if strings.HasPrefix(v, "/dev/") {
			to = m.peer(option, value, v, "the host's device")
		}
	}
	m.note(option, value, mux+to, "the source's own")
	return mux + to
}

// vnc moves a display that others connect to into a unix socket, for the source holds the port.
func (m *mover) vnc(option, value string) string {
	o := parseOptions(value)
	addr := o.first()
	if addr == "" || addr == "none" || o.on("reverse") {
		return value
	}
	if p, ok := strings.CutPrefix(addr, "unix:"); ok {
		o[0].key = "unix:" + m.socket(m.moved(p))
	} else if m.OtherNetwork {
		return value
	} else {
		o[0].key = "unix:" + m.socket(m.place("vnc.sock"))
		o = o.without("to", "websocket", "ipv4", "ipv6")
	}
	m.note(option, value, o.String(), "the source's own")
	return o.String()
}

func (m *mover) spice(option, value string) string {
	o := parseOptions(value)
	switch {
	case o.on("unix"):
		o.set("addr", m.socket(m.moved(o.get("addr"))))
	case m.OtherNetwork:
		return value
	default:
		o = append(o.without("port", "tls-port", "addr", "ipv4", "ipv6"), pair{key: "unix", value: "on"}, pair{key: "addr", value: m.socket(m.place("spice.sock"))})
	}
	m.note(option, value, o.String(), "the source's own")
	return o.String()
}

// net handles a network's backend.
func (m *mover) net(option, value string) string {
	if strings.HasPrefix(value, "{") {
		return m.netJSON(option, value)
	}
	o := parseOptions(value)
	if m.descriptors(option, value, o) {
		return value
	}
	switch cmp.Or(o.get("type"), o.first()) {
	case "tap":
		if from := o.get("ifname"); from != "" {
			o.set("ifname", m.tap(option, value, from))
		}
	case "vhost-vdpa":
		o.set("vhostdev", m.peer(option, value, o.get("vhostdev"), "the host's device"))
	case "user":
		for i, p := range o {
			if p.key == "hostfwd" {
				o[i].value = m.forward(option, value, p.value)
			}
		}
	case "socket":
		if l := o.get("listen"); l != "" {
			host, port := rsplit(l, ":")
			to, ok := m.port(port)
			if !ok {
				m.refuse(option, value, "the source holds port "+port+": give the destination another")
			}
			o.set("listen", host+":"+to)
		}
	case "stream":
		if o.on("server") {
			if p := o.get("addr.path"); p != "" {
				o.set("addr.path", m.socket(m.moved(p)))
			} else if to, ok := m.port(o.get("addr.port")); ok {
				o.set("addr.port", to)
			} else {
				m.refuse(option, value, "the source holds port "+o.get("addr.port")+": give the destination another")
			}
		} else if p := o.get("addr.path"); p != "" {
			o.set("addr.path", m.peer(option, value, p, "the socket"))
		}
	}
	m.note(option, value, o.String(), "the destination's own network")
	return o.String()
}

// netJSON handles the JSON form of -netdev: only what is on no one else is duplicated.
func (m *mover) netJSON(option, value string) string {
	var n struct {
		Type, Ifname string
		Hostfwd      []any
		Server       bool
	}
	if err := json.Unmarshal([]byte(value), &n); err != nil {
		m.refuse(option, value, "not JSON of a network: "+err.Error())
		return value
	}
	before := len(m.errs)
	to := m.json(option, value)
	switch {
	case len(m.errs) > before:
	case n.Ifname != "":
		tap := m.tap(option, value, n.Ifname)
		if tap == n.Ifname || tap == "" {
			break
		}
		var all map[string]any
		d := json.NewDecoder(strings.NewReader(to))
		d.UseNumber()
		if err := d.Decode(&all); err != nil {
			m.refuse(option, value, err.Error())
			break
		}
		all["ifname"] = tap
		b, err := json.Marshal(all)
		if err != nil {
			m.refuse(option, value, err.Error())
			break
		}
		m.note(option, value, string(b), "the destination's own network")
		return string(b)
	case (len(n.Hostfwd) > 0 || n.Server) && !m.OtherNetwork:
		m.refuse(option, value, "the source holds its ports: use another network")
	}
	return to
}

func (m *mover) tap(option, value, from string) string {
	to, ok := m.TAPs[from]
	switch {
	case ok:
		return to
	case m.OtherNetwork:
		return from
	}
	m.refuse(option, value, "the source holds the TAP interface "+from+": name another for the destination")
	return ""
}

// forward maps the host's port in tcp:HOST:PORT-GUEST:PORT. The same port cannot be had twice, and nobody would find another that we picked.
func (m *mover) forward(option, value, rule string) string {
	host, guest, ok := strings.Cut(rule, "-")
	if !ok || strings.HasPrefix(host, "unix:") {
		m.refuse(option, value, "hostfwd="+rule+" is the source's: name another for the destination")
		return rule
	}
	head, port := rsplit(host, ":")
	to, ok := m.port(port)
	if !ok {
		m.refuse(option, value, "the source holds port "+port+" (hostfwd): name another for the destination")
	}
	return head + ":" + to + "-" + guest
}

func (m *mover) object(option, value string) string {
	kind, share, file := "", false, ""
	if strings.HasPrefix(value, "{") {
		var o struct {
			Type    string `json:"qom-type"`
			Share   bool   `json:"share"`
			MemPath string `json:"mem-path"`
		}
		if err := json.Unmarshal([]byte(value), &o); err != nil {
			m.refuse(option, value, "not JSON of an object: "+err.Error())
			return value
		}
		kind, share, file = o.Type, o.Share, o.MemPath
	} else {
		o := parseOptions(value)
		kind, share, file = cmp.Or(o.get("qom-type"), o.first()), o.on("share"), o.get("mem-path")
	}
	switch {
	case kind == "memory-backend-file" && share && m.Paths[file] == "":
		m.refuse(option, value, "RAM in a shared file: two guests would write one memory (give a path for "+file+")")
		return value
	case kind == "filter-dump":
		return m.output(option, value, "file")
	}
	return m.rest(option, value)
}

func (m *mover) device(option, value string) string {
	driver := ""
	if strings.HasPrefix(value, "{") {
		var d struct {
			Driver string `json:"driver"`
		}
		if err := json.Unmarshal([]byte(value), &d); err != nil {
			m.refuse(option, value, "not JSON of a device: "+err.Error())
			return value
		}
		driver = d.Driver
	} else {
		o := parseOptions(value)
		driver = cmp.Or(o.get("driver"), o.first())
	}
	switch {
	case strings.HasPrefix(driver, "vfio-"), driver == "usb-host":
		m.refuse(option, value, "a device of the host's, which the source holds")
		return value
	case strings.HasPrefix(driver, "vhost-vsock-"):
		m.refuse(option, value, "its context number can be used once on a machine")
		return value
	}
	return m.rest(option, value)
}

// output moves the file that an option writes.
func (m *mover) output(option, value, key string) string {
	if strings.HasPrefix(value, "{") {
		return m.rest(option, value)
	}
	o := parseOptions(value)
	if f := o.get(key); f != "" {
		o.set(key, m.moved(f))
	}
	m.note(option, value, o.String(), "the source's own")
	return o.String()
}

// takesNoValue reports whether an option of QEMU's stands alone. Source: qemu-options.hx of 7.2 and 10.0; 11.1 adds
// none.
func takesNoValue(option string) bool {
	switch option {
	case "-S", "-s", "-h", "-help", "-version", "-daemonize", "-snapshot", "-nodefaults", "-no-user-config", "-nographic", "-curses", "-full-screen", "-alt-grab",
		"-ctrl-grab", "-no-quit", "-sdl", "-portrait", "-usb", "-no-acpi", "-no-hpet", "-no-fd-bootchk", "-win2k-hack", "-enable-kvm", "-no-reboot",
		"-no-shutdown", "-only-migratable", "-preconfig", "-singlestep", "-mem-prealloc", "-semihosting", "-xen-attach", "-xen-domid-restrict", "-enable-sync-profile", "-nodefconfig", "-old-param":
		return true
	}
	return false
}
