package launch_test

import (
	"strings"
	"testing"

	"qmigrate/guest/launch"
)

// What the command line says, what the drives hold, and what the destination has to be told.
func TestPresentDrives(t *testing.T) {
	layer := func(m launch.Medium) launch.Medium {
		m.Told, m.File, m.Format, m.Known = "/v/ov.qcow2", "/v/ov.qcow2", "qcow2", true
		return m
	}
	raw := func(file string, m launch.Medium) launch.Medium {
		m.Told, m.File, m.Format, m.Known = file, file, "raw", true
		return m
	}
	for _, c := range []struct {
		name, args string // one space between words
		media      []launch.Medium
		paths      map[string]string
		want       string // "": as before
		err        string
	}{
		{name: "as it was", args: "-drive file=d.img,format=raw,id=d -cdrom a.iso -hda e.img", media: []launch.Medium{raw("d.img", launch.Medium{Drive: "d"}), raw("a.iso", launch.Medium{Drive: "ide2-cd0"}), raw("e.img", launch.Medium{Drive: "ide0-hd0"})}},
		{name: "snapshot", args: "-drive if=none,file=/v/d.img,id=d,format=raw,cache=none", media: []launch.Medium{layer(launch.Medium{Drive: "d"})},
			want: "-drive if=none,id=d,cache=none,file=/v/ov.qcow2,format=qcow2"},
		{name: "of two drives one", args: "-drive file=/v/d.img,id=c,format=raw -drive file=/v/d.img,id=d,format=raw,file.locking=off", media: []launch.Medium{raw("/v/d.img", launch.Medium{Drive: "c"}), layer(launch.Medium{Drive: "d"})},
			want: "-drive file=/v/d.img,id=c,format=raw -drive id=d,file.locking=off,file=/v/ov.qcow2,format=qcow2"},
		{name: "no format was given", args: "-drive id=d,file=/v/d.img", media: []launch.Medium{layer(launch.Medium{Drive: "d"})}, want: "-drive id=d,file=/v/ov.qcow2,format=qcow2"},
		{name: "nested name", args: "-drive id=d,driver=raw,file.driver=file,file.filename=/v/d.img", media: []launch.Medium{layer(launch.Medium{Drive: "d"})}, want: "-drive id=d,file=/v/ov.qcow2,format=qcow2"},
		{name: "commit", args: "-drive file=/v/ov.qcow2,id=d,format=qcow2", media: []launch.Medium{raw("/v/d.img", launch.Medium{Drive: "d"})}, want: "-drive id=d,file=/v/d.img,format=raw"},
		{name: "comma and colon", args: "-drive file=a,,b,id=d", media: []launch.Medium{raw("c:d,e", launch.Medium{Drive: "d"})}, want: "-drive id=d,file=file:c:d,,e,format=raw"},
		{name: "read-only now", args: "-drive if=floppy,file=/f,format=raw", media: []launch.Medium{raw("/g", launch.Medium{Drive: "floppy0", ReadOnly: true})}, want: "-drive if=floppy,file=/g,format=raw,readonly=on"},
		{name: "another CD", args: "-drive file=/a.iso,media=cdrom,id=cd", media: []launch.Medium{raw("/b.iso", launch.Medium{Drive: "cd", ReadOnly: true})}, want: "-drive media=cdrom,id=cd,file=/b.iso,format=raw"},
		{name: "ejected CD", args: "-drive file=/a.iso,media=cdrom,id=cd,format=raw", media: []launch.Medium{{Drive: "cd", Empty: true}}, want: "-drive media=cdrom,id=cd"},
		{name: "inserted CD", args: "-drive media=cdrom,id=cd,if=none", media: []launch.Medium{raw("/b.iso", launch.Medium{Drive: "cd", ReadOnly: true})}, want: "-drive media=cdrom,id=cd,if=none,file=/b.iso,format=raw"},
		{name: "empty as before", args: "-drive media=cdrom,id=cd,if=none", media: []launch.Medium{{Drive: "cd", Empty: true}}},
		{name: "-cdrom", args: "-cdrom /a.iso -m 64", media: []launch.Medium{raw("/b.iso", launch.Medium{Drive: "ide2-cd0", ReadOnly: true})}, want: "-drive index=2,media=cdrom,file=/b.iso,format=raw -m 64"},
		{name: "names", args: "/v/a -hdb /v/b -drive file=/v/c -fda /v/f -drive if=virtio,file=/v/v -drive if=virtio,file=/v/w -drive if=scsi,index=8,file=/v/s -pflash /v/p",
			media: []launch.Medium{raw("/n/a", launch.Medium{Drive: "ide0-hd0"}), raw("/n/b", launch.Medium{Drive: "ide1-hd0"}),
				raw("/n/c", launch.Medium{Drive: "ide2-hd0"}), raw("/n/f", launch.Medium{Drive: "floppy0"}),
				raw("/v/v", launch.Medium{Drive: "virtio0"}), raw("/n/w", launch.Medium{Drive: "virtio1"}), raw("/n/s",
					launch.Medium{Drive: "scsi1-hd1"}), raw("/n/p", launch.Medium{Drive: "pflash0"})},
			want: "-drive index=0,media=disk,file=/n/a,format=raw -drive index=1,media=disk,file=/n/b,format=raw -drive file=/n/c,format=raw -drive if=floppy,index=0,file=/n/f,format=raw -drive if=virtio,file=/v/v" +
				" -drive if=virtio,file=/n/w,format=raw -drive if=scsi,index=8,file=/n/s,format=raw -drive if=pflash,file=/n/p,format=raw"},
		{name: "temporary layer", args: "-drive file=/v/d.img,id=d,snapshot=on", media: []launch.Medium{{Drive: "d", Told: "/var/tmp/vl.X", File: "/var/tmp/vl.X", Format: "qcow2", Known: true, Removed: true}},
			err: "duplicate -drive file=/v/d.img,id=d,snapshot=on: the guest writes to /var/tmp/vl.X, a file that is in no folder any more"},
		{name: "temporary layer, not to be looked at", args: "-drive file=/v/d.img,id=d,snapshot=on", media: []launch.Medium{{Drive: "d", Told: "/var/tmp/vl.X", File: "/var/tmp/vl.X", Format: "qcow2"}}, err: "in no folder any more"},
		{name: "temporary layer of an unknown drive", args: "-drive file=/v/d.img,id=d,snapshot=on", err: "snapshot"},
		{name: "temporary layer that was copied", args: "-drive file=/v/d.img,id=d,snapshot=on,format=raw", media: []launch.Medium{layer(launch.Medium{Drive: "d"})}, want: "-drive id=d,file=/v/ov.qcow2,format=qcow2"},
		{name: "temporary layer that was merged", args: "-drive file=/v/d.img,id=d,snapshot=on,format=raw", media: []launch.Medium{raw("/v/d.img", launch.Medium{Drive: "d"})}, want: "-drive id=d,file=/v/d.img,format=raw"},
		{name: "unlinked image", args: "-drive file=/v/d.img,id=d", media: []launch.Medium{{Drive: "d", Told: "/v/d.img", File: "/v/d.img", Format: "raw", Known: true, Removed: true}}, err: "no other QEMU can open"},
		{name: "chosen by the user", args: "-drive file=/v/d.img,id=d,format=raw", media: []launch.Medium{layer(launch.Medium{Drive: "d"})}, paths: map[string]string{"/v/d.img": "/v/d.img"}},
		{name: "mirrored", args: "-drive file=/v/d.img,id=d,format=raw", media: []launch.Medium{layer(launch.Medium{Drive: "d", Mirrored: true})}},
		{name: "on a server now", args: "-drive file=/v/d.img,id=d,format=raw", media: []launch.Medium{{Drive: "d", Told: "nbd://h/x", Format: "raw"}}},
		{name: "node", args: "-blockdev driver=raw,node-name=d,file.driver=file,file.filename=/v/d.img,file.aio=native,cache.direct=on -device virtio-blk-pci,drive=d,id=vda", media: []launch.Medium{layer(launch.Medium{Device: "/machine/peripheral/vda/virtio-backend"})},
			want: "-blockdev driver=qcow2,node-name=d,file.aio=native,cache.direct=on,file.driver=file,file.filename=/v/ov.qcow2 -device virtio-blk-pci,drive=d,id=vda"},
		{name: "node on a node", args: `-blockdev {"driver":"file","node-name":"f","filename":"/v/d.img"} -blockdev {"driver":"raw","node-name":"d","read-only":false,"file":"f"} -device {"driver":"virtio-rng-pci"} -device {"driver":"virtio-blk-pci","drive":"d"}`,
			media: []launch.Medium{layer(launch.Medium{Device: "/machine/peripheral-anon/device[1]/virtio-backend"})},
			want:  `-blockdev {"driver":"file","node-name":"f","filename":"/v/d.img"} -blockdev {"driver":"qcow2","file":{"driver":"file","filename":"/v/ov.qcow2"},"node-name":"d","read-only":false} -device {"driver":"virtio-rng-pci"} -device {"driver":"virtio-blk-pci","drive":"d"}`},
		{name: "node as it was", args: "-blockdev driver=file,node-name=f,filename=/v/d.img -blockdev raw,node-name=d,file=f -device ide-hd,drive=d,id=x", media: []launch.Medium{raw("/v/d.img", launch.Medium{Device: "x"})}},
		{name: "node on an unlinked image", args: "-blockdev driver=file,node-name=f,filename=/v/d.img -device ide-hd,drive=f,id=x", media: []launch.Medium{{Device: "x", Told: "/v/d.img", File: "/v/d.img", Format: "raw", Known: true, Removed: true}}, err: "no other QEMU can open"},
		{name: "bare node", args: "-blockdev driver=file,node-name=f,filename=/v/d.img -device ide-hd,drive=f,id=x", media: []launch.Medium{layer(launch.Medium{Device: "x", Block: true})},
			want: "-blockdev driver=qcow2,node-name=f,file.driver=host_device,file.filename=/v/ov.qcow2 -device ide-hd,drive=f,id=x"},
		{name: "filter", args: "-blockdev driver=file,node-name=f,filename=/v/d.img -blockdev driver=throttle,throttle-group=g,node-name=d,file=f -device ide-hd,drive=d,id=x", media: []launch.Medium{layer(launch.Medium{Device: "x"})}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, changed, err := presentDrives("qemu "+c.args, "pc-q35-7.2", c.media, c.paths)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || out != "" {
					t.Fatalf("%q, error %v; want %s", out, err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := c.want
			if want == "" {
				want = c.args
			}
			if out != want {
				t.Errorf("got  %s\nwant %s", out, want)
			}
			if changed != (c.want != "") {
				t.Errorf("changes said: %v", changed)
			}
		})
	}
}

// presentDrives are the drives of a destination, and whether a change of them is said. Files that are mapped to
// themselves stay.
func presentDrives(args, machine string, media []launch.Medium, paths map[string]string) (out string, changed bool,
	err error) {
	line, err := launch.Destination(strings.Split(args, " "),
		launch.Options{Dir: "/b", Machine: machine, Media: media, Paths: paths})
	if err != nil {
		return "", false, err
	}
	for _, c := range line.Changes {
		changed = changed || c.Why == "what the source has there now"
	}
	out, _, _ = strings.Cut(strings.Join(line.Args[1:], " "), " -machine ")
	return out, changed, nil
}

// i440fx has two drives on each bus, and a machine that we do not know gives no drive a name.
func TestPresentDrivesByMachine(t *testing.T) {
	for machine, want := range map[string]string{
		"pc-i440fx-7.2": "-hda /a -drive index=1,media=disk,file=/n/b,format=raw -drive index=2,media=cdrom,file=/n/c,format=raw",
		"microvm":       "-hda /a -hdb /b -cdrom /c",
	} {
		media := []launch.Medium{{Drive: "ide0-hd1", Told: "/n/b", File: "/n/b", Format: "raw", Known: true},
			{Drive: "ide1-cd0", Told: "/n/c", File: "/n/c", Format: "raw", Known: true}}
		out, _, err := presentDrives("qemu -hda /a -hdb /b -cdrom /c", machine, media, nil)
		if err != nil || out != want {
			t.Errorf("%s: %s, %v; want %s", machine, out, err, want)
		}
	}
}
