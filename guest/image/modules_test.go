package image

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"qmigrate/guest/guesttest/within"
)

// fakeModule is an ELF file with nothing but a .modinfo section.
func fakeModule(depends string) []byte {
	info := []byte("license=GPL\x00depends=" + depends + "\x00vermagic=6.1.0-1-test SMP mod_unload \x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	h := elf.Header64{Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: 1, Machine: 62, Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2,
		Shoff: uint64(64 + len(info) + len(names))}
	var b bytes.Buffer
	le := binary.LittleEndian
	binary.Write(&b, le, h)
	b.Write(info)
	b.Write(names)
	binary.Write(&b, le, elf.Section64{})
	binary.Write(&b, le, elf.Section64{Name: 1, Type: 1, Off: 64, Size: uint64(len(info))})
	binary.Write(&b, le, elf.Section64{Name: 10, Type: 3, Off: uint64(64 + len(info)), Size: uint64(len(names))})
	return b.Bytes()
}

func packed(t *testing.T, ext string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch ext {
	case ".ko":
		return b
	case ".ko.gz":
		w = gzip.NewWriter(&out)
	case ".ko.zst":
		z, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	case ".ko.xz": // as the kernel's build packs modules
		cmd := within.Command(t, "xz", "--check=crc32", "--lzma2=dict=1MiB", "-c")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(b), &out
		if err := cmd.Run(); err != nil {
			t.Skipf("xz: %v", err)
		}
		return out.Bytes()
	}
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func TestModuleOrder(t *testing.T) {
	for _, ext := range []string{".ko", ".ko.gz", ".ko.zst", ".ko.xz"} {
		t.Run(ext, func(t *testing.T) {
			dir := t.TempDir()
			write := func(name, depends string) {
				if err := os.WriteFile(filepath.Join(dir, name+ext), packed(t, ext, fakeModule(depends)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("top", "mid-dle,low,built_in")
			write("mid_dle", "low")
			write("low", "")
			write("loop", "pool")
			write("pool", "loop")
			write("lost", "nowhere")
			if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/built-in.ko\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			order, err := moduleOrder(dir, []string{"top", "low", "built-in"})
			var names []string
			for _, m := range order {
				names = append(names, m.name)
				if m.info.vermagic != "6.1.0-1-test SMP mod_unload " {
					t.Errorf("vermagic %q", m.info.vermagic)
				}
			}
			if err != nil || !slices.Equal(names, []string{"low", "mid_dle", "top"}) {
				t.Errorf("%q %v", names, err)
			}
			for wanted, want := range map[string]string{"loop": "depends on itself", "lost": "nowhere, needed by lost", "none": "none, needed by the guest"} {
				if order, err := moduleOrder(dir, []string{wanted}); err == nil || order != nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v; want an error with %q", wanted, err, want)
				}
			}
			if err := os.Mkdir(filepath.Join(dir, "other"), 0o755); err != nil {
				t.Fatal(err)
			}
			write("other/low", "")
			if _, err := moduleOrder(dir, []string{"top"}); err == nil || !strings.Contains(err.Error(), "twice") {
				t.Error(err)
			}
		})
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "odd.ko.lzo"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := moduleOrder(dir, []string{"odd"}); err == nil || !strings.Contains(err.Error(), ".lzo") {
		t.Error(err)
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(fakeModule("a,b"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readModinfo(b)
		if err != nil && (m.depends != nil || m.vermagic != "") {
			t.Errorf("%+v with %v", m, err)
		}
		m = parseModinfo(b)
		var out []byte
		if m.depends != nil {
			out = append(out, "depends="+strings.Join(m.depends, ",")+"\x00"...)
		}
		out = append(out, "vermagic="+m.vermagic+"\x00"...)
		if again := parseModinfo(out); !slices.Equal(again.depends, m.depends) || again.vermagic != m.vermagic {
			t.Errorf("%+v, then %+v", m, again)
		}
	})
}

// pvhKernel is an ELF file with the note of a PVH entry, large enough to be packed well.
func pvhKernel() []byte {
	note := []byte("\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x10\x00")
	var b bytes.Buffer
	le := binary.LittleEndian
	binary.Write(&b, le, elf.Header64{Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: 2, Machine: 62, Version: 1, Ehsize: 64, Phentsize: 56, Phnum: 1, Phoff: 64})
	binary.Write(&b, le, elf.Prog64{Type: 4, Off: 120, Filesz: uint64(len(note))})
	b.Write(note)
	b.Write(make([]byte, 100_000))
	return b.Bytes()
}

// bzImage packs an ELF kernel as the kernel's build does.
func bzImage(payload []byte) []byte {
	b := make([]byte, 2*512)
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS\x0f\x02")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x100)
	copy(b[0x300:], "6.1.0-1-test (builder) #1\x00")
	binary.LittleEndian.PutUint32(b[0x248:], 16)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(append(append(b, make([]byte, 16)...), payload...), 1, 2, 3)
}

func TestVmlinux(t *testing.T) {
	kernel := pvhKernel()
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(kernel)))
	var l bytes.Buffer
	w := lz4.NewWriter(&l)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	w.Write(kernel)
	w.Close()
	for name, payload := range map[string][]byte{
		"gzip": packed(t, ".ko.gz", kernel),
		"zstd": append(packed(t, ".ko.zst", kernel), size...),
		"lz4":  append(l.Bytes(), size...),
	} {
		if got := vmlinux(bzImage(payload)); !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(kernel))
		}
		if got := vmlinux(bzImage(payload[:len(payload)/2])); got != nil {
			t.Errorf("%s cut in half: %d bytes", name, len(got))
		}
	}
	t.Run("xz", func(t *testing.T) {
		if got := vmlinux(bzImage(append(packed(t, ".ko.xz", kernel), size...))); !bytes.Equal(got, kernel) {
			t.Errorf("%d bytes, want %d", len(got), len(kernel))
		}
	})
	for name, b := range map[string][]byte{
		"ELF": kernel, "nothing": nil, "unknown packing": bzImage([]byte("BZh91AY&SY......")), "no PVH entry": bzImage(packed(t, ".ko.gz", fakeModule(""))),
	} {
		if got := vmlinux(b); got != nil {
			t.Errorf("%s: %d bytes", name, len(got))
		}
	}
	if r, err := kernelRelease(bzImage(make([]byte, 1000))); r != "6.1.0-1-test" || err != nil {
		t.Errorf("release %q %v", r, err)
	}
}

func FuzzKernel(f *testing.F) {
	f.Add(bzImage([]byte("\x02\x21\x4c\x18....")))
	f.Add(pvhKernel()[:1000])
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := kernelRelease(b); err != nil && r != "" {
			t.Errorf("%q with %v", r, err)
		}
		if k := vmlinux(b); k != nil && !hasPVH(k) {
			t.Error("a kernel without a PVH entry")
		}
	})
}
