// Package launch makes the command line of a migration's destination from that of its source.
//
// Rules says what QEMU's options have of their host (files, sockets, ports, devices), Held what the kernel says that
// the source has, Process what else a second QEMU must be like. So the destination takes nothing that the source
// holds. The package starts nothing: guest.StartIncoming does.
package launch

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"qmigrate/guest"
	"qmigrate/guest/debian"
)

// Options say how the destination of a QEMU differs from its source.
type Options struct {
	// Dir is the folder on the destination for all that QEMU creates: sockets, pid file, logs. It is needed.
	Dir  string
	QEMU string // another binary; default the source's
	// Machine is the source's machine type as its monitor names it ("pc-q35-7.2"); default as its command line has it,
	// which may be an alias.
	Machine string
	Paths   map[string]string // path of the source's: the destination's. A path mapped to itself stays
	TAPs    map[string]string // network interface of the source's: the destination's
	Ports   map[string]string // TCP or UDP port of the source's: the destination's
	// OtherNetwork says that the destination is in another network namespace: the same ports and interfaces are free.
	OtherNetwork bool
	Held         *Held // what the source holds; nil: all that its command line names
	// ReadFile reads a file as the source sees it, for -readconfig; nil refuses that option.
	ReadFile func(name string) ([]byte, error)
}

// Line is a destination's command line.
type Line struct {
	Args     []string
	Changes  []Change
	Forwards []Forward // ports that it has not got yet
}

// Forward is a port of the host that leads to a guest through QEMU's user network. Two QEMUs cannot have it at once.
type Forward struct {
	Netdev string // "" is the only user network
	Rule   string // tcp:127.0.0.1:2222-:22, as hostfwd_add takes it
}

// Address is the rule's host part, as hostfwd_remove takes it.
func (f Forward) Address() string {
	host, _, _ := strings.Cut(f.Rule, "-")
	return host
}

// Change is one difference between the two command lines, for people to read.
type Change struct {
	Option   string // "-pidfile"; "" for the program
	From, To string // values; "" for an option that was added or dropped; both the same for one that is only named
	Why      string
}

func (c Change) String() string {
	s := strings.TrimSpace(c.Option + " ")
	switch {
	case c.From == c.To:
		s += " kept: " + c.From
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
	return fmt.Sprintf("duplicate %s: %s", strings.TrimSpace(e.Option+" "+e.Value), e.Reason)
}

// Destination turns the command line of a running QEMU, program first, or before it the dynamic linker that runs it
// (debian.SplitLoader), into that of its destination: it waits for a migration (-incoming defer -S), what QEMU
// creates lies in o.Dir, and it has the three monitors of a VM there. What the guest sees stays as it is. Devices
// that were plugged in while the source ran, and passwords given to its monitor, are not on its command line: the
// caller compares. The error joins an *ArgumentError for each option that cannot be had twice.
func Destination(args []string, o Options) (*Line, error) {
	if len(args) == 0 || o.Dir == "" {
		return nil, errors.New("make the destination's command line: the source's and a folder are needed")
	}
	m := &mover{Options: o, used: map[string]bool{"qemu.log": true}}
	for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
		m.used[role+".qmp"] = true
	}
	by, rest := debian.SplitLoader(args)
	m.out = append(by, rest[0])
	if o.QEMU != "" && o.QEMU != rest[0] {
		m.out = []string{o.QEMU}
		m.note("", rest[0], o.QEMU, "as asked")
	}
	words, err := split(rest[1:])
	if err != nil {
		return nil, err
	}
	words = m.set(m.readConfigs(m.userConfig(words)))
	for _, w := range words {
		switch w.option {
		case "-netdev", "-nic", "-net":
			if v, err := parseValue(w.value); err == nil && slices.Contains(v.kinds(), "user") {
				m.networks++
			}
		}
	}
	machine, paused := false, false
	for _, w := range words {
		switch {
		case w.option == "":
			m.out = append(m.out, m.mapped("image", w.value))
		case w.flag:
			paused = paused || w.option == "-S"
			m.flag(w)
		default:
			machine = machine || w.option == "-machine" || w.option == "-M"
			m.option(w)
		}
	}
	if o.Machine != "" && !machine {
		m.add("-machine", o.Machine, "the source's default")
	}
	m.add("-incoming", "defer", "wait for the migration")
	m.out = append(m.out, "-S")
	if !paused {
		m.note("-S", "", "-S", "the guest starts when it is told to")
	}
	for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
		at := comma(m.socket(guest.Spec{Dir: o.Dir}.Socket(role)))
		m.add("-chardev", "socket,id="+monitorPrefix+role+",server=on,wait=off,path="+at, "our own monitor")
		m.out = append(m.out, "-mon", "chardev="+monitorPrefix+role+",mode=control")
	}
	if err := errors.Join(m.errs...); err != nil {
		return nil, err
	}
	return &Line{m.out, m.changes, m.forwards}, nil
}

// monitorPrefix begins the names of the chardevs that Destination adds; a source that was launched so has them already.
const monitorPrefix = "qmigrate-"

// word is an option with its value, or an image, whose option is "".
type word struct {
	raw, option, value string
	flag               bool // it has no value
}

// split reads a command line without its program.
func split(args []string) (words []word, err error) {
	for i := 0; i < len(args); i++ {
		a := args[i]
		if !strings.HasPrefix(a, "-") || a == "-" { // an image: the first disk
			words = append(words, word{value: a})
			continue
		}
		w := word{raw: a, option: "-" + strings.TrimLeft(a, "-")}
		switch {
		case flags[w.option]:
			w.flag = true
		case i+1 < len(args) && (known(w.option) || !strings.HasPrefix(args[i+1], "-")):
			i++
			w.value = args[i]
		case known(w.option):
			return nil, fmt.Errorf("make the destination's command line: %s has no value", a)
		default:
			w.flag = true // one that we do not know, and another option follows
		}
		words = append(words, w)
	}
	return words, nil
}

// mover carries one Destination.
type mover struct {
	Options
	used     map[string]bool // names taken in Dir
	out      []string
	changes  []Change
	forwards []Forward
	errs     []error
	networks int  // user networks
	moves    bool // the option at hand names something else than the source's
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
func (m *mover) moved(option, value, from string) string {
	to, ok := m.Paths[from]
	if !ok {
		return m.place(from)
	}
	if what, held := m.Held.path(to); held {
		m.refuse(option, value, to+" is the source's "+what+": name another path for "+from)
	}
	return to
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

// port is the destination's port: mapped, or the same where it is free; ok is false if the source holds it.
func (m *mover) port(network, from string) (to string, ok bool) {
	to, mapped := m.Ports[from]
	switch {
	case from == "" || from == "0", m.OtherNetwork && !mapped:
		return from, true
	case m.OtherNetwork:
		return to, true
	case !mapped:
		return from, m.Held != nil && !m.Held.port(network, from)
	}
	return to, !m.Held.port(network, to)
}

// needPort is port for what cannot do without.
func (m *mover) needPort(option, value, network, from string) string {
	to, ok := m.port(network, from)
	if !ok {
		m.refuse(option, value, "the source holds port "+to+": name another port for "+from)
	}
	return to
}

// flag handles an option without a value.
func (m *mover) flag(w word) {
	r, _ := ruleFor(w.option, nil, "")
	_, free := m.port("tcp", "1234")
	switch {
	case w.option == "-S": // added at the end
	case w.option == "-s" && free:
		m.out = append(m.out, w.raw)
	case w.option == "-s":
		m.note(w.option, w.raw, "", "the source holds the debugger's port")
	case w.option == "-curses":
		m.out = append(m.out, "-display", "none")
		m.note(w.option, w.raw, "-display none", "the destination has no terminal")
	case r.Does == Drop:
		m.note(w.option, w.raw, "", "the source's own: "+r.Has)
	case r.Does == Refuse:
		m.refuse(w.option, "", r.Has+" "+outOfReach)
	default:
		m.unknown(w)
		m.out = append(m.out, w.raw)
	}
}

const outOfReach = "cannot be had twice: start the destination yourself"

// unknown names an option that no rule is about.
func (m *mover) unknown(w word) {
	if !known(w.option) {
		value := cmp.Or(w.value, w.raw)
		why := "not known to us, and it names nothing that the source holds"
		m.changes = append(m.changes, Change{w.option, value, value, why})
	}
}

// option handles an option with its value.
func (m *mover) option(w word) {
	option, to := w.option, w.value
	switch option {
	case "-name", "-append", "-uuid":
		// texts for the guest: nothing in them is ours to read
	case "-machine", "-M":
		to = m.machine(option, w.value)
	case "-mon":
		if o := parseOptions(w.value); strings.HasPrefix(cmp.Or(o.get("chardev"), o.first()), monitorPrefix) {
			return
		}
	case "-qmp", "-qmp-pretty", "-monitor", "-serial", "-parallel", "-debugcon", "-qtest", "-gdb":
		to = m.character(option, w.value)
		if option == "-gdb" && to != w.value && strings.HasPrefix(w.value, "tcp:") { // a debugger that is told where finds it
			m.note(option, w.value, "", "the source holds the debugger's port")
			return
		}
		m.note(option, w.value, to, "the source's own")
	case "-vnc":
		to = m.vnc(option, w.value)
		m.note(option, w.value, to, "the source's own")
	case "-spice":
		to = m.spice(option, w.value)
	case "-display":
		var ok bool
		if to, ok = m.display(option, w.value); !ok {
			return
		}
	default:
		var ok bool
		if to, ok = m.keys(w); !ok {
			return
		}
	}
	m.out = append(m.out, w.raw, to)
}

// keys applies the rules of an option to each key of its value; ok is false if nothing is left of it.
func (m *mover) keys(w word) (to string, ok bool) {
	option := w.option
	if r, found := ruleFor(option, nil, ""); found && r.Kind == "" {
		switch r.Does {
		case Drop:
			if w.value != "defer" {
				m.note(option, w.value, "", "the source's own: "+r.Has)
			}
			return "", false
		case Refuse:
			m.refuse(option, w.value, r.Has+", which "+outOfReach)
			return w.value, true
		case Move:
			to := m.moved(option, w.value, w.value)
			m.note(option, w.value, to, "the source's own")
			return to, true
		default: // a path
			if isDescriptor("", w.value) {
				m.refuse(option, w.value, descriptors(w.value))
			}
			return m.mapped(option, w.value), true
		}
	}
	v, err := parseValue(w.value)
	if err != nil {
		m.refuse(option, w.value, err.Error())
		return w.value, true
	}
	if option == "-chardev" && strings.HasPrefix(v.get("id"), monitorPrefix) {
		return "", false
	}
	kinds := v.kinds()
	if r, found := ruleFor(option, kinds, ""); found && r.Does == Refuse {
		m.refuse(option, w.value, r.Has+", which "+outOfReach)
		return w.value, true
	}
	m.moves = false
	before := len(m.changes)
	var left options
	var without []string // keys that went with another
	for i, p := range v.options {
		if isDescriptor(p.key, p.value) {
			m.refuse(option, w.value, descriptors(p.key+"="+p.value))
			return w.value, true
		}
		switch r, found := ruleFor(option, kinds, plainKey(p.key)); {
		case p.value == "" && (!p.bare || i > 0): // a switch, or nothing
			left = append(left, p)
		case !found:
			left = append(left, m.other(w, p))
		default:
			p, gone, ok := m.key(w, r, v, p)
			without = append(without, gone...)
			if ok {
				left = append(left, p)
			}
		}
	}
	if v.options = left.without(without...); len(left) == 0 { // each was noted
		return "", false
	}
	if option == "-chardev" && v.on("server") { // nobody is waited for
		v.options = append(v.without("wait", "nowait"), pair{key: "wait", value: "off"})
		m.moves = true
	}
	if to = v.String(); v.json != nil && slices.Equal(v.options, v.before) {
		to = w.value
	}
	if len(m.changes) == before {
		m.unknown(w)
	}
	if m.moves {
		m.note(option, w.value, to, why(option))
	}
	return to, true
}

func why(option string) string {
	if option == "-netdev" || option == "-nic" || option == "-net" {
		return "the destination's own network"
	}
	return "the source's own"
}

func descriptors(of string) string {
	return "it uses descriptors (" + of + ") that another program, such as libvirt, opened for the source: " +
		"let that program start the destination"
}

// key applies a rule to a pair of v; ok is false if it is dropped, gone are the keys that go with what it was.
func (m *mover) key(w word, r Rule, v value, p pair) (_ pair, gone []string, ok bool) {
	from := p.value
	switch r.Does {
	case Keep, Disk:
		if strings.HasPrefix(from, "nvme:") {
			m.refuse(w.option, w.value, "a device of the host, which "+outOfReach)
		}
		p.value = m.mapped(w.option, from)
		return p, nil, true
	case Drop:
		m.note(w.option, p.key+"="+from, "", "the source's own: "+r.Has)
		return p, nil, false
	case Later:
		p.value, ok = m.forward(w, v, from)
		m.moves = m.moves || p.value != from
		return p, nil, ok
	case Refuse:
		if v.on(p.key) || r.Key == "rr" || r.Key == "port" {
			m.refuse(w.option, w.value, r.Has+", which "+outOfReach)
		}
		return p, nil, true
	case Move:
		p.value = m.moved(w.option, w.value, from)
	case Listen:
		p.value = m.socket(m.moved(w.option, w.value, from))
		gone = []string{"abstract", "tight", "addr.abstract", "addr.tight"}
	case Port: // of a chardev: the rest has functions of its own
		if p.value, ok = m.port("tcp", from); !ok {
			p = pair{key: "path", value: m.socket(m.place(cmp.Or(v.get("id"), "socket") + ".sock"))}
			gone = []string{"host", "to", "ipv4", "ipv6", "nodelay", "mptcp"}
		}
	case PortOnly:
		p.value = m.portOnly(w, r, v, p)
	case Ask:
		if r.Kind == "memory-backend-file" && !v.on("share") {
			p.value = m.mapped(w.option, from)
			return p, nil, true
		}
		p.value = m.ask(w.option, w.value, from, r.Has)
	case TAP:
		p.value = m.tap(w.option, w.value, from)
	case Replace: // guestfwd
		if head, dev, ok := strings.Cut(from, "-"); ok && !strings.HasPrefix(dev, "cmd:") {
			p.value = head + "-" + m.character(w.option, dev)
		}
	}
	m.moves = true
	return p, gone, true
}

// portOnly is the destination's port of something that nothing else can stand for.
func (m *mover) portOnly(w word, r Rule, v value, p pair) string {
	network := "udp"
	switch {
	case r.Kind == "passt": // 2222:22,8080
		items := strings.Split(p.value, ",")
		for i, item := range items {
			from, to, ok := strings.Cut(item, ":")
			if items[i] = m.needPort(w.option, w.value, r.Key[:3], from); ok {
				items[i] += ":" + to
			}
		}
		return strings.Join(items, ",")
	case r.Kind == "l2tpv3" && !v.on("udp"), r.Key == "localaddr" && v.get("udp") == "",
		r.Kind == "dgram" && isMulticast(v.get("remote.host")):
		return p.value // no port of the host's, or one that several may have
	case r.Key == "listen", r.Kind == "stream server":
		network = "tcp"
	}
	_, port := rsplit(p.value, ":")
	return strings.TrimSuffix(p.value, port) + m.needPort(w.option, w.value, network, port)
}

func isMulticast(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsMulticast()
}

// other handles a key that no rule is about: it may name what the source holds all the same.
func (m *mover) other(w word, p pair) pair {
	if _, ok := m.Paths[p.value]; ok && !p.bare {
		p.value = m.mapped(w.option, p.value)
		return p
	}
	named := p.value
	if p.bare {
		named = p.key
	}
	if what, ok := m.Held.named(p.key, named, !m.OtherNetwork && namesPorts(w.option)); ok {
		m.refuse(w.option, w.value, named+" is the source's "+what+": start the destination yourself")
	}
	return p
}

// namesPorts reports whether an option's words may be ports of the host or abstract sockets, as far as we know.
func namesPorts(option string) bool {
	switch option {
	case "-netdev", "-nic", "-net", "-chardev", "-object":
		return true
	}
	return !known(option)
}

// ask is the destination's path of something that cannot be shared.
func (m *mover) ask(option, value, from, what string) string {
	to, ok := m.Paths[from]
	if !ok {
		m.refuse(option, value, from+" serves the source ("+what+"): give the destination one of its own (a path for "+
			from+")")
	}
	return to
}

// plainKey is a key without the numbers of a list.
func plainKey(key string) string {
	parts := strings.Split(strings.TrimSuffix(key, ".str"), ".")
	parts = slices.DeleteFunc(parts, func(p string) bool { return strings.Trim(p, "0123456789") == "" })
	if n := len(parts); n > 1 && parts[n-1] == "filename" { // file.filename, backing.file.filename
		return "filename"
	}
	return strings.Join(parts, ".")
}

func isDescriptor(key, value string) bool {
	switch key {
	case "fd", "fds", "vhostfd", "vhostfds", "sock_fd", "sock-fds":
		return value != ""
	}
	return strings.HasPrefix(value, "/dev/fdset/")
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
		for _, p := range o {
			if isDescriptor(p.key, p.value) {
				m.refuse(option, value, descriptors(p.key+"="+p.value))
				return value
			}
		}
		if len(o) == 0 || o.first() == "" {
			break
		}
		if from := o[0].key; o.on("server") {
			o[0].key = m.socket(m.moved(option, value, from))
			o = append(o.without("wait", "nowait", "abstract", "tight"), pair{key: "wait", value: "off"})
		} else {
			o[0].key = m.ask(option, value, from, "socket of a server")
		}
		to = "unix:" + o.String()
	case "tcp", "telnet", "tn3270", "websocket":
		o := parseOptions(rest)
		if !o.on("server") && option != "-gdb" {
			break
		}
		host, port := rsplit(o.first(), ":")
		if p, ok := m.port("tcp", port); ok {
			o[0].key = host + ":" + p
			o = append(o.without("wait", "nowait"), pair{key: "wait", value: "off"})
			to = kind + ":" + o.String()
			if option == "-gdb" { // it listens and does not wait
				to = kind + ":" + host + ":" + p
			}
		} else {
			to = "unix:" + comma(m.socket(m.place(strings.TrimPrefix(option, "-")+".sock"))) + ",server=on,wait=off"
		}
	case "udp":
		// udp:REMOTE@LOCAL
		if remote, local, ok := strings.Cut(rest, "@"); ok {
			host, port := rsplit(local, ":")
			to = "udp:" + remote + "@" + host + ":" + m.needPort(option, value, "udp", port)
		}
	case "file":
		to = "file:" + m.moved(option, value, rest)
	case "pipe":
		to = "pipe:" + m.ask(option, value, rest, "pipe")
	default:
		if strings.HasPrefix(v, "/dev/") {
			to = m.ask(option, value, v, "device of the host")
		}
	}
	return mux + to
}

// vnc moves a display that others connect to into a unix socket where the source holds the port.
func (m *mover) vnc(option, value string) string {
	o := parseOptions(value)
	at := 0
	for i, p := range o { // vnc=:1, in a file of -readconfig
		if p.key == "vnc" && !p.bare {
			at, o[i] = i, pair{key: p.value, bare: true}
		}
	}
	if len(o) == 0 {
		return value
	}
	o[0], o[at] = o[at], o[0]
	addr := o.first()
	if addr == "" || addr == "none" || o.on("reverse") {
		return value
	}
	if p, ok := strings.CutPrefix(addr, "unix:"); ok {
		o[0].key = "unix:" + m.socket(m.moved(option, value, p))
	} else if m.vncFree(o) {
		return value
	} else {
		o[0].key = "unix:" + m.socket(m.place("vnc.sock"))
		o = o.without("to", "websocket", "ipv4", "ipv6")
	}
	return o.String()
}

// vncFree reports whether a display's ports are free: 5900 and more for the display, 5700 and more for a websocket.
func (m *mover) vncFree(o options) bool {
	_, display := rsplit(o.first(), ":")
	n, err := strconv.Atoi(display)
	if err != nil {
		return m.OtherNetwork
	}
	free := func(port string) bool { _, ok := m.port("tcp", port); return ok }
	web := o.get("websocket")
	if o.on("websocket") {
		web = strconv.Itoa(5700 + n)
	}
	return free(strconv.Itoa(5900+n)) && free(web) && o.get("to") == ""
}

func (m *mover) spice(option, value string) string {
	o := parseOptions(value)
	_, free := m.port("tcp", o.get("port"))
	_, freeTLS := m.port("tcp", o.get("tls-port"))
	switch {
	case o.on("unix"):
		o.set("addr", m.socket(m.moved(option, value, o.get("addr"))))
	case free && freeTLS:
		return value
	default:
		o = append(o.without("port", "tls-port", "addr", "ipv4", "ipv6"),
			pair{key: "unix", value: "on"}, pair{key: "addr", value: m.socket(m.place("spice.sock"))})
	}
	m.note(option, value, o.String(), "the source's own")
	return o.String()
}

// display handles -display; ok is false if its place was taken by another option.
func (m *mover) display(option, value string) (to string, ok bool) {
	v, err := parseValue(value)
	if err != nil {
		m.refuse(option, value, err.Error())
		return value, true
	}
	switch kind := cmp.Or(v.get("type"), v.first()); {
	case kind == "curses":
		to = "none"
		m.note(option, value, to, "the destination has no terminal")
		return to, true
	case kind == "spice-app": // its socket is named after the guest
		to = "unix=on,disable-ticketing=on,addr=" + comma(m.socket(m.place("spice.sock")))
		if v.on("gl") {
			to = "gl=on," + to
		}
		m.out = append(m.out, "-spice", to)
		m.note(option, value, "-spice "+to, "the source's own")
		return "", false
	case strings.HasPrefix(value, "vnc="):
		to = "vnc=" + m.vnc(option, strings.TrimPrefix(value, "vnc="))
		m.note(option, value, to, "the source's own")
		return to, true
	}
	return m.keys(word{raw: option, option: option, value: value})
}

// tap is the destination's network interface.
func (m *mover) tap(option, value, from string) string {
	to, ok := m.TAPs[from]
	switch {
	case ok:
		return to
	case m.OtherNetwork:
		return from
	}
	m.refuse(option, value, "the source holds the interface "+from+": name another for the destination")
	return ""
}

// forward maps the host's port in tcp:HOST:PORT-GUEST:PORT. now is false for a port that the source holds: nobody
// would find another that we picked, so it is moved when the guest has moved.
func (m *mover) forward(w word, v value, rule string) (to string, now bool) {
	host, guest, ok := strings.Cut(rule, "-")
	if !ok || strings.HasPrefix(host, "unix:") {
		m.refuse(w.option, w.value, "hostfwd="+rule+" is the source's: "+outOfReach)
		return rule, true
	}
	head, port := rsplit(host, ":")
	network, _, _ := strings.Cut(host, ":")
	if network != "udp" {
		network = "tcp"
	}
	if to, ok := m.port(network, port); ok {
		return head + ":" + to + "-" + guest, true
	} else if to != port {
		m.refuse(w.option, w.value, "the source holds port "+to+": name another port for "+port)
		return rule, true
	}
	if v.get("id") == "" && m.networks > 1 {
		m.refuse(w.option, w.value, "the source holds port "+port+", and its network has no id among several: "+
			"name another port for "+port)
		return rule, true
	}
	m.forwards = append(m.forwards, Forward{v.get("id"), rule})
	m.note(w.option, "hostfwd="+rule, "", "the source holds port "+port+": it is moved when the guest has moved")
	return rule, false
}
