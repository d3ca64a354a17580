package launch

import (
	"cmp"
	"strconv"
	"strings"
)

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
