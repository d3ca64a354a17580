package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"qmigrate/engine/plan"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// DiskSpec is a guest's disks as data.
type DiskSpec struct {
	Storage storage.Spec
	Owner   string   // the lab's name
	Dir     string   // of the lab; the disks have a folder in it
	QEMUs   []string // of both sides, as the lab's spec names them
	// where a server runs, which both hosts reach at the address
	Observer host.Host
	Address  netip.Addr
	Save     func() error // writes down that a server has begun, so that a killed run's is found
}

// Disks are the guest's, as each side names them, with what they are on.
type Disks struct {
	Source, Destination []guest.Disk
	Server              *Server // of iscsi or nfs; nil: none
	Ledger              *Ledger // of what the guest wrote to them

	spec DiskSpec
}

// NewDisks are disks that have not been made; nil: the guest has none.
func NewDisks(s DiskSpec) *Disks {
	if s.Storage.Disks == 0 {
		return nil
	}
	return &Disks{spec: s, Ledger: newLedger(s.Storage)}
}

// Make makes what the disks are on. After an error Close ends what has begun.
func (d *Disks) Make(ctx context.Context) error {
	if d == nil {
		return nil
	}
	s := d.spec.Storage
	dir := filepath.Join(d.spec.Dir, "storage")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make storage: %w", err)
	}
	image := func(name string) (string, error) {
		path := filepath.Join(dir, name+"."+s.Format)
		return path, storage.Create(path, s.Format, s.Size)
	}
	switch s.Kind {
	case storage.ISCSI:
		return d.startTarget(ctx, dir)
	case storage.NFS:
		return d.startNFS(ctx, dir)
	}
	for _, node := range s.Nodes() {
		disk := guest.Disk{Node: node, Format: s.Format, Cache: s.Cache}
		var err error
		switch s.Kind {
		case storage.Shared:
			if disk.Path, err = image(node); err != nil {
				return err
			}
			d.add(disk, disk)
		case storage.Mirror:
			e := disk
			if disk.Path, err = image(node + "-a"); err == nil {
				e.Path, err = image(node + "-b")
			}
			if err == nil && s.Format == "raw" {
				err = storage.Fill(disk.Path, s.Area, s.Size)
			}
			if err != nil {
				return err
			}
			d.add(disk, e)
		}
	}
	if s.Cache == "none" {
		if err := direct(d.Source[0].Path); err != nil {
			return err
		}
	}
	return nil
}

// add adds a disk, as each side names it.
func (d *Disks) add(source, destination guest.Disk) {
	d.Source, d.Destination = append(d.Source, source), append(d.Destination, destination)
}

// StartWriters starts a writer on each of the guest's disks.
func (d *Disks) StartWriters(ctx context.Context, agent *guest.Agent) error {
	if d == nil {
		return nil
	}
	s := d.spec.Storage
	for _, node := range s.Nodes() {
		if err := agent.Call(ctx, wire.DoDiskStart, wire.DiskStart{Disk: node, Area: s.Area, Rate: s.Rate, Seed: diskSeed},
			nil); err != nil {
			return fmt.Errorf("start writing to %s: %w", node, err)
		}
	}
	return nil
}

// Follow takes in what the guest says over an agent's line of its writes, until that line ends.
func (d *Disks) Follow(agent *guest.Agent) {
	if d != nil {
		d.Ledger.Follow(agent)
	}
}

// Process is where the process of the disks' server is found; nil: there is none.
func (d *Disks) Process() *ProcessState {
	if d == nil || d.Server == nil {
		return nil
	}
	return stateOf(d.spec.Observer, d.Server.proc)
}

// Close ends what the disks are on, when both QEMUs have ended. The lab's folder goes with the lab.
func (d *Disks) Close() error {
	if d == nil {
		return nil
	}
	return errors.Join(d.Ledger.Close(), d.Server.Close())
}

// direct refuses cache=none where the file system of the lab's folder does not know it; QEMU's own words for it are
// worse.
func direct(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return &plan.UnsupportedError{Feature: "cache=none",
			Have: fmt.Sprintf("the file system of %s does not read past its cache (%v): leave it out, or set TMPDIR to a "+
				"folder on a disk", filepath.Dir(path), errors.Unwrap(err))}
	}
	return f.Close()
}
