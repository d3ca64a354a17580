package behind

import (
	"strings"
	"testing"

	"qmigrate/internal/procfs"
)

// What a QEMU has a socket for is on its command line.
func TestSocketUse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, want string }{
		{"-qmp unix:/s,server=on,wait=off", ""},
		{"-chardev socket,id=m,path=/s,server=on,wait=off -mon chardev=m,mode=control", ""},
		{"-chardev socket,id=m,fd=3,server=on,wait=off -mon chardev=m,mode=control", ""}, // libvirt hands the socket over
		{"-serial unix:/other,server -qmp unix:/s,server", ""},
		{"-monitor unix:/s,server,nowait", "-monitor unix:/s,server,nowait"},
		{"--serial unix:/s,server=on", "-serial unix:/s,server=on"},
		{"-chardev socket,id=m,path=/s,server=on -mon chardev=m", "its human monitor (-mon chardev=m)"},
		{"-chardev socket,path=/s,id=s0 -serial chardev:s0", "-serial chardev:s0"},
		{"-chardev socket,path=/s,id=g -device virtserialport,chardev=g,name=org.qemu.guest_agent.0", "the guest agent's (QGA"},
		{`-chardev socket,path=/s,id=g -device {"driver":"virtserialport","chardev":"g","name":"org.qemu.guest_agent.0"}`, "the guest agent's (QGA"},
		{"-chardev socket,path=/s,id=g", "-chardev socket,path=/s,id=g"},
	} {
		if got := socketUse(options(strings.Fields(c.line)), "/s"); got != c.want && (c.want == "" || !strings.HasPrefix(got, c.want)) {
			t.Errorf("%s: %q, want %q", c.line, got, c.want)
		}
	}
}

func TestWaitsFor(t *testing.T) {
	t.Parallel()
	const unixText = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 100 /a
0000000000000000: 00000003 00000000 00000000 0001 03 101 /a
0000000000000000: 00000002 00000000 00010000 0001 01 102 /b
0000000000000000: 00000003 00000000 00000000 0001 02 103 /a
0000000000000000: 00000003 00000000 00000000 0001 03 104
`
	const tcpText = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:115C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:115D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   2: 0100007F:115D 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
`
	unix, err := procfs.ParseUnix([]byte(unixText))
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := procfs.ParseInet([]byte(tcpText))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ line, want string }{
		{"-qmp unix:/b,server=on,wait=off -serial unix:/a,server", ""},
		{"-qmp unix:/a,server -serial unix:/b,server=on,wait=on", "-serial unix:/b,server=on,wait=on"},
		{"-chardev socket,id=c,path=/b,server=on", "-chardev socket,id=c,path=/b,server=on"},
		{"-chardev socket,id=c,path=/b,server=on,wait=no -serial unix:/b,server,nowait", ""},
		{"-serial unix:/b -serial unix:/none,server", ""}, // a client, and one that does not listen yet
		{"-serial tcp:127.0.0.1:4445,server -serial telnet:127.0.0.1:4444,server", "-serial telnet:127.0.0.1:4444,server"},
		{"-chardev socket,id=c,host=0,port=4445,server=on -chardev file,id=f,path=/b", ""},
	} {
		if got := waitsFor(options(strings.Fields(c.line)), unix, tcp); got != c.want {
			t.Errorf("%s: %q, want %q", c.line, got, c.want)
		}
	}
	if !unixSocket(unix, "/a").busy() || unixSocket(unix, "/b").busy() {
		t.Error("busy is a socket with a client and a queue")
	}
}
