package launch

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

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
			return m.file(option, w.value), true
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
		why := r.Has + ", which " + outOfReach
		if r.Kind == vsock {
			why = m.contextNumber(v.get("guest-cid"), r)
		}
		if why != "" {
			m.refuse(option, w.value, why)
			return w.value, true
		}
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
		p.value = m.file(w.option, from)
		return p, nil, true
	case Drop:
		m.note(w.option, p.key+"="+from, "", "the source's own: "+r.Has)
		return p, nil, false
	case Later:
		p.value, ok = m.forward(w, v, from)
		m.moves = m.moves || p.value != from
		return p, nil, ok
	case Refuse:
		if v.on(p.key) || r.Key == "rr" || r.Key == "port" || r.Key == "chroot" {
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
		if r.Kind == "memory-backend-file" && (!v.on("share") || m.OtherHost) { // QEMU makes it where it is not there
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
	if m.OtherHost {
		return m.file(option, from)
	}
	if !ok {
		m.refuseFor("Paths", option, value, from+" serves the source ("+what+
			"): give the destination another one (a path for "+
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

// tap is the destination's network interface.
func (m *mover) tap(option, value, from string) string {
	to, ok := m.TAPs[from]
	switch {
	case ok:
		m.need(NeedTAP, option, to)
		return to
	case m.OtherNetwork:
		m.need(NeedTAP, option, from)
		return from
	}
	m.refuseFor("TAPs", option, value, "the source holds the interface "+from+": name another for the destination")
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
		m.refuseFor("Ports", w.option, w.value, "the source holds port "+to+": name another port for "+port)
		return rule, true
	}
	if v.get("id") == "" && m.networks > 1 {
		m.refuseFor("Ports", w.option, w.value, "the source holds port "+port+", and its network has no id among several: "+
			"name another port for "+port)
		return rule, true
	}
	m.forwards = append(m.forwards, Forward{v.get("id"), rule})
	m.note(w.option, "hostfwd="+rule, "", "the source holds port "+port+": it is moved when the guest has moved")
	return rule, false
}
