package beside

import (
	"encoding/json"
	"strings"
	"testing"

	"qmigrate/engine/facts"
	"qmigrate/qmp"
)

// TestCarry: what a launched destination is told, and what it cannot be told.
func TestCarry(t *testing.T) {
	disk := func(name, file string, change func(d *facts.Disk)) facts.Disk {
		d := facts.Disk{Name: name, QOM: "/machine/" + name, Device: "path/" + name}
		if file != "" {
			d.Node, d.File, d.Layers = "#"+name, file, []facts.Layer{{Name: file, File: facts.LocalFile(file), Format: "raw"}}
		}
		if change != nil {
			change(&d)
		}
		return d
	}
	cd := func(d *facts.Disk) { d.Removable, d.ReadOnly = true, true }
	limited := func(d *facts.Disk) { d.Throttle = qmp.Throttle{BPS: 1e6, Group: "g"} }
	for _, c := range []struct {
		name     string
		src, dst runTime
		todo     string // the commands and their arguments
		missing  []string
	}{
		{name: "nothing", src: runTime{disks: []facts.Disk{disk("d", "/d", limited)}, chardevs: []string{"a", "compat_monitor0", "qmigrate-control"}, netdevs: map[string]string{"#net1": "user"}},
			dst: runTime{disks: []facts.Disk{disk("d", "/d", limited)}, chardevs: []string{"a"}}},
		{name: "limits", src: runTime{disks: []facts.Disk{disk("d", "/d", limited)}}, dst: runTime{disks: []facts.Disk{disk("d", "/d", nil)}},
			todo: `block_set_io_throttle {"id":"/machine/d","bps":1000000,"bps_rd":0,"bps_wr":0,"iops":0,"iops_rd":0,"iops_wr":0,"group":"g"}`},
		{name: "limits taken away", src: runTime{disks: []facts.Disk{disk("d", "/d", nil)}}, dst: runTime{disks: []facts.Disk{disk("d", "/d", limited)}},
			todo: `block_set_io_throttle {"id":"/machine/d","bps":0,"bps_rd":0,"bps_wr":0,"iops":0,"iops_rd":0,"iops_wr":0}`},
		{name: "threshold", src: runTime{disks: []facts.Disk{disk("d", "/d", func(d *facts.Disk) { d.Threshold = 5 })}}, dst: runTime{disks: []facts.Disk{disk("e", "/d", func(d *facts.Disk) { d.Device = "path/d" })}},
			todo: `block-set-write-threshold {"node-name":"#e","write-threshold":5}`},
		{name: "another CD", src: runTime{disks: []facts.Disk{disk("cd", "/two", cd)}}, dst: runTime{disks: []facts.Disk{disk("cd", "/one", cd)}},
			todo: `blockdev-change-medium {"filename":"/two","format":"raw","id":"/machine/cd","read-only-mode":"read-only"}`},
		{name: "a CD in a drive that has no name", src: runTime{disks: []facts.Disk{disk("", "/two", cd)}}, dst: runTime{disks: []facts.Disk{disk("", "", cd)}},
			todo: `blockdev-change-medium {"filename":"/two","format":"raw","id":"/machine/","read-only-mode":"read-only"}`},
		{name: "a CD that was ejected", src: runTime{disks: []facts.Disk{disk("cd", "", cd)}}, dst: runTime{disks: []facts.Disk{disk("cd", "/one", cd)}}, todo: `eject {"force":true,"id":"/machine/cd"}`},
		{name: "the same CD", src: runTime{disks: []facts.Disk{disk("cd", "/one", cd)}}, dst: runTime{disks: []facts.Disk{disk("cd", "/one", cd)}}},
		{name: "another disk is no medium", src: runTime{disks: []facts.Disk{disk("d", "/two", nil)}}, dst: runTime{disks: []facts.Disk{disk("d", "/one", nil)}}},
		{name: "a disk that was plugged in", src: runTime{disks: []facts.Disk{disk("d", "/two", limited)}}},
		{name: "made at run time", src: runTime{objects: map[string]string{"g": "throttle-group", "m": "memory-backend-ram", "compat_monitor0": "monitor-qmp", "qmigrate-tls": "tls-creds-x509"},
			chardevs: []string{"late"}, netdevs: map[string]string{"net1": "tap"}},
			dst: runTime{objects: map[string]string{"m": "memory-backend-ram"}, locked: []string{"VNC"}},
			missing: []string{"objects that the source was given while it ran, and the destination lacks: throttle-group g:",
				"network backends that the source was given while it ran, and the destination lacks: tap net1",
				"character devices that the source was given while it ran, and the destination lacks: late", "VNC: a password"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			todo, missing := c.src.carry(c.dst)
			var said []string
			for _, x := range todo {
				b, err := json.Marshal(x.arguments)
				if err != nil || x.what == "" {
					t.Fatalf("%q: %v", x.what, err)
				}
				said = append(said, x.command+" "+string(b))
			}
			if got := strings.Join(said, "\n"); got != c.todo {
				t.Errorf("got  %s\nwant %s", got, c.todo)
			}
			if len(missing) != len(c.missing) {
				t.Fatalf("missing %q", missing)
			}
			for i, m := range missing {
				if !strings.HasPrefix(m, c.missing[i]) {
					t.Errorf("%q, want %q", m, c.missing[i])
				}
			}
		})
	}
}
