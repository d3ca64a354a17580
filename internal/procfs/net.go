package procfs

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// States of sockets in the tables of net. Source: include/net/tcp_states.h, include/uapi/linux/net.h.
const (
	TCPEstablished = 0x01
	TCPListen      = 0x0A
	UnixConnecting = 0x02 // it waits to be accepted
	UnixConnected  = 0x03
)

// InetSocket is a line of net/tcp, tcp6, udp, udp6, udplite or udplite6. Source: proc_pid_net(5).
type InetSocket struct {
	Local netip.AddrPort
	State uint64
	Inode uint64
}

// ParseInet reads the content of such a file.
func ParseInet(b []byte) (all []InetSocket, err error) {
	for _, f := range rows(b) {
		if len(f) < 10 {
			return nil, fmt.Errorf("want 10 columns, found %q", strings.Join(f, " "))
		}
		var s InetSocket
		if s.Local, err = parseAddress(f[1]); err != nil {
			return nil, err
		}
		if s.State, err = strconv.ParseUint(f[3], 16, 64); err != nil {
			return nil, err
		}
		if s.Inode, err = strconv.ParseUint(f[9], 10, 64); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// parseAddress reads 0100007F:1770: 32-bit words in the machine's byte order, which is little-endian on x86-64.
func parseAddress(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", s)
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", s)
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(n)), nil
}

// UnixSocket is a line of net/unix. The far end of a connection, which was accepted, has the listener's name.
type UnixSocket struct {
	Name      string // a path as it was given to the kernel, or @name; "" if it has none
	Listening bool
	State     uint64
	Inode     uint64
}

// ParseUnix reads the content of net/unix. The kernel does not mark a line end in a name, which anybody may bind: what
// cannot be a line of the table goes on with the name of the line before.
func ParseUnix(b []byte) (all []UnixSocket, err error) {
	_, lines, _ := strings.Cut(string(b), "\n")
	for line := range strings.Lines(lines) {
		line = strings.TrimSuffix(line, "\n")
		s, err := parseUnixSocket(line)
		switch last := len(all) - 1; {
		case err == nil:
			all = append(all, s)
		case last >= 0 && all[last].Name != "":
			all[last].Name += "\n" + line
		default:
			return nil, err
		}
	}
	return all, nil
}

func parseUnixSocket(line string) (s UnixSocket, err error) {
	var f [7]string
	s.Name = line
	for i := range f {
		f[i], s.Name, _ = strings.Cut(strings.TrimLeft(s.Name, " "), " ")
	}
	const acceptcon = 1 << 16 // __SO_ACCEPTCON
	flags, err := strconv.ParseUint(f[3], 16, 64)
	if err == nil {
		s.State, err = strconv.ParseUint(f[5], 16, 64)
	}
	if err == nil {
		s.Inode, err = strconv.ParseUint(f[6], 10, 64)
	}
	if err != nil {
		return UnixSocket{}, fmt.Errorf("want 7 columns and a name, found %q", line)
	}
	s.Listening = flags&acceptcon != 0
	return s, nil
}

// rows are the columns of a table's lines but the first.
func rows(b []byte) (all [][]string) {
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 {
			all = append(all, f)
		}
	}
	return all[min(len(all), 1):]
}
