package behind

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
)

// Monitor is a monitor that does not answer: of which process, and by which path it was connected to; "": that does not
// matter.
type Monitor struct {
	PID  int
	Path string
}

// Mute says, as far as the kernel knows, why the process behind a monitor does not greet, or not answer. It is "" where
// nothing is known.
func Mute() host.Task[Monitor, string] {
	return one("behind.mute", func(_ context.Context, in Monitor) (string, error) { return whyMute(in), nil })
}

func whyMute(in Monitor) string {
	process, err := launch.ReadProcess(in.PID)
	if err != nil || process.Program == "" {
		return ""
	}
	pid := process.PID
	if !process.IsQEMU() {
		return fmt.Sprintf("no answer: process %d (%s) listens there and is no QEMU; if it is a forwarder, its far end may "+
			"be gone, or busy", pid, filepath.Base(process.Program))
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if state := procfs.Value(status, "State"); strings.HasPrefix(state, "T") || strings.HasPrefix(state, "t") {
		return fmt.Sprintf("QEMU (process %d) is stopped: `kill -CONT %d` lets it go on", pid, pid)
	}
	read := func(table string) []byte {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		return b
	}
	unix, _ := procfs.ParseUnix(read("unix"))
	tcp, _ := procfs.ParseInet(read("tcp"))
	tcp6, _ := procfs.ParseInet(read("tcp6"))
	words := options(process.Args)
	if in.Path != "" {
		if use := socketUse(words, in.Path); use != "" {
			return fmt.Sprintf("QEMU (process %d) has this socket as %s and not as a QMP monitor: give the one of its -qmp", pid,
				use)
		}
		if unixSocket(unix, in.Path).busy() {
			return fmt.Sprintf("another client holds this monitor of QEMU (process %d), which serves one at a time: end that "+
				"client, or give another monitor", pid)
		}
	}
	if device := waitsFor(words, unix, slices.Concat(tcp, tcp6)); device != "" {
		return fmt.Sprintf("QEMU (process %d) seems to wait for a client of %s before it starts: connect one, or start it "+
			"with wait=off there", pid, device)
	}
	return ""
}

// option is one option of a command line, without its dashes, and what follows it.
type option struct{ name, value string }

func (o option) String() string { return "-" + o.name + " " + o.value }

func options(args []string) (all []option) {
	for i, a := range args {
		name := strings.TrimLeft(a, "-")
		if name == a || i+1 == len(args) {
			continue
		}
		all = append(all, option{name, args[i+1]})
	}
	return all
}

// chardev is the address of a character device that an option makes: unix:PATH, tcp:HOST:PORT and so on; "" if it makes
// none. Server tells whether it listens, and waits whether QEMU waits for its first client.
func (o option) chardev() (address string, server, waits bool) {
	fields := strings.Split(o.value, ",")
	switch o.name {
	case "serial", "parallel", "monitor", "qmp", "qmp-pretty", "debugcon", "virtioconsole":
		address = strings.Replace(fields[0], "telnet:", "tcp:", 1)
		if !strings.HasPrefix(address, "unix:") && !strings.HasPrefix(address, "tcp:") {
			return "", false, false
		}
	case "chardev":
		if fields[0] != "socket" {
			return "", false, false
		}
		switch get := func(key string) string { return field(fields, key) }; {
		case get("path") != "":
			address = "unix:" + get("path")
		case get("port") != "":
			address = "tcp:" + get("host") + ":" + get("port")
		default:
			return "", false, false
		}
	default:
		return "", false, false
	}
	on := func(key string) bool {
		v := field(fields, key)
		return v == "on" || v == "yes" || v == "true" || v == "" && slices.Contains(fields[1:], key)
	}
	off := func(key string) bool {
		v := field(fields, key)
		return v == "off" || v == "no" || v == "false" || slices.Contains(fields[1:], "no"+key)
	}
	server = on("server")
	return address, server, server && !off("wait")
}

// field is the value of key in words such as id=a; "" if it is not there.
func field(fields []string, key string) string {
	for _, f := range fields {
		if v, ok := strings.CutPrefix(f, key+"="); ok {
			return v
		}
	}
	return ""
}

// socketUse is what a QEMU has a socket for, where that is not QMP: the option that names it. "" if it is QMP, or not
// known.
func socketUse(all []option, path string) string {
	for _, o := range all {
		address, _, _ := o.chardev()
		if address != "unix:"+path {
			continue
		}
		switch o.name {
		case "qmp", "qmp-pretty":
			return ""
		case "chardev":
			if id := field(strings.Split(o.value, ","), "id"); id != "" {
				return chardevUse(all, o, id)
			}
		}
		return o.String()
	}
	return ""
}

// chardevUse is socketUse for the character device that o makes.
func chardevUse(all []option, o option, id string) string {
	for _, user := range all {
		words := strings.Split(user.value, ",")
		if user.name == "chardev" || field(words, "chardev") != id && user.value != "chardev:"+id &&
			!strings.Contains(user.value, `"chardev":"`+id+`"`) {
			continue
		}
		switch {
		case user.name == "mon" && field(words, "mode") == "control", strings.HasPrefix(user.name, "qmp"):
			return ""
		case user.name == "mon":
			return "its human monitor (-mon " + user.value + ")"
		case strings.Contains(user.value, "org.qemu.guest_agent"):
			return "the guest agent's (QGA, -device " + user.value + ")"
		}
		return user.String()
	}
	return o.String()
}

// waitsFor is the first character device that QEMU waits for a client of; "" if there is none. An accepted
// connection of a unix socket has the listener's path, one of TCP its port.
func waitsFor(all []option, unix []procfs.UnixSocket, tcp []procfs.InetSocket) string {
	for _, o := range all {
		address, _, waits := o.chardev()
		if !waits {
			continue
		}
		kind, rest, _ := strings.Cut(address, ":")
		seen := unixSocket(unix, rest)
		if kind == "tcp" {
			_, port, err := net.SplitHostPort(rest)
			if err != nil {
				continue
			}
			seen = tcpPort(tcp, port)
		}
		if seen.listens && seen.accepted == 0 {
			return o.String()
		}
	}
	return ""
}

// use is what the kernel knows of a listening socket.
type use struct {
	listens  bool
	accepted int // clients that were accepted and are still connected
	queued   int // clients that wait to be accepted
}

// busy: it has a client, and another one waits.
func (u use) busy() bool { return u.accepted > 0 && u.queued > 0 }

// unixSocket is what a table of unix sockets says of one path.
func unixSocket(table []procfs.UnixSocket, path string) (u use) {
	for _, s := range table {
		switch {
		case s.Name != path || path == "":
		case s.Listening:
			u.listens = true
		case s.State == procfs.UnixConnected:
			u.accepted++
		case s.State == procfs.UnixConnecting: // it has no file yet
			u.queued++
		}
	}
	return u
}

// Listens tells whether somebody listens on a unix socket that has one of these names.
func Listens() host.Task[[]string, bool] {
	return one("behind.listens", func(_ context.Context, names []string) (bool, error) {
		b, err := os.ReadFile("/proc/net/unix")
		table, _ := procfs.ParseUnix(b)
		return slices.ContainsFunc(names, func(name string) bool { return unixSocket(table, name).listens }), err
	})
}

// tcpPort is unixSocket for a TCP port, whose queue the table does not tell apart.
func tcpPort(table []procfs.InetSocket, port string) (u use) {
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return u
	}
	for _, s := range table {
		switch {
		case int(s.Local.Port()) != n:
		case s.State == procfs.TCPListen:
			u.listens = true
		case s.State == procfs.TCPEstablished:
			u.accepted++
		}
	}
	return u
}
