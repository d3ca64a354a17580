package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/guest/wire"
)

// fileDisk gives the agent a file for a disk; it skips where the file system cannot read past its cache.
func fileDisk(t *testing.T, blocks int64) (file string, with func(*agent)) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, blocks*wire.BlockSize); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Skipf("the folder for temporary files knows no O_DIRECT: %v", err)
	}
	f.Close()
	return file, func(a *agent) {
		a.findDisk = func(serial string) (string, int64, error) {
			if serial != "disk0" {
				return "", 0, fmt.Errorf("no disk with serial %q", serial)
			}
			return file, blocks * wire.BlockSize, nil
		}
	}
}

// Every acknowledged write is on the disk, in that block, and a block that somebody changed is found.
func TestDiskWriter(t *testing.T) {
	const blocks = 64
	file, with := fileDisk(t, blocks+1)
	g := servePort(t, with)
	g.say(`{"id":1,"do":"disk.start","args":{"disk":"disk0","area_bytes":%d}}`+"\n", blocks*wire.BlockSize)
	acked := make([]int64, blocks+1)
	count := 0
	take := func(m wire.Message) bool {
		if m.Note == nil || m.Note.Event != wire.EventDiskAck {
			return false
		}
		var acks wire.DiskAcks
		if err := json.Unmarshal(m.Note.Data, &acks); err != nil || acks.Disk != "disk0" {
			t.Fatalf("%s: %v", m.Note.Data, err)
		}
		for _, a := range acks.Acks {
			if a[1] <= uint64(count) {
				t.Fatalf("number %d is acknowledged after %d others", a[1], count)
			}
			acked[a[0]] = int64(a[1])
			count++
		}
		return true
	}
	answer := func(id uint64) wire.Reply {
		for {
			m := g.hear()
			if take(m) {
				continue
			}
			if m.Reply == nil || m.Reply.ID != id {
				t.Fatalf("got %+v %+v, want the reply to %d", m.Reply, m.Note, id)
			}
			return *m.Reply
		}
	}
	if r := answer(1); r.Error != "" {
		t.Fatal(r.Error)
	}
	for count < 300 {
		take(g.hear())
	}
	g.say(`{"id":2,"do":"disk.stop","args":{"disk":"disk0"}}` + "\n")
	var s wire.DiskStatus
	if r := answer(2); json.Unmarshal(r.Result, &s) != nil || s.Running || s.Errors != 0 || s.Dropped != 0 || s.Writes != uint64(count) || s.Longest <= 0 {
		t.Errorf("%s after %d acknowledgements: %+v", r.Result, count, s)
	}
	read := func(id uint64) []int64 {
		g.say(`{"id":%d,"do":"disk.read","args":{"disk":"disk0","first_block":0,"blocks":%d}}`+"\n", id, blocks+1)
		var b wire.DiskBlocks
		if r := answer(id); json.Unmarshal(r.Result, &b) != nil || len(b.Numbers) != blocks+1 {
			t.Fatalf("%+v", r)
		}
		return b.Numbers
	}
	for block, n := range read(3) {
		if n != acked[block] {
			t.Errorf("block %d holds %d, acknowledged was %d", block, n, acked[block])
		}
	}
	g.say(`{"id":4,"do":"disk.corrupt","args":{"disk":"disk0","block":5}}` + "\n")
	answer(4)
	if n := read(5)[5]; n != wire.BlockWrong {
		t.Errorf("a block with a flipped bit reads as %d", n)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, wire.BlockSize), 6*wire.BlockSize); err != nil {
		t.Fatal(err)
	}
	if n := read(6)[6]; n != wire.BlockBlank {
		t.Errorf("a block that was wiped reads as %d", n)
	}
}

func TestDiskRefusals(t *testing.T) {
	_, with := fileDisk(t, 4)
	a := testAgent(t, newMonotonic())
	with(a)
	for _, c := range []struct{ do, args, want string }{
		{wire.DoDiskStart, `{"disk":"other"}`, `no disk with serial "other"`},
		{wire.DoDiskStart, `{"disk":"disk0","area_bytes":5000}`, "whole blocks of 4096"},
		{wire.DoDiskStart, `{"disk":"disk0","area_bytes":20480}`, "at most the disk's 16384"},
		{wire.DoDiskStart, `{"disk":"disk0","area_bytes":4096,"rate":-1}`, "writes a second"},
		{wire.DoDiskStatus, `{"disk":"disk0"}`, errNoDisk.Error()},
		{wire.DoDiskStop, `{"disk":"disk0"}`, errNoDisk.Error()},
		{wire.DoDiskRead, `{"disk":"disk0","first_block":3,"blocks":2}`, "the disk has 4"},
		{wire.DoDiskCorrupt, `{"disk":"disk0","block":4}`, "no block 4"},
	} {
		if _, err := a.do(wire.Request{Do: c.do, Args: json.RawMessage(c.args)}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.do, c.args, err, c.want)
		}
	}
}

// A disk is found by its serial on each bus: virtio-blk has a file with it, SCSI and ATA disks a page of their vital product data.
func TestFindDisk(t *testing.T) {
	sys := t.TempDir()
	file := func(name string, content []byte) {
		t.Helper()
		path := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	page := func(text string) []byte { return append([]byte{0, 0x80, 0, byte(len(text))}, text...) }
	file("vda/serial", []byte("disk0\n"))
	file("vda/size", []byte("2048\n"))
	file("sda/device/vpd_pg80", page("disk1"))
	file("sda/size", []byte("4096\n"))
	file("sdb/device/vpd_pg80", page("               disk2"))
	file("sdb/size", []byte("6144\n"))
	file("sdc/device/vpd_pg80", append([]byte{0, 0x80, 0, 200}, "cut"...)) // shorter than it says
	file("sdd/device/vpd_pg80", []byte{0, 0x83, 0, 1, 'x'})                // another page
	file("sde/device/vpd_pg80", []byte{0, 0x80})
	file("loop0/size", []byte("0\n"))
	for serial, want := range map[string]struct {
		device string
		size   int64
	}{"disk0": {"/dev/vda", 1 << 20}, "disk1": {"/dev/sda", 2 << 20}, "disk2": {"/dev/sdb", 3 << 20}} {
		device, size, err := findDisk(sys, "/dev", serial)
		if err != nil || device != want.device || size != want.size {
			t.Errorf("%s: %s, %d bytes, %v, want %+v", serial, device, size, err, want)
		}
	}
	if _, _, err := findDisk(sys, "/dev", "disk9"); err == nil || !strings.Contains(err.Error(), `have ["disk1" "disk2" "cut" "disk0"]`) {
		t.Error(err)
	}
	if _, _, err := findDisk(sys, "/dev", "cut"); err == nil || !strings.Contains(err.Error(), "read size of disk cut") {
		t.Error(err)
	}
}
