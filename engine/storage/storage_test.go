package storage

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"none":          "none",
		"shared":        "shared:disks=1,size=64MiB,format=raw,cache=writeback,area=8MiB,rate=100/s",
		"iscsi:chap=on": "iscsi:disks=1,size=64MiB,chap=on,area=8MiB,rate=100/s",
		"nfs":           "nfs:disks=1,size=64MiB,area=8MiB,rate=100/s",
		"mirror:copy-mode=write-blocking,disks=2,size=1GiB,max-bandwidth=8Mbit/s,rate=0.5/s": "mirror:disks=2,size=1024MiB,format=raw,cache=writeback,copy-mode=write-blocking,max-bandwidth=1000000B/s,area=8MiB,rate=0.5/s",
	} {
		s, err := Parse(text)
		if err != nil || s.String() != want {
			t.Errorf("%s: %s, %v, want %s", text, s, err, want)
			continue
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Errorf("%s does not parse again: %+v, %v", s, again, err)
		}
	}
	for text, want := range map[string]string{
		"floppy":                 "have none, shared, mirror, iscsi, nfs",
		"none:disks=1":           "takes no parameters",
		"shared:disks":           "not NAME=VALUE",
		"shared:disks=2,disks=3": "given twice",
		"shared:disks=9":         "1 to 8",
		"shared:size=64":         "has no unit",
		"shared:size=1B":         "whole MiB",
		"shared:copy-mode=x":     "it has disks, size, format, cache, area, rate",
		"iscsi:format=qcow2":     `no parameter "format"`,
		"nfs:format=qcow2":       `no parameter "format"`,
		"mirror:copy-mode=x":     "have background, write-blocking",
		"shared:rate=100":        "with their unit",
		"shared:rate=0/s":        "with their unit",
		"shared:rate=NaN/s":      "with their unit",
		"shared:area=65MiB":      "larger than the disk",
	} {
		if s, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) || s != (Spec{}) {
			t.Errorf("%s: %+v, %v, want %q", text, s, err, want)
		}
	}
}

func image(t *testing.T, format string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "i."+format)
	if err := Create(path, format, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path, format string) Image {
	t.Helper()
	img, err := Open(path, format)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// An empty qcow2 image reads as zeros; QEMU's own writing to one is tested in engine/lab.
func TestQcow2Empty(t *testing.T) {
	for _, size := range []int64{1 << 20, 64 << 20, 513 << 20, 5 << 30} {
		path := image(t, "qcow2", size)
		img := open(t, path, "qcow2")
		b := bytes.Repeat([]byte{1}, 4096)
		if n, err := img.ReadAt(b, size-4096); n != 4096 || err != nil || img.Size() != size || !bytes.Equal(b, make([]byte, 4096)) {
			t.Errorf("size %d: read %d, %v, size %d", size, n, err, img.Size())
		}
		if _, err := img.ReadAt(b, size-1000); err == nil {
			t.Error("read past the end")
		}
		if err := Create(path, "qcow2", size); err == nil {
			t.Error("an image was made where one was")
		}
	}
	if img, err := Open(image(t, "raw", 1<<20), "qcow2"); err == nil {
		t.Errorf("a raw image was opened as qcow2: %v", img)
	}
}

// A copy may be ahead of its original in what the guest's writer wrote, and in nothing else.
func TestIdentical(t *testing.T) {
	const size, area = 4 << 20, 1 << 20
	record := func(block, number uint64) []byte {
		b := make([]byte, wire.BlockSize)
		wire.PutBlock(b, 1, block, number)
		return b
	}
	for name, c := range map[string]struct {
		a, b  []byte
		block int64
		want  int64
	}{
		"the same":             {record(3, 7), record(3, 7), 3, 0},
		"ahead":                {record(3, 7), record(3, 8), 3, 0},
		"written since":        {make([]byte, 4096), record(3, 8), 3, 0},
		"behind":               {record(3, 8), record(3, 7), 3, 1},
		"never copied":         {record(3, 8), make([]byte, 4096), 3, 1},
		"another block's":      {record(3, 7), record(4, 8), 3, 1},
		"ahead past the area":  {record(600, 7), record(600, 8), 600, 1},
		"garbage":              {record(3, 7), bytes.Repeat([]byte{9}, 4096), 3, 1},
		"garbage past the end": {make([]byte, 4096), bytes.Repeat([]byte{9}, 4096), 1023, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var both [2]*Contents
			for i, content := range [][]byte{c.a, c.b} {
				path := image(t, "raw", size)
				if err := Fill(path, area, size); err != nil {
					t.Fatal(err)
				}
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt(content, c.block*wire.BlockSize); err != nil {
					t.Fatal(err)
				}
				f.Close()
				if both[i], err = ContentsOn(t.Context(), host.Local(), path, "raw", 1); err != nil {
					t.Fatal(err)
				}
			}
			if differ, err := Identical(both[0], both[1], area); err != nil || differ != c.want {
				t.Errorf("%d blocks differ, %v, want %d", differ, err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"none", "mirror:disks=2,copy-mode=write-blocking", "iscsi:chap=off,size=1GiB", "shared:rate=1e3/s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if s != (Spec{}) {
				t.Errorf("an error and %+v", s)
			}
			return
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Errorf("%q is %s, which is %+v, %v", text, s, again, err)
		}
	})
}
