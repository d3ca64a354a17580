package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"qmigrate/engine/record"
	"qmigrate/engine/report/text"
	"qmigrate/guest"
	"qmigrate/guest/debian"
)

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
				f.text, f.mend = "QEMU's own clients of them are not there: --storage iscsi and nfs need them",
					mend+", or for the system's own QEMU `apt install qemu-block-extra`"
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
