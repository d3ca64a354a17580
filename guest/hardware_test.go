package guest_test

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

func TestCheckHardware(t *testing.T) {
	for _, name := range append(guest.NICs(), "", "virtio-net-pci") {
		if err := guest.CheckNIC(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range append(guest.DiskBuses(), "") {
		if err := guest.CheckDiskBus(name); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{guest.CheckNIC("ne2000"), `network card "ne2000": have virtio-net, e1000, e1000e, vmxnet3`},
		{guest.CheckDiskBus("floppy"), `disk bus "floppy": have virtio-blk, virtio-scsi, ahci`},
		{guest.CheckDiskBus("nvme"), `disk bus nvme: QEMU 7.2 and 10.0 cannot migrate it ("State blocked by non-migratable device"): have virtio-blk, virtio-scsi, ahci`},
	} {
		if c.err == nil || c.err.Error() != c.want {
			t.Errorf("%v, want %s", c.err, c.want)
		}
	}
	for in, want := range map[string]string{"": "virtio-net", "virtio-net-pci": "virtio-net", "e1000": "e1000", "other": "other"} {
		if got := guest.NICName(in); got != want {
			t.Errorf("NICName(%q) = %q, want %q", in, got, want)
		}
	}
}

// What is said of each disk bus holds for each QEMU: those that there are can be migrated. NVMe can in 11.1 only.
func TestDiskBusBlockers(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		disk := filepath.Join(guesttest.Dir(t), "disk")
		if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, bus := range append(guest.DiskBuses(), "nvme") {
			s := guest.Spec{Name: "bus", QEMU: bin, Dir: path.Join(guesttest.Dir(t), "vm"), Memory: 16 << 20, Paused: true}
			blocked := ""
			if bus == "nvme" {
				s.Extra = []string{"-blockdev", "driver=file,node-name=d,filename=" + disk, "-device", "nvme,drive=d,serial=d"}
				if v, err := guest.Version(t.Context(), bin); err != nil {
					t.Fatal(err)
				} else if guest.Series(v) != "11.1" {
					blocked = "non-migratable device"
				}
			} else {
				s.DiskBus, s.Disks = bus, []guest.Disk{{Node: "disk0", Path: disk}}
			}
			reasons := blockers(t, s)
			if got := strings.Join(reasons, "; "); (blocked == "") != (got == "") || !strings.Contains(got, blocked) {
				t.Errorf("%s is blocked by %q, want %q", bus, got, blocked)
			}
		}
	})
}

// blockers are QEMU's reasons why it would not migrate.
func blockers(t *testing.T, s guest.Spec) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	vm, err := guest.Start(ctx, host.Local(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	nc, err := vm.Dial(ctx, guest.Control)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reasons, err := c.Blockers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return reasons
}

func TestCheckMachine(t *testing.T) {
	dir := guesttest.Dir(t)
	fake := func(name, help string) string {
		bin := filepath.Join(dir, name)
		if err := os.WriteFile(bin, []byte("#!/bin/sh\ncat <<'END'\nSupported machines are:\n"+help+"END\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return bin
	}
	old := fake("old", "microvm              microvm (i386)\npc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)\npc-i440fx-7.2        Standard PC\nq35    Standard PC\npc-q35-7.2           Standard PC\npc-q35-7.1 Standard PC\npc-q35-2.4 Standard PC\npc-q35-10.9.x odd\nnone                 empty machine\n")
	young := fake("young", "pc-q35-10.0          Standard PC\npc-q35-7.2           Standard PC\npc-q35-7.1 Standard PC\npc-i440fx-7.2        Standard PC\nq35    Standard PC\n")
	for _, m := range []string{"pc-q35-7.2", "pc-q35-7.1,vmport=off", "pc-i440fx-7.2"} {
		if err := guest.CheckMachine(t.Context(), m, old, young); err != nil {
			t.Error(err)
		}
	}
	for _, m := range []string{"q35", "pc", "pc-q35-10.0", "pc-q35-2.4", "microvm", ""} {
		err := guest.CheckMachine(t.Context(), m, old, young)
		if want := `machine "` + m + `": the QEMUs have pc-i440fx-7.2, pc-q35-7.1, 7.2`; err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := guest.CheckMachine(t.Context(), "pc-q35-10.0", young); err != nil {
		t.Error(err)
	}
	if _, err := guest.Machines(t.Context(), fake("none", "none empty machine\n")); err == nil {
		t.Error("a QEMU without a PC")
	}
	if _, err := guest.Machines(t.Context(), filepath.Join(dir, "missing")); err == nil {
		t.Error("no QEMU at all")
	}
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		all, err := guest.Machines(t.Context(), bin)
		if err != nil || !slices.Contains(all, "pc-q35-7.2") || !slices.Contains(all, "pc-i440fx-7.2") || slices.Contains(all, "q35") {
			t.Errorf("%q, %v", all, err)
		}
	})
}
