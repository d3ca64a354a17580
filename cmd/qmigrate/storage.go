package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/report/text"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/debian"
)

func storageFlag() cli.Flag {
	return &cli.StringFlag{Name: "storage", Category: aboutGuest, Value: string(storage.None), Usage: "`KIND[:k=v,...]` what the guest's disks are on: none, shared, mirror (each host its own, copied by the migration), iscsi, nfs"}
}

// mirrorFlags are those of a migration between hosts that share no storage.
func mirrorFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "mirror", Category: aboutMigration, Usage: "`NODE[,NODE...]` copy these disks, block nodes of the same names and sizes on both sides, before the memory, from the source's QEMU to the destination's"},
		&cli.StringFlag{Name: "mirror-copy-mode", Category: aboutMigration, Value: storage.Background, Usage: "`MODE` background (the guest does not wait, and may outrun the copy) or write-blocking (each of its writes waits for both sides)"},
		&cli.StringFlag{Name: "mirror-bandwidth", Category: aboutMigration, Value: "0B/s", Usage: "`RATE` what the copy of each disk may send; 0B/s is unlimited"},
		&cli.StringFlag{Name: "mirror-listen", Category: aboutMigration, Usage: "`ADDRESS` of the destination's NBD server: HOST, HOST:PORT or unix:PATH; --listen's host and a port from 10809 on if not given"},
	}
}

// mirror reads the mirrorFlags.
func mirror(x *cli.Context) (m plan.Mirror, err error) {
	text := x.String("mirror")
	for _, flag := range []string{"mirror-copy-mode", "mirror-bandwidth", "mirror-listen"} {
		if x.IsSet(flag) && text == "" {
			return m, usagef("--%s is for --mirror NODE: give that too, or leave it out", flag)
		}
	}
	if !x.IsSet("mirror") {
		return m, nil
	}
	m.Nodes, m.CopyMode, m.Listen = strings.Split(text, ","), x.String("mirror-copy-mode"), x.String("mirror-listen")
	if m.CopyMode != storage.Background && m.CopyMode != storage.WriteBlocking {
		return m, usagef("--mirror-copy-mode %q: have %s, %s", m.CopyMode, storage.Background, storage.WriteBlocking)
	}
	if m.MaxBandwidth, err = units.Rate(x.String("mirror-bandwidth")); err != nil {
		return m, usagef("--mirror-bandwidth: %w", err)
	}
	return m, nil
}

// wrongDisks is the error of a migration after which the guest's disks are not as they should be.
func wrongDisks(r *record.Migration) error {
	if r == nil || r.DiskCheck == nil || r.DiskCheck.OK() {
		return nil
	}
	return fmt.Errorf("the guest's disks are wrong: %s", strings.Join(text.DiskCheck(r.DiskCheck), "; "))
}

// storageFindings say what --storage iscsi and nfs lack.
func storageFindings(ctx context.Context, mend string) (all []finding) {
	for _, series := range []string{"7.2", "10.0", "11.1"} {
		f := finding{name: "iSCSI, NFS in " + series, optional: true, text: "no QEMU " + series, mend: mend}
		if b, err := guest.FindQEMU(ctx, series); err == nil {
			err = errors.Join(debian.HasDriver(ctx, b.Path, "iscsi"), debian.HasDriver(ctx, b.Path, "nfs"))
			if f.ok, f.text = err == nil, "QEMU's own clients of them"; err != nil {
				f.text, f.mend = "QEMU's own clients of them are not there: --storage iscsi and nfs need them", mend+", or for the system's own QEMU `apt install qemu-block-extra`"
			}
		}
		all = append(all, f)
	}
	for what, name := range map[debian.What]string{debian.Target: "iSCSI target", debian.Ganesha: "NFS server"} {
		path, err := debian.Find(what)
		f := finding{name: name, ok: err == nil, optional: true, text: path, mend: mend}
		if err != nil {
			f.text = string(what) + " is not in the cache: --storage iscsi or nfs needs it"
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b finding) int { return strings.Compare(a.name, b.name) })
	return all
}
