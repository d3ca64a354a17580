package launch

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest"
)

func TestParseSockets(t *testing.T) {
	const line = "\n   0: 0100007F:170C 00000000:0000 0A 0:0 00:0 0 0 0 11 1\n   1: 0100007F:170C 0100007F:1234 01 0:0 00:0 0 0 0 12 1\n"
	const unix = "\n0: 00000002 00000000 00010000 0001 01 11 /run/a.qmp\n0: 00000003 00000000 00000000 0001 03 12\n"
	listens := Socket{Network: "tcp", Address: "127.0.0.1:5900", Listening: true, inode: 11}
	udp := []Socket{{Network: "udp", Address: "127.0.0.1:5900", inode: 11},
		{Network: "udp", Address: "127.0.0.1:5900", inode: 12}}
	for table, want := range map[string][]Socket{"tcp": {listens}, "tcp6": {listens}, "udp": udp, "udplite": udp,
		"udplite6": udp,
		"unix":     {{Network: "unix", Address: "/run/a.qmp", Listening: true, inode: 11}}} {
		text := "head" + line
		if table == "unix" {
			text = "head" + unix
		}
		if got, err := parseSockets(table, []byte(text)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", table, got, err, want)
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
