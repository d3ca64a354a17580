package fit

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/qmp"
)

// TestDisks: what two sides have, what the pair check says of it, and what is said where the destination was launched
// from the source's command line. In the texts an image is NAME[:FORMAT][=ID], ID "-" for a file that is not known; <
// is based on.
func TestDisks(t *testing.T) {
	removed := func(f *facts.Facts) { f.Disks[0].Layers[0].Opened.Removed = true }
	on := func(kind string) func(f *facts.Facts) {
		return func(f *facts.Facts) {
			f.Disks[0].Layers[0].Opened.Uncertain = kind
			f.Disks[0].Layers[0].Opened.Path = "/one"
		}
	}
	content := func(kind string) func(f *facts.Facts) {
		return func(f *facts.Facts) { f.Disks[0].Layers[0].Opened.Content = kind }
	}
	elsewhere := func(f *facts.Facts) { f.Where, f.On = endpoint.Unknown, "" }
	removable := func(f *facts.Facts) { f.Disks[0].Removable, f.Disks[0].ReadOnly = true, true }
	readOnly := func(f *facts.Facts) { f.Disks[0].ReadOnly = true }
	mirrored := func(f *facts.Facts) { f.Disks[0].Mirrored = true }
	all := func(change ...func(f *facts.Facts)) func(f *facts.Facts) {
		return func(f *facts.Facts) {
			for _, c := range change {
				c(f)
			}
		}
	}
	for _, c := range []struct {
		name, src, dst string
		src2, dst2     func(f *facts.Facts)
		plan           plan.Plan
		chosen         []string
		refuse, doubt  string // of the pair check: a part of the one text; "": none
		launch         string // of LaunchedDisks: "!" and a part of the refusal, "?" and a part of the doubt; "": neither
	}{
		{name: "same", src: "/d=1", dst: "/d=1"},
		{name: "link", src: "/d=1", dst: "/dev/disk/by-id/d=1"},
		{name: "another folder", src: "d=1", dst: "d=2", doubt: "is /1/d on the source, /2/d on the destination, which is another file", launch: "!which is another file"},
		{name: "another name", src: "/d=1", dst: "/e=2", doubt: "which is another file", launch: "!start the destination with /1/d (raw)"},
		{name: "another name, not to be looked at", src: "/d=-", dst: "/e=-", doubt: "is /d on the source, /e on the destination: unless they are one and the same", launch: "!unless they are one"},
		{name: "the same name, not to be looked at", src: "/d=-", dst: "/d=-", launch: "?this user may not see which files that QEMU has open"},
		{name: "relative, not to be looked at", src: "d=-", dst: "/x/d=-", doubt: "unless they are one", launch: "?nothing says that they are one and the same"},
		{name: "server", src: "nbd://h/d=-", dst: "nbd://h/d=-", launch: "?it is on a server"},
		{name: "another export", src: "nbd://h/d=-", dst: "nbd://h/e=-", doubt: "unless they are one", launch: "!nbd://h/e"},
		{name: "two machines, one name", src: "/d=1", dst: "/d=2", dst2: elsewhere, doubt: "goes through the host's page cache", launch: "?nothing says"},
		{name: "two machines, two names", src: "/d=1", dst: "/e=1", dst2: elsewhere, doubt: "unless they are one", launch: "!unless"},
		{name: "overlay file system", src: "/d=1", dst: "/d=2", src2: on("overlay"), dst2: on("overlay"), launch: "?a file system of kind overlay may number one file twice"},
		{name: "overlay file system, two files", src: "/d=1", dst: "/d=2", src2: on("overlay"), doubt: "which is another file", launch: "!another file"},
		{name: "snapshot", src: "/ov:qcow2=2 < /d=1", dst: "/d=1", doubt: "is /2/ov (qcow2) on the source, a layer over what it is on the destination, /1/d (raw): what the guest wrote since that snapshot would be gone", launch: "!block-commit"},
		{name: "two snapshots", src: "/ov2:qcow2=3 < /ov:qcow2=2 < /d=1", dst: "/ov:qcow2=2 < /d=1", doubt: "a layer over what it is on the destination, /2/ov (qcow2)", launch: "!gone"},
		{name: "snapshot, not to be looked at", src: "/ov:qcow2=- < /d=-", dst: "/d=-", doubt: "would be gone", launch: "!gone"},
		{name: "commit", src: "/d=1", dst: "/ov:qcow2=2 < /d=1", doubt: "a layer over it that the guest no longer has", launch: "!no longer has"},
		{name: "the same layers", src: "/ov:qcow2=2 < /d=1", dst: "/ov:qcow2=2 < /d=1"},
		{name: "another base", src: "/ov:qcow2=2 < /d=1", dst: "/ov:qcow2=2 < /e=3", doubt: "is based on /1/d (raw) on the source, on /3/e (raw) on the destination", launch: "!is based on"},
		{name: "base of another format", src: "/ov:qcow2=2 < /d:qcow2=1", dst: "/ov:qcow2=2 < /d=1", refuse: "is based on /1/d (qcow2)", launch: "!is based on"},
		{name: "no base", src: "/ov:qcow2=2 < /d=1", dst: "/ov:qcow2=2", doubt: "on nothing on the destination", launch: "!nothing"},
		{name: "a base too many", src: "/ov:qcow2=2", dst: "/ov:qcow2=2 < /d=1", doubt: "nothing there on the source", launch: "!nothing"},
		{name: "filter", src: "x:throttle=9 < /d=1", dst: "/d=1"},
		{name: "protocol alone", src: "/d:file=1", dst: "/d:raw=1"},
		{name: "format", src: "/d:qcow2=1", dst: "/d:raw=1", refuse: "is of format qcow2 on the source, and the destination opens the same /1/d as raw", launch: "!garbage"},
		{name: "format by name", src: "/d:raw=-", dst: "/d:qcow2=-", refuse: "format raw on the source", launch: "!garbage"},
		{name: "format of a read-only disk", src: "/d:qcow2=1", dst: "/d:raw=1", src2: readOnly, dst2: readOnly, refuse: "garbage", launch: "!garbage"},
		{name: "format of a mirrored disk", src: "/d:qcow2=1", dst: "/e:raw=2", src2: mirrored, plan: plan.Plan{Mirror: plan.Mirror{Nodes: []string{"node"}}}},
		{name: "chosen by the user", src: "/d=1", dst: "/e=2", chosen: []string{"/e"}, doubt: "another file"},
		{name: "chosen, wrong format", src: "/d:raw=1", dst: "/e:raw=2", dst2: content("qcow2"), chosen: []string{"/e"}, refuse: "/2/e is an image of format qcow2"},
		{name: "chosen, wrong format as on the source", src: "/d:qcow2=1", dst: "/e:raw=2", src2: content("qcow2"), dst2: content("qcow2"), chosen: []string{"/e"}, refuse: "image of format qcow2"},
		{name: "an image in a raw disk", src: "/d=1", dst: "/d=1", src2: content("vmdk"), dst2: content("vmdk")},
		{name: "a copy of an image in a raw disk", src: "/d=1", dst: "/e=2", src2: content("vmdk"), dst2: content("vmdk"), chosen: []string{"/e"}, doubt: "another file"},
		{name: "temporary", src: "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/t\"}}:qcow2=3 < /d=1", dst: "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/u\"}}:qcow2=4 < /d=1", src2: removed,
			doubt: "is written to /t on the source, a removed file", launch: "!blockdev-mirror with sync=full"},
		{name: "limits", src: "/d=1", dst: "/d=1", src2: func(f *facts.Facts) { f.Disks[0].Throttle = qmp.Throttle{BPS: 5, IOPSWr: 7, Group: "g"} }, doubt: "source bps=5,iops_wr=7, destination none"},
		{name: "group of limits", src: "/d=1", dst: "/d=1", src2: func(f *facts.Facts) { f.Disks[0].Throttle.Group = "g" }},
		{name: "another CD", src: "/one.iso=1", dst: "/two.iso=2", src2: removable, dst2: removable, doubt: "/2/two.iso on the destination, which is another file", launch: "!another file"},
		{name: "another CD of one name on two machines", src: "/one.iso=1", dst: "/one.iso=2", src2: all(removable, elsewhere), dst2: removable, launch: "?nothing"},
		{name: "no CD", src: "/one.iso=1", dst: "", src2: removable, dst2: removable, doubt: "no medium on the destination", launch: "!eject it"},
		{name: "no CD on the source", src: "", dst: "/one.iso=1", src2: removable, dst2: removable, doubt: "has no medium on the source", launch: "!only"},
		{name: "no CDs", src: "", dst: "", src2: removable, dst2: removable},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst := diskFacts(c.src), diskFacts(c.dst)
			if c.src2 != nil {
				c.src2(src)
			}
			if c.dst2 != nil {
				c.dst2(dst)
			}
			var refusals, doubts []string
			compareDisks(src, dst, func(p, m string) { refusals = append(refusals, p+": "+m) },
				func(p, m string) { doubts = append(doubts, p+": "+m) })
			one := func(what string, got []string, want string) {
				t.Helper()
				if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
					t.Errorf("%s: %q\nwant %q", what, got, want)
				}
			}
			one("refused", refusals, c.refuse)
			one("doubts", doubts, c.doubt)
			no, perhaps := LaunchedDisks(src, dst, c.plan, c.chosen)
			var said []string
			for _, m := range no {
				said = append(said, "!"+m.Error())
			}
			for _, m := range perhaps {
				said = append(said, "?"+m.Error())
			}
			kind, want := "", c.launch
			if want != "" {
				kind, want = want[:1], want[1:]
			}
			one("launched", said, want)
			if len(said) == 1 && said[0][:1] != kind {
				t.Errorf("launched: %q, want it to begin with %s", said[0], kind)
			}
		})
	}
}

// diskFacts are those of a QEMU on this machine with one disk, written as TestDisks says.
func diskFacts(text string) *facts.Facts {
	d := facts.Disk{Device: "pci/06.0/virtio-blk-device", Name: "d"}
	for image := range strings.SplitSeq(text, " < ") {
		if image == "" {
			continue
		}
		at := strings.LastIndexByte(image, '=')
		name, id := image[:at], image[at+1:]
		format := "raw"
		if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.ContainsAny(name[i:], "/}") {
			name, format = name[:i], name[i+1:]
		}
		l := facts.Layer{Name: name, Format: format, File: facts.LocalFile(name)}
		if id != "-" {
			l.Opened = &endpoint.OpenFile{Path: "/" + id + "/" + strings.TrimPrefix(l.File, "/"), ID: id}
		}
		if d.Node == "" {
			d.Node, d.File, d.Driver = "node", name, format
		}
		d.Layers = append(d.Layers, l)
	}
	for len(d.Layers) > 0 && d.Layers[0].Format == "throttle" {
		d.Layers = d.Layers[1:]
	}
	return &facts.Facts{Disks: []facts.Disk{d}, Devices: []facts.Device{{Type: "virtio-blk-device", Path: d.Device}}, Where: endpoint.Here,
		On: endpoint.ThisMachine}
}

// The layers in QEMU's own answer (10.0.2, -drive snapshot=on on a node of the driver throttle, cut down).
func TestLayers(t *testing.T) {
	var m qmp.BlockMedium
	err := json.Unmarshal([]byte(`{"node-name": "#block953", "bps": 7, "group": "d", "write_threshold": 9, "image": {"format": "throttle", "filename": "json:{\"driver\": \"throttle\"}", "virtual-size": 16,
		"backing-image": {"format": "qcow2", "filename": "json:{\"backing\": {\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"filename\": \"/e.img\"}}, \"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"/var/tmp/vl.A\"}}",
		"backing-image": {"format": "raw", "filename": "nbd:unix:/s"}}}}`), &m)
	if err != nil {
		t.Fatal(err)
	}
	got := facts.DisksOf([]qmp.BlockDevice{{Device: "d", Inserted: &m}}, nil)[0]
	if fmt.Sprint(got.Layers[0], got.Layers[1]) != "/var/tmp/vl.A (qcow2) nbd:unix:/s (raw)" ||
		got.Layers[0].File != "/var/tmp/vl.A" || got.Layers[1].File != "" || len(got.Layers) != 2 {
		t.Errorf("%+v", got.Layers)
	}
	if got.Throttle.BPS != 7 || got.Throttle.Group != "d" || got.Threshold != 9 {
		t.Errorf("%+v", got)
	}
	for name, want := range map[string]string{"/a:b": "/a:b", "a": "a", "file:a": "a", "rbd:p/i": "",
		"host_device:/dev/sda": "/dev/sda", "https://h/a": "", "json:{": "", "fat:rw:/d": "",
		`json:{"driver":"raw","file":{"driver":"nbd","path":"/s"}}`: "", `json:{"driver":"host_cdrom","filename":"/dev/sr0"}`: "/dev/sr0"} {
		if got := facts.LocalFile(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
