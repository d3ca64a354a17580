package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// diskVM starts a QEMU with images in dir, and tells how to run commands on it. The monitor is taken only as long as a
// command takes.
func diskVM(t *testing.T, qemu, dir, name string, incoming bool,
	args string) (execute func(command string, arguments, answer any)) {
	t.Helper()
	vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{
		Name: name, QEMU: qemu, Memory: 16<<20 + 8<<10, Dir: filepath.Join(dir, name), Incoming: incoming, Paused: incoming,
		Extra: strings.Fields(strings.ReplaceAll(args, "DIR", dir)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return monitorOf(t, filepath.Join(dir, name))
}

func monitorOf(t *testing.T, dir string) (execute func(command string, arguments, answer any)) {
	return func(command string, arguments, answer any) {
		t.Helper()
		ctx, cancel := context.WithTimeout(within.Context(t), patience)
		defer cancel()
		c, err := qmp.Dial(ctx, "unix", filepath.Join(dir, "control.qmp"), qmp.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Execute(ctx, command, arguments, answer); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
	}
}

// present is what each drive holds, with its format and its limit: "d: /d.qcow2 qcow2 < /d.img raw bps 1000".
func present(execute func(command string, arguments, answer any)) string {
	var all []qmp.BlockDevice
	execute("query-block", nil, &all)
	var text []string
	for _, b := range all {
		line := b.Device + ":"
		if m := b.Inserted; m != nil {
			var layers []string
			for i := &m.Image; i != nil; i = i.Backing {
				layers = append(layers, i.File+" "+i.Format)
			}
			line += " " + strings.Join(layers, " < ")
			if m.BPS > 0 {
				line += fmt.Sprint(" bps ", m.BPS)
			}
		}
		text = append(text, line)
	}
	return strings.Join(text, "\n")
}

func runIn(t *testing.T, dir string, args ...string) (status int, said string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	words := []string{"qmigrate", "migrate", "--out", filepath.Join(dir, "out")}
	for _, a := range args {
		words = append(words, strings.ReplaceAll(a, "DIR", dir))
	}
	status = run(within.Context(t), words, nil, &stdout, &stderr)
	return status, stdout.String() + stderr.String()
}

// endLaunched ends the destination that a command has started, if there is one.
func endLaunched(t *testing.T, dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "qemu.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Error(err)
		return
	}
	start, err := host.StartTime(pid)
	if err != nil {
		return // it has ended
	}
	p, err := host.FindProcess(pid, start)
	if err != nil {
		t.Error(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.Kill(ctx); err != nil {
		t.Error(err)
	}
}

func images(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A destination that is launched has the disks, the media and the limits that the source has by then, or nothing is
// started.
func TestLaunchedDisks(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		dir := guesttest.Dir(t)
		images(t, dir, "d", "n", "t", "t2", "one", "two")
		execute := diskVM(t, qemu, dir, "a", false,
			"-drive if=none,id=d,file=DIR/d,format=raw -device virtio-blk-pci,drive=d "+
				"-blockdev driver=file,node-name=f,filename=DIR/n -blockdev driver=raw,node-name=n,file=f -device virtio-blk-pci,drive=n,id=vdb "+
				"-drive if=none,id=t,file=DIR/t,format=raw,snapshot=on -device virtio-blk-pci,drive=t "+
				"-cdrom DIR/one -drive if=none,id=e,file=DIR/one,media=cdrom,format=raw -device ide-cd,drive=e,bus=ide.3 -device ide-cd,id=empty,bus=ide.4")
		execute("blockdev-snapshot-sync", map[string]string{"device": "d", "snapshot-file": dir + "/d2", "format": "qcow2"},
			nil)
		execute("blockdev-snapshot-sync", map[string]string{"node-name": "n", "snapshot-node-name": "n2",
			"snapshot-file": dir + "/n2", "format": "qcow2"}, nil)
		execute("block_set_io_throttle", map[string]any{"device": "d", "bps": 1e6, "bps_rd": 0, "bps_wr": 0, "iops": 0,
			"iops_rd": 0, "iops_wr": 0}, nil)
		execute("blockdev-change-medium", map[string]string{"device": "ide2-cd0", "filename": dir + "/two", "format": "raw"},
			nil)
		execute("eject", map[string]any{"device": "e", "force": true}, nil)
		execute("blockdev-change-medium", map[string]string{"id": "empty", "filename": dir + "/two", "format": "raw"}, nil)

		t.Cleanup(func() { endLaunched(t, dir+"/b") })
		launch := []string{"--source", "unix:DIR/a", "--destination", "unix:DIR/b", "--launch"}
		status, said := runIn(t, dir, launch...)
		if _, err := os.Stat(dir + "/b"); status != 1 ||
			!strings.Contains(said, "no other QEMU can open: copy it into an image that stays") || err == nil {
			t.Fatalf("status %d with a temporary layer, folder: %v\n%s", status, err, said)
		}
		// Which is what is done now.
		execute("blockdev-add", map[string]any{"driver": "raw", "node-name": "t2",
			"file": map[string]string{"driver": "file", "filename": dir + "/t2"}}, nil)
		execute("blockdev-mirror", map[string]string{"device": "t", "job-id": "j", "target": "t2", "sync": "full"}, nil)
		for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			var jobs []struct{ Ready bool }
			if execute("query-block-jobs", nil, &jobs); len(jobs) == 1 && jobs[0].Ready {
				execute("block-job-complete", map[string]string{"device": "j"}, nil)
			}
			if len(jobs) == 0 || time.Now().After(deadline) {
				break
			}
		}
		before := present(execute)
		if status, said = runIn(t, dir, launch...); status != 0 {
			t.Fatalf("status %d\n%s", status, said)
		}
		destination := monitorOf(t, dir+"/b")
		if after := present(destination); after != before {
			t.Errorf("the destination has\n%s\nthe source had\n%s\n\n%s", after, before, said)
		}
		for _, want := range []string{"DIR/d2", "DIR/n2", "DIR/t2", "DIR/two"} {
			if !strings.Contains(before, strings.ReplaceAll(want, "DIR", dir)) {
				t.Errorf("%s is not what the source had:\n%s", want, before)
			}
		}
	})
}

// Between any two QEMUs another layer or CD is warned of, and one image that is read in two formats is refused.
func TestOtherDisks(t *testing.T) {
	dir := guesttest.Dir(t)
	images(t, dir, "d", "one", "two")
	qemu := guesttest.QEMU(t, "10.0")
	const devices = "-device virtio-blk-pci,drive=d -drive if=none,id=cd,file=DIR/%s,media=cdrom,format=raw -device ide-cd,drive=cd " +
		"-drive if=none,id=d,file=DIR/%s"
	execute := diskVM(t, qemu, dir, "a", false, fmt.Sprintf(devices, "one", "d,format=raw"))
	execute("blockdev-snapshot-sync", map[string]string{"device": "d", "snapshot-file": dir + "/d2", "format": "qcow2"},
		nil)
	diskVM(t, qemu, dir, "raw", true, fmt.Sprintf(devices, "one", "d2,format=raw"))
	diskVM(t, qemu, dir, "b", true, fmt.Sprintf(devices, "two", "d,format=raw"))

	status, said := runIn(t, dir, "--source", "unix:DIR/a", "--destination", "unix:DIR/raw")
	if status != 1 || strings.Count(said, "\n") != 1 || !strings.Contains(said, "opens the same "+dir+"/d2 as raw") {
		t.Errorf("status %d, %s", status, said)
	}
	status, said = runIn(t, dir, "--source", "unix:DIR/a", "--destination", "unix:DIR/b", "--json")
	for _, want := range []string{"what the guest wrote since that snapshot would be gone",
		dir + "/two on the destination, which is another file"} {
		if status != 0 || !strings.Contains(said, want) {
			t.Errorf("status %d, want %q in\n%s", status, want, said)
		}
	}
}
