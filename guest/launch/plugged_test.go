package launch_test

import (
	"errors"
	"strings"
	"testing"

	"qmigrate/guest/launch"
)

// What was plugged in is among the options, under the rules for them; what was unplugged is not, and leaves its
// neighbours where they are.
func TestPlugged(t *testing.T) {
	nic := launch.Added{Option: "-device", ID: "hot", Value: `{"driver":"virtio-net-pci","id":"hot","netdev":"t"}`,
		Device: "virtio-net-pci hot"}
	tap := launch.Added{Option: "-netdev", ID: "t", Value: `{"type":"tap","id":"t","ifname":"tap0"}`, Device: nic.Device,
		Lost: "vhost="}
	place := map[string]any{"addr": "03.0", "bus": "pci.0"}
	for _, c := range []struct {
		name, args string
		plugged    launch.Plugged
		taps       map[string]string
		want       string
		setting    string // that a refusal names
		refused    string
	}{
		{name: "in", args: "-m 64", plugged: launch.Plugged{Added: []launch.Added{tap, nic}}, taps: map[string]string{"tap0": "tap1"},
			want: `-m 64 -netdev {"id":"t","ifname":"tap1","type":"tap"} -device ` + nic.Value},
		{name: "on a backend of the command line", args: "-netdev user,id=t", plugged: launch.Plugged{Added: []launch.Added{tap, nic}},
			want: "-netdev user,id=t -device " + nic.Value},
		{name: "TAP", plugged: launch.Plugged{Added: []launch.Added{tap, nic}}, setting: "TAPs",
			refused: "name another for the destination, or unplug virtio-net-pci hot first (device_del)"},
		{name: "of the host", setting: "", refused: "cannot be had twice: start the destination yourself, or unplug vfio-pci v first (device_del)",
			plugged: launch.Plugged{Added: []launch.Added{{Option: "-device", ID: "v",
				Value: `{"driver":"vfio-pci","host":"01:00.0"}`, Device: "vfio-pci v"}}}},
		{name: "unknown", refused: "is of type x: start the destination yourself, or unplug virtio-net-pci hot first",
			plugged: launch.Plugged{Added: []launch.Added{{Option: "-netdev", ID: "t", Reason: "is of type x",
				Device: nic.Device}, nic}}},
		{name: "out", args: "-netdev user,id=t -device e1000,netdev=t -device usb-kbd,id=k -virtfs local,path=/srv,mount_tag=t,security_model=none -device e1000 -device {\"driver\":\"e1000\",\"id\":\"j\"}",
			plugged: launch.Plugged{Devices: map[string]map[string]any{"k": {}, "device[2]": place, "j": place},
				Backends: map[string][]string{"-netdev": {}}},
			want: "-device usb-kbd,id=k -virtfs local,path=/srv,mount_tag=t,security_model=none -device e1000,addr=03.0,bus=pci.0 " +
				`-device {"addr":"03.0","bus":"pci.0","driver":"e1000","id":"j"}`},
		{name: "out, and its backend stays", args: "-netdev user,id=t -device e1000,netdev=t,id=n -device vfio-pci,id=p,failover_pair_id=n",
			plugged: launch.Plugged{Devices: map[string]map[string]any{}, Backends: map[string][]string{"-netdev": {"t"}}},
			refused: "failover_pair_id=n: device of the host, which cannot be had twice: start the destination yourself"},
		{name: "out and in", args: "-device e1000,id=hot", plugged: launch.Plugged{Added: []launch.Added{nic}, Devices: map[string]map[string]any{}},
			want: "-device " + nic.Value},
	} {
		t.Run(c.name, func(t *testing.T) {
			line, err := launch.Destination(append([]string{"qemu"}, strings.Fields(c.args)...),
				launch.Options{Dir: "/run/b", Plugged: c.plugged, TAPs: c.taps})
			refused := (*launch.ArgumentError)(nil)
			switch {
			case c.refused != "":
				if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.refused) || refused.Setting != c.setting {
					t.Errorf("want it refused: %v %v", line, err)
				}
			case err != nil:
				t.Error(err)
			default:
				words := strings.Join(line.Args[1:], " ")
				if words, _, _ = strings.Cut(words, " -D /run/b/trace.log -msg timestamp=on -incoming defer"); words != c.want {
					t.Errorf("%s\nwant\n%s", words, c.want)
				}
				lost := len(c.taps) > 0
				if (len(line.Doubts) > 0) != lost {
					t.Errorf("doubts %q", line.Doubts)
				}
			}
		})
	}
}
