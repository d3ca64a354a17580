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
	"path"
	"slices"
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
	// OtherHost says that the destination is on another host: OtherNetwork, and what serves the source there is no more in
	// its way than what the source holds. Line.Needs are to be looked for there. Held is by Nothing.
	OtherHost bool
	Held      *Held    // what the source holds; nil: all that its command line names
	Media     []Medium // what the source's drives hold now
	Plugged   Plugged  // what the source's monitor plugged in and out
	// AskCID asks for a vsock context number, as the function AskCID does; nil: none is known to be free.
	AskCID func(cid uint64) error
	// ReadFile reads a file as the source sees it, for -readconfig; nil refuses that option.
	ReadFile func(name string) ([]byte, error)
}

// Line is a destination's command line.
type Line struct {
	Args     []string
	Changes  []Change
	Forwards []Forward // ports that it has not got yet
	Doubts   []string  // in what it may differ from the source, as far as we know
	Needs    []Need    // of its host, with OtherHost: see Lacks
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
	Setting       string // of Options, if another value of it is what to try: "Paths", "TAPs" or "Ports"
}

func (e *ArgumentError) Error() string {
	return fmt.Sprintf("duplicate %s: %s", strings.TrimSpace(e.Option+" "+e.Value), e.Reason)
}

// Destination turns the command line of a running QEMU, program first, or before it the dynamic linker that runs it
// (debian.SplitLoader), into that of its destination: it waits for a migration (-incoming defer -S), what QEMU
// creates lies in o.Dir, and it has the three monitors of a VM there. What the guest sees stays as it is. What the
// source's monitor was told, such as passwords, is not on its command line, but for o.Media and o.Plugged: the caller
// compares. The error joins an *ArgumentError for each option that cannot be had twice.
func Destination(args []string, o Options) (*Line, error) {
	if len(args) == 0 || o.Dir == "" {
		return nil, errors.New("make the destination's command line: the source's and a folder are needed")
	}
	m := &mover{Options: o, used: map[string]bool{"qemu.log": true, "trace.log": true}}
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
	words = m.plugged(m.presentDrives(m.set(m.readConfigs(m.userConfig(words)))))
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
		m.device = w.plugged
		switch {
		case w.option == "":
			m.out = append(m.out, m.file("image", w.value))
		case w.flag:
			paused = paused || w.option == "-S"
			m.flag(w)
		default:
			machine = machine || w.option == "-machine" || w.option == "-M"
			m.option(w)
		}
	}
	m.device = ""
	if o.Machine != "" && !machine {
		m.add("-machine", o.Machine, "the source's default")
	}
	if !m.logged {
		m.add("-D", m.traceLog(), "our own log of trace lines")
	}
	if !m.stamped {
		m.add("-msg", "timestamp=on", "they are placed in time")
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
	return &Line{m.out, m.changes, m.forwards, m.doubts, m.needs}, nil
}

// monitorPrefix begins the names of the chardevs that Destination adds; a source that was launched so has them already.
const monitorPrefix = "qmigrate-"

// word is an option with its value, or an image, whose option is "".
type word struct {
	raw, option, value string
	flag               bool   // it has no value
	plugged            string // the device that was plugged in while the source ran, and has this option
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
	doubts   []string
	errs     []error
	needs    []Need
	networks int    // user networks
	logged   bool   // it has a -D
	stamped  bool   // and a -msg
	device   string // that was plugged in while the source ran, and has the option at hand
	moves    bool   // the option at hand names something else than the source's
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

func (m *mover) refuse(option, value, reason string) { m.refuseFor("", option, value, reason) }

// refuseFor is refuse where another value of a setting would do.
func (m *mover) refuseFor(setting, option, value, reason string) {
	if m.device != "" {
		reason += ", or unplug " + m.device + " first (device_del)"
	}
	m.errs = append(m.errs, &ArgumentError{option, value, reason, setting})
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
		m.refuseFor("Paths", option, value, to+" is the source's "+what+": name another path for "+from)
	}
	return to
}

// socket checks a path where QEMU is to listen.
func (m *mover) socket(p string) string {
	if m.Held.exists(p) {
		m.refuseFor("Paths", "socket", p, "is there, and QEMU would remove it: name another path")
	}
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

// file is mapped for what has to be there. Of a relative name QEMU knows where to look for it.
func (m *mover) file(option, from string) string {
	to := m.mapped(option, from)
	if path.IsAbs(to) {
		m.need(NeedFile, option, to)
	}
	return to
}

// need notes what another host has to have.
func (m *mover) need(kind NeedKind, option, name string) {
	if n := (Need{kind, name, option}); m.OtherHost && !slices.Contains(m.needs, n) {
		m.needs = append(m.needs, n)
	}
}

// port is the destination's port: mapped, or the same where it is free; ok is false if the source holds it.
func (m *mover) port(network, from string) (to string, ok bool) {
	to, mapped := m.Ports[from]
	switch {
	case from == "" || from == "0":
		return from, true
	case m.OtherNetwork:
		if !mapped {
			to = from
		}
		kind := NeedTCP
		if network == "udp" {
			kind = NeedUDP
		}
		m.need(kind, "port", to)
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
		m.refuseFor("Ports", option, value, "the source holds port "+to+": name another port for "+from)
	}
	return to
}

// flag handles an option without a value.
func (m *mover) flag(w word) {
	r, _ := ruleFor(w.option, nil, "")
	free := false
	if w.option == "-s" {
		_, free = m.port("tcp", "1234")
	}
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
	case "-D":
		to = m.log(w.value)
		m.note(option, w.value, to, "the source's own")
	case "-msg": // the last one alone counts
		o := parseOptions(w.value)
		if !o.on("timestamp") {
			o = append(o.without("timestamp"), pair{key: "timestamp", value: "on"})
		}
		to, m.stamped = o.String(), true
		m.note(option, w.value, to, "trace lines are placed in time")
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

// traceLog is where a destination has its trace lines.
func (m *mover) traceLog() string { return guest.Spec{Dir: m.Dir}.Socket(guest.TraceLog) }

// log is the destination's file of -D: our own, if the caller names no other. With a %d in it QEMU has a file a thread
// (-d tid), and takes no other name.
func (m *mover) log(from string) string {
	m.logged = true
	if _, asked := m.Paths[from]; asked || strings.Contains(from, "%") {
		return m.moved("-D", from, from)
	}
	return m.traceLog()
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
