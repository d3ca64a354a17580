package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"qmigrate/engine/plan"
	"qmigrate/engine/storage"
	"qmigrate/guest"
)

// disks are the guest's, as each side names them.
type disks struct {
	source, destination []guest.Disk
	server              *server // of iscsi or nfs; nil: none
}

// makeStorage makes what the disks are on.
func (l *Lab) makeStorage(ctx context.Context) error {
	s := l.spec.Storage
	if s.Disks == 0 {
		return nil
	}
	dir := filepath.Join(l.dir, "storage")
	l.ledger, l.disks = newLedger(s), &disks{}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make storage: %w", err)
	}
	image := func(name string) (string, error) {
		path := filepath.Join(dir, name+"."+s.Format)
		return path, storage.Create(path, s.Format, s.Size)
	}
	switch s.Kind {
	case storage.ISCSI:
		return l.startTarget(ctx, dir)
	case storage.NFS:
		return l.startNFS(ctx, dir)
	}
	for _, node := range s.Nodes() {
		d := guest.Disk{Node: node, Format: s.Format, Cache: s.Cache}
		var err error
		switch s.Kind {
		case storage.Shared:
			if d.Path, err = image(node); err != nil {
				return err
			}
			l.disks.source, l.disks.destination = append(l.disks.source, d), append(l.disks.destination, d)
		case storage.Mirror:
			e := d
			if d.Path, err = image(node + "-a"); err == nil {
				e.Path, err = image(node + "-b")
			}
			if err == nil && s.Format == "raw" {
				err = storage.Fill(d.Path, s.Area, s.Size)
			}
			if err != nil {
				return err
			}
			l.disks.source, l.disks.destination = append(l.disks.source, d), append(l.disks.destination, e)
		}
	}
	if s.Cache == "none" {
		if err := direct(l.disks.source[0].Path); err != nil {
			return err
		}
	}
	return nil
}

// direct refuses cache=none where the file system of the lab's folder does not know it; QEMU's own words for it are worse.
func direct(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return &plan.UnsupportedError{Feature: "cache=none", Have: fmt.Sprintf("the file system of %s does not read past its cache (%v): leave it out, or set TMPDIR to a folder on a disk", filepath.Dir(path), errors.Unwrap(err))}
	}
	return f.Close()
}

// complete gives the plan what a migration in this lab needs and the plan leaves open: the link's rate, and the mirrors of its disks.
func (l *Lab) complete(p plan.Plan) plan.Plan {
	p.LinkRate = cmp.Or(p.LinkRate, l.spec.LinkRate)
	s := l.spec.Storage
	if s.Kind == storage.Mirror && len(p.Mirror.Nodes) == 0 {
		p.Mirror = plan.Mirror{Nodes: s.Nodes(), CopyMode: s.CopyMode, MaxBandwidth: s.MaxBandwidth, Listen: l.network.Address(l.hostOf(l.destination)).String()}
	}
	return p
}
