package procfs

import (
	"net/netip"
	"os"
	"slices"
	"testing"
)

func TestParseInet(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	for _, c := range []struct {
		name, table string
		want        []InetSocket
		wrong       bool
	}{
		{"none", head, nil, false},
		{"empty", "", nil, false},
		{"listening", head + "   0: 0100007F:170C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1234 1 0 100 0 0 10 0\n",
			[]InetSocket{{netip.MustParseAddrPort("127.0.0.1:5900"), TCPListen, 1234}}, false},
		{"connected", head + "   0: 0100007F:170C 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 1235 1\n",
			[]InetSocket{{netip.MustParseAddrPort("127.0.0.1:5900"), TCPEstablished, 1235}}, false},
		{"IPv6", head + "   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 7 1\n",
			[]InetSocket{{netip.MustParseAddrPort("[::1]:22"), TCPListen, 7}}, false},
		{"UDP", head + "  12: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 9 2 0 0\n",
			[]InetSocket{{netip.MustParseAddrPort("0.0.0.0:5353"), 7, 9}}, false},
		{"short", head + " 0: 0100007F:170C\n", nil, true},
		{"no address", head + "   0: 7F:1 0:0 07 0:0 00:0 0 0 0 9 2\n", nil, true},
		{"no port", head + "   0: 0100007F:x 0:0 07 0:0 00:0 0 0 0 9 2\n", nil, true},
		{"no state", head + "   0: 0100007F:1 0:0 x 0:0 00:0 0 0 0 9 2\n", nil, true},
		{"no inode", head + "   0: 00000000:14E9 0:0 07 0:0 00:0 0 0 0 x 2\n", nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseInet([]byte(c.table))
			if !slices.Equal(got, c.want) || (err != nil) != c.wrong {
				t.Errorf("%+v %v", got, err)
			}
		})
	}
}

func TestParseUnix(t *testing.T) {
	const head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
	got, err := ParseUnix([]byte(head +
		"0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/a.qmp\n" +
		"0000000000000000: 00000003 00000000 00000000 0001 03 12\n" +
		"0000000000000000: 00000003 00000000 00000000 0001 02 13 /run/a.qmp\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 14 @/tmp/.X11-unix/X0\n" +
		"0000000000000000: 00000002 00000000 00000000 0002 01    15 relative  name\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 16 @two\n\n lines\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 1700000 /b\n"))
	want := []UnixSocket{{"/run/a.qmp", true, 1, 11}, {"", false, UnixConnected, 12},
		{"/run/a.qmp", false, UnixConnecting, 13},
		{"@/tmp/.X11-unix/X0", true, 1, 14}, {"relative  name", false, 1, 15},
		{"@two\n\n lines", true, 1, 16}, {"/b", true, 1, 1700000}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	for _, line := range []string{"x: 1 2\n", "x: 2 0 0 1 3 11\nx\n", "x: 2 0 zz 1 1 11 /a\n", "x: 2 0 0 1 zz 11 /a\n",
		"x: 2 0 0 1 1 zz /a\n"} {
		if got, err := ParseUnix([]byte(head + line)); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

// TestNet: this kernel's tables are as the golden texts are.
func TestNet(t *testing.T) {
	for _, name := range []string{"tcp", "udp", "unix"} {
		b, err := os.ReadFile("/proc/self/net/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "unix" {
			_, err = ParseUnix(b)
		} else {
			_, err = ParseInet(b)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
