package engine_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/snapshot"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// Real-mode code of a guest that is nothing but its firmware: 8, 16 or 32 bits to an I/O port.
func out8(port uint16, v byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{0xb0, v, 0xba}, port), 0xee)
}

func out16(port, v uint16) []byte {
	return append(binary.LittleEndian.AppendUint16(append(binary.LittleEndian.AppendUint16([]byte{0xb8}, v), 0xba),
		port), 0xef)
}

func out32(port uint16, v uint32) []byte {
	return append(binary.LittleEndian.AppendUint16(append(binary.LittleEndian.AppendUint32([]byte{0x66, 0xb8}, v),
		0xba), port), 0x66, 0xef)
}

// firmware runs the code after the first start, and stands still after it and after each further one.
func firmware(t *testing.T, code ...[]byte) string {
	t.Helper()
	const size = 64 << 10
	b := []byte{0xfa, 0x31, 0xc0, 0x8e, 0xd8, // cli; ds = 0
		0x81, 0x3e, 0x00, 0x10, 0x5a, 0x5a, // cmp word [0x1000], 0x5a5a
		0x75, 0x03, 0xf4, 0xeb, 0xfd, // if it is that: hlt, for ever
		0xc7, 0x06, 0x00, 0x10, 0x5a, 0x5a} // set it
	b = append(append(b, slices.Concat(code...)...), 0xf4, 0xeb, 0xfd)
	b = append(b, make([]byte, size-len(b))...)
	copy(b[size-16:], []byte{0xea, 0, 0, 0, 0xf0}) // the reset vector: jump to f000:0
	name := filepath.Join(guesttest.Dir(t), "firmware")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// acpi puts the ACPI registers of a PIIX4 at 0x600 and writes SLP_TYP and SLP_EN there: type 1 is S3, 0 is off.
func acpi(sleepType uint16) []byte {
	return slices.Concat(out32(0xcf8, 0x80000b40), out32(0xcfc, 0x601), out32(0xcf8, 0x80000b80), out8(0xcfc, 1),
		out16(0x604, sleepType<<10|1<<13))
}

// writeDisk writes one sector to the first IDE disk.
func writeDisk() []byte {
	return slices.Concat(out8(0x1f6, 0xe0), out8(0x1f2, 1), out8(0x1f3, 0), out8(0x1f4, 0), out8(0x1f5, 0),
		out8(0x1f7, 0x30),
		[]byte{0xba, 0xf7, 0x01, 0xec, 0xa8, 0x08, 0x74, 0xfb, // until the disk asks for data
			0xb9, 0x00, 0x01, 0xba, 0xf0, 0x01, 0xef, 0xe2, 0xfd}) // 256 words
}

// TestArrives: a guest that did not run when it was moved is on the destination what it was on the source, and the
// record says so.
func TestArrives(t *testing.T) {
	t.Parallel()
	stories := map[string]struct {
		code   []byte
		args   string
		paused bool // started with -S
		state  string
	}{
		"asleep":    {code: acpi(1), state: "suspended"},
		"shut down": {code: acpi(0), args: "-no-shutdown", state: "shutdown"},
		"panicked":  {code: out8(0x505, 1), args: "-device pvpanic -action panic=pause", state: "guest-panicked"},
		"bad disk": {code: writeDisk(), state: "io-error",
			args: "-drive if=ide,werror=stop,format=raw,file.driver=blkdebug,file.image.driver=null-co," +
				"file.image.size=1M,file.inject-error.0.event=write_aio,file.inject-error.0.iotype=write"},
		"never started": {paused: true, state: "prelaunch"},
	}
	for _, c := range []struct {
		src, dst, story string
		mode            record.Mode
		want            string // the run state on the destination; "": it is refused
		said            string
	}{
		{"10.0", "10.0", "asleep", record.PreCopyMode, "suspended", "it arrives asleep"},
		{"10.0", "11.1", "asleep", record.StopAndCopyMode, "suspended", "it arrives asleep"},
		{"7.2", "10.0", "asleep", record.StopAndCopyMode, "running", "wakes it up"},
		{"7.2", "7.2", "asleep", record.PreCopyMode, "running", "wakes it up"},
		{"10.0", "7.2", "asleep", record.PreCopyMode, "", "its clock would stand still"},
		{"10.0", "10.0", "shut down", record.PreCopyMode, "shutdown", "`system_reset` and `cont`"},
		{"10.0", "10.0", "panicked", record.PreCopyMode, "guest-panicked", "has panicked"},
		{"10.0", "10.0", "bad disk", record.PreCopyMode, "io-error", "an error of its disk"},
		{"7.2", "10.0", "bad disk", record.StopAndCopyMode, "io-error", "an error of its disk"},
		{"11.1", "11.1", "never started", record.PreCopyMode, "prelaunch", "never been started"},
	} {
		t.Run(c.story+" "+c.src+" to "+c.dst, func(t *testing.T) {
			s := stories[c.story]
			args := append([]string{"-bios", firmware(t, s.code)}, strings.Fields(s.args)...)
			src, dst := pair(t, guesttest.QEMU(t, c.src), func(src, dst *guest.Spec) {
				src.Machine, dst.Machine, dst.QEMU = "pc-i440fx-7.2", "pc-i440fx-7.2", guesttest.QEMU(t, c.dst)
				src.Memory, dst.Memory = 32<<20+8<<10, 32<<20+8<<10
				src.Extra, dst.Extra, src.Paused = args, args, s.paused
			})
			for deadline := time.Now().Add(time.Minute); state(t, src) != s.state; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the guest is %s, want %s", state(t, src), s.state)
				}
			}
			r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), plan.Plan{Mode: c.mode},
				plan.Options{})
			if c.want == "" {
				if err == nil || !strings.Contains(err.Error(), c.said) || state(t, src) != s.state || state(t,
					dst) != "inmigrate" {
					t.Errorf("%v; want %q and nothing changed", err, c.said)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := state(t, dst); got != c.want || r.GuestOn != record.Destination {
				t.Errorf("it is %s on the %s, want %s", got, r.GuestOn, c.want)
			}
			if !strings.Contains(strings.Join(r.Warnings, "\n"), c.said) {
				t.Errorf("warnings %q, want %q", r.Warnings, c.said)
			}
			if c.want != "suspended" {
				return
			}
			monitor, err := qmp.Dial(within.Context(t), "unix", dst.Spec().Socket(guest.Control), qmp.Options{})
			if err != nil {
				t.Fatal(err)
			}
			err = monitor.Execute(within.Context(t), "system_wakeup", nil, nil)
			monitor.Close()
			if err != nil {
				t.Errorf("the guest cannot be woken up: %v", err)
			}
			for deadline := time.Now().Add(time.Minute); state(t, dst) != "running"; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the guest was woken up and is %s", state(t, dst))
				}
			}
		})
	}
}

// TestWaitsForItsEnd: what ends by itself on the source is waited for, and then the migration goes on.
func TestWaitsForItsEnd(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"save-vm", "restore-vm", "finish-migrate"} {
		src, dst := newFake(t, "source", state, "none"), newFake(t, "destination", "inmigrate", "none")
		dst.refuse["migrate-set-capabilities"] = func() string {
			return "it came to " + src.runState()
		}
		asked := 0
		src.on["query-status"] = func() {
			if asked++; asked == 3 {
				src.status = "running"
			}
		}
		_, err := engine.Migrate(within.Context(t), src.endpoint(), dst.endpoint(), plan.Plan{}, plan.Options{})
		if err == nil || !strings.Contains(err.Error(), "it came to running") || asked < 3 {
			t.Errorf("%s: %v after %d questions", state, err, asked)
		}
	}
}

// TestPreconfig: a QEMU that has no machine yet says so in its own way.
func TestPreconfig(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"source", "destination"} {
		src, dst := newFake(t, "source", "running", "none"), newFake(t, "destination", "inmigrate", "none")
		for _, q := range []*fakeQEMU{src, dst} {
			if q.name == who {
				q.refuse["query-migrate"] = func() string {
					return "The command 'query-migrate' is permitted only after machine initialization has completed"
				}
			}
		}
		_, err := engine.Migrate(within.Context(t), src.endpoint(), dst.endpoint(), plan.Plan{}, plan.Options{})
		if err == nil || !strings.HasPrefix(err.Error(), "inspect "+who) ||
			!strings.Contains(err.Error(), "x-exit-preconfig") {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// TestFindings: what is set up on a real QEMU is found there, and answered.
func TestFindings(t *testing.T) {
	t.Parallel()
	guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
		vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{
			Name: "a", QEMU: qemu, Memory: 32 << 20, Dir: filepath.Join(guesttest.Dir(t), "a"), Paused: true,
			Extra: strings.Fields("-drive if=pflash,unit=0,format=raw,file=" + firmware(t) +
				" -blockdev driver=null-co,node-name=disk,size=1048576,read-zeroes=on -device virtio-blk-pci,drive=disk" +
				" -blockdev driver=null-co,node-name=copy,size=1048576"),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		}()
		ctx := within.Context(t)
		c, err := qmp.Dial(ctx, "unix", vm.Spec().Socket(guest.Control), qmp.Options{})
		if err != nil {
			t.Fatal(err)
		}
		mirror := map[string]any{"job-id": "j", "device": "disk", "target": "copy", "sync": "full", "speed": 1}
		bitmap := map[string]any{"node": "disk", "name": "b"}
		err = errors.Join(c.Execute(ctx, "block-dirty-bitmap-add", bitmap, nil),
			c.Execute(ctx, "blockdev-mirror", mirror, nil))
		_, modes := c.Execute(ctx, "migrate-set-parameters", map[string]any{"mode": "cpr-reboot"}, nil).(*qmp.CommandError)
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		f := inspectVM(t, vm)
		var said strings.Builder
		for _, x := range fit.Conditions(f, nil, plan.Plan{}) {
			said.WriteString(string(x.Answer) + ": " + x.Error() + "\n")
		}
		want := []string{"(prelaunch)", "block job j (mirror)", "dirty bitmap b of disk", "keeps its variables in "}
		if !modes { // 7.2 has no such parameter
			want = append(want, "warn: parameter mode was cpr-reboot on the source")
		}
		for _, text := range want {
			if !strings.Contains(said.String(), text) {
				t.Errorf("%q is not said: %s", text, said.String())
			}
		}
		if n := strings.Count(said.String(), "\n"); n != len(want) || modes != (f.Major < 8) {
			t.Errorf("%d things are said, want %d; mode is refused: %t\n%s", n, len(want), modes, said.String())
		}
		file := filepath.Join(t.TempDir(), "saved")
		r, err := snapshot.Save(within.Context(t), connect.Endpoint(vm), plan.Plan{}, snapshot.File{Path: file},
			plan.Options{})
		if f.Before(10, 0) { // it would abort
			if err == nil || !strings.Contains(err.Error(), "then save") || state(t, vm) != "prelaunch" {
				t.Errorf("%v; want it refused for its job, and nothing changed: it is %s", err, state(t, vm))
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"(prelaunch): it is in the file", "block job j (mirror)",
			"the next backup of a guest that is",
			"firmware keeps its variables", "the save sets it to normal"} {
			if !strings.Contains(strings.Join(r.Warnings, "\n"), text) {
				t.Errorf("a save does not say %q: %q", text, r.Warnings)
			}
		}
	})
}

// TestSleepsOn: a guest that sleeps, and cannot be moved, sleeps on where it was, and can be woken up.
func TestSleepsOn(t *testing.T) {
	t.Parallel()
	for _, mode := range []record.Mode{record.PreCopyMode, record.StopAndCopyMode} {
		src, dst := pair(t, guesttest.QEMU(t, "10.0"), func(src, dst *guest.Spec) {
			src.Machine, dst.Machine, src.Memory, dst.Memory = "pc-i440fx-7.2", "pc-i440fx-7.2", 32<<20, 32<<20
			src.Extra = []string{"-bios", firmware(t, acpi(1))}
			dst.Extra = src.Extra
		})
		for deadline := time.Now().Add(time.Minute); state(t, src) != "suspended"; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the guest is %s", state(t, src))
			}
		}
		p := plan.Plan{Mode: mode, Connect: "unix:" + filepath.Join(guesttest.Dir(t), "nobody")}
		r, err := engine.Migrate(within.Context(t), connect.Endpoint(src), connect.Endpoint(dst), p, plan.Options{})
		if got := state(t, src); err == nil || r.GuestOn != record.Source || got != "suspended" {
			t.Errorf("%s: %v; the guest is %s on the %s, want suspended on the source", mode, err, got, r.GuestOn)
		}
	}
}
