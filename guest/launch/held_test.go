package launch

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest"
)

func TestParseInet(t *testing.T) {
	head := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	for _, c := range []struct {
		name, network, table string
		want                 []Socket
		wrong                bool
	}{
		{"none", "tcp", head, nil, false},
		{"listening", "tcp", head + "   0: 0100007F:170C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0 100 0 0 10 0\n",
			[]Socket{{Network: "tcp", Address: "127.0.0.1:5900", Listening: true, inode: 1234}}, false},
		{"connected", "tcp", head + "   0: 0100007F:170C 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 1234 1\n", nil, false},
		{"IPv6", "tcp", head + "   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 7 1\n",
			[]Socket{{Network: "tcp", Address: "[::1]:22", Listening: true, inode: 7}}, false},
		{"UDP", "udp", head + "  12: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 9 2 0 0\n",
			[]Socket{{Network: "udp", Address: "0.0.0.0:5353", inode: 9}}, false},
		{"UDP-Lite", "udplite", head + "  12: 00000000:14E9 00000000:0000 07 0:0 00:0 0 0 0 9 2 0 0\n", []Socket{{Network: "udp", Address: "0.0.0.0:5353", inode: 9}}, false},
		{"short", "tcp", head + " 0: 0100007F:170C\n", nil, true},
		{"no address", "udp", head + "   0: 7F:1 0:0 07 0:0 00:0 0 0 0 9 2\n", nil, true},
		{"no inode", "udp", head + "   0: 00000000:14E9 0:0 07 0:0 00:0 0 0 0 x 2\n", nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseInet(c.network, []byte(c.table))
			if !reflect.DeepEqual(got, c.want) || (err != nil) != c.wrong {
				t.Errorf("%+v %v", got, err)
			}
		})
	}
}

func TestParseUnix(t *testing.T) {
	head := "Num       RefCount Protocol Flags    Type St Inode Path\n"
	got, err := parseUnix("unix", []byte(head+
		"0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/a.qmp\n"+
		"0000000000000000: 00000003 00000000 00000000 0001 03 12\n"+
		"0000000000000000: 00000002 00000000 00010000 0001 01 13 @/tmp/.X11-unix/X0\n"+
		"0000000000000000: 00000002 00000000 00000000 0002 01 14 relative name\n"))
	want := []Socket{{Network: "unix", Address: "/run/a.qmp", Listening: true, inode: 11},
		{Network: "unix", Address: "@/tmp/.X11-unix/X0", Listening: true, inode: 13},
		{Network: "unix", Address: "relative name", inode: 14}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	for _, line := range []string{"x: 1 2\n", "x: 2 0 zz 1 1 11 /a\n", "x: 2 0 0 1 1 zz /a\n"} {
		if got, err := parseUnix("unix", []byte(head+line)); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func TestParseLocks(t *testing.T) {
	got := parseLocks([]byte("1: POSIX  ADVISORY  WRITE 1234 08:01:77 0 EOF\n2: OFDLCK ADVISORY  READ -1 00:1f:78 100 101\n2: -> FLOCK ADVISORY WRITE 5 fd:0a:79 0 EOF\n3: nonsense a:b:c\n"))
	want := map[fileID]bool{{unix.Mkdev(8, 1), 77}: true, {unix.Mkdev(0, 0x1f), 78}: true,
		{unix.Mkdev(0xfd, 10), 79}: true}
	if !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestWrites(t *testing.T) {
	for info, want := range map[string]bool{"pos:\t0\nflags:\t0100002\n": true, "flags:\t02000001\n": true,
		"flags:\t0100000\n": false, "": false, "flags:\tx\n": false} {
		if writes([]byte(info)) != want {
			t.Errorf("%q", info)
		}
	}
}

// What this process opens is what it holds, by every name.
func TestReadHeld(t *testing.T) {
	dir := guesttest.Dir(t)
	must := func(c interface{ Close() error }, err error) interface{ Close() error } {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	port := func(a net.Addr) string { _, p := rsplit(a.String(), ":"); return p }
	tcp := must(net.Listen("tcp4", "127.0.0.1:0")).(net.Listener)
	udp := must(net.ListenPacket("udp4", "127.0.0.1:0")).(net.PacketConn)
	abstract := fmt.Sprintf("qmigrate-test-%d", os.Getpid())
	must(net.Listen("unix", "@"+abstract))
	must(net.Listen("unix", dir+"/socket"))
	must(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/datagrams", Net: "unixgram"}))
	must(os.Create(dir + "/file"))
	if err := os.WriteFile(dir+"/read", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	must(os.Open(dir + "/read"))
	locked := must(os.Create(dir + "/locked")).(*os.File)
	if err := unix.Flock(int(locked.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/file", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	closed := must(net.Listen("tcp4", "127.0.0.1:0")).(net.Listener)
	closed.Close()
	h, err := ReadHeld(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !h.port("tcp", port(tcp.Addr())) || h.port("udp", port(tcp.Addr())) || !h.port("udp", port(udp.LocalAddr())) ||
		h.port("tcp", port(closed.Addr())) {
		t.Errorf("ports %s %s: %+v", tcp.Addr(), udp.LocalAddr(), h.Sockets)
	}
	for name, want := range map[string]bool{"socket": true, "datagrams": true, "file": true, "link": true, "locked": true,
		"read": false, "none": false} {
		if what, ok := h.path(filepath.Join(dir, name)); ok != want {
			t.Errorf("%s: %v %s", name, ok, what)
		}
	}
	if i := slices.IndexFunc(h.Files, func(f File) bool { return f.Path == dir+"/locked" }); i < 0 || !h.Files[i].Locked {
		t.Errorf("%+v", h.Files)
	}
	for value, want := range map[string]bool{"a=b,path=" + dir + "/socket": true, "unix:" + dir + "/file": true,
		"x:" + port(tcp.Addr()): true, port(tcp.Addr()): false, "00:" + port(tcp.Addr()) + ":00": false, "52:54:00:" +
			port(tcp.Addr()): false, "[::]:" + port(tcp.Addr()): true,
		abstract: true, "@" + abstract: true, "name=" + abstract + ",x": true, dir: false, "": false} {
		if what, ok := h.named("key", value, true); ok != want {
			t.Errorf("%s: %v %s", value, ok, what)
		}
	}
	if _, ok := h.named("port", port(udp.LocalAddr()), true); !ok {
		t.Error("a port's number alone is not seen")
	}
	if _, ok := h.named("port", port(udp.LocalAddr()), false); ok {
		t.Error("a port of another network counts")
	}
	if _, err := ReadHeld(1 << 30); err == nil || strings.Contains(err.Error(), "%!") {
		t.Error(err)
	}
}

func TestLittleEndian(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Error("parseAddress reads a little-endian machine's tables only")
	}
}
