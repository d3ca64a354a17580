package beside

import (
	"strings"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/guest/launch"
)

// A source in another network cannot reach 127.0.0.1 of the destination's.
func TestListenAcross(t *testing.T) {
	for _, c := range []struct {
		listen, connect, want string
		tls                   bool
		wrong, apart          bool
	}{
		{want: "unix:/run/b/migration.sock"},
		{tls: true, wrong: true},
		{listen: "tcp:127.0.0.1:4444", wrong: true},
		{listen: "tcp:localhost:0", wrong: true},
		{listen: "tcp:[::1]:0", wrong: true},
		{listen: "tcp:127.0.0.1:4444", connect: "tcp:10.0.0.2:4444", want: "tcp:127.0.0.1:4444"},
		{listen: "tcp:10.0.0.1:0", want: "tcp:10.0.0.1:0"},
		{listen: "unix:/run/m", want: "unix:/run/m"},
		{apart: true, want: ""}, // connect.Listen finds an address
		{apart: true, listen: "tcp:127.0.0.1:0", wrong: true},
		{apart: true, tls: true, want: ""},
	} {
		p := &plan.Plan{Listen: c.listen, Connect: c.connect}
		if c.tls {
			p.TLS = &plan.TLS{}
		}
		if err := listenAcross(p, launch.Options{Dir: "/run/b", OtherHost: c.apart}, "netns:b"); (err != nil) != c.wrong || err == nil && p.Listen != c.want {
			t.Errorf("%+v: %q %v", c, p.Listen, err)
		} else if err != nil && !strings.Contains(err.Error(), "give tcp:ADDRESS:0") {
			t.Error(err)
		}
	}
}
