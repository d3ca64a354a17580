package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"

	"qmigrate/engine/plan"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// DiskSpec is a guest's disks as data.
type DiskSpec struct {
	Storage storage.Spec
	Owner   string // the lab's name
	Dir     string // of the lab on this machine; a server has a folder in it
	// a folder that both hosts and this machine have, as this machine and as the hosts name it; "" there is none
	SharedHere, SharedThere string
	Source, Destination     Place
	QEMUs                   []string // of both sides, as the lab's spec names them
	// where a server runs, which both hosts reach at the address
	Observer host.Host
	Address  netip.Addr
	Save     func() error // writes down that a server has begun, so that a killed run's is found
}

// Place is a host with a folder of the lab on it.
type Place struct {
	Host   host.Host
	Folder string
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
	switch s.Kind {
	case storage.ISCSI, storage.NFS:
		if _, far := d.spec.Observer.(*host.Far); far {
			return &plan.UnsupportedError{Feature: "storage " + string(s.Kind),
				Have: "its server runs where the observer is, and that is another machine: leave the observer out"}
		}
		dir := filepath.Join(d.spec.Dir, "storage")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make storage: %w", err)
		}
		if s.Kind == storage.NFS {
			return d.startNFS(ctx, dir)
		}
		return d.startTarget(ctx, dir)
	case storage.Shared:
		return d.makeShared(ctx)
	case storage.Mirror:
		return d.makeMirrors(ctx)
	}
	return nil
}

// makeShared makes images that both hosts have in common.
func (d *Disks) makeShared(ctx context.Context) error {
	s := d.spec.Storage
	if d.spec.SharedHere == "" {
		return &plan.UnsupportedError{Feature: "storage shared",
			Have: "the hosts have no folder in common: take nfs, iscsi or mirror"}
	}
	here := Place{host.Local(), d.spec.SharedHere}
	for _, node := range s.Nodes() {
		name, err := d.image(ctx, here, node, nil)
		if err != nil {
			return err
		}
		disk := guest.Disk{Node: node, Format: s.Format, Cache: s.Cache,
			Path: path.Join(d.spec.SharedThere, "storage", path.Base(name))}
		d.add(disk, disk)
	}
	return d.direct(ctx)
}

// makeMirrors makes an image of each disk on each host. That of the source is filled: a part that is not copied is
// seen.
func (d *Disks) makeMirrors(ctx context.Context) (err error) {
	s := d.spec.Storage
	var fill *int64
	if s.Format == "raw" {
		fill = &s.Area
	}
	for _, node := range s.Nodes() {
		a := guest.Disk{Node: node, Format: s.Format, Cache: s.Cache}
		b := a
		if a.Path, err = d.image(ctx, d.spec.Source, node+"-a", fill); err != nil {
			return err
		}
		if b.Path, err = d.image(ctx, d.spec.Destination, node+"-b", nil); err != nil {
			return err
		}
		d.add(a, b)
	}
	return d.direct(ctx)
}

// image makes an image on a host, in a folder for them.
func (d *Disks) image(ctx context.Context, at Place, name string, fill *int64) (string, error) {
	s, dir := d.spec.Storage, path.Join(at.Folder, "storage")
	if err := at.Host.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make storage: %w", err)
	}
	file := path.Join(dir, name+"."+s.Format)
	return file, storage.CreateOn(ctx, at.Host, storage.Creation{Path: file, Format: s.Format, Size: s.Size, Fill: fill})
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

// direct refuses cache=none where the file system of a host's folder does not know it. QEMU's own words are worse.
func (d *Disks) direct(ctx context.Context) error {
	if d.spec.Storage.Cache != "none" {
		return nil
	}
	for _, side := range []struct {
		at   host.Host
		file string
	}{{d.spec.Source.Host, d.Source[0].Path}, {d.spec.Destination.Host, d.Destination[0].Path}} {
		if err := storage.Direct(ctx, side.at, side.file); err != nil {
			return &plan.UnsupportedError{Feature: "cache=none",
				Have: fmt.Sprintf("the file system of %s does not read past its cache (%v): leave it out, or set TMPDIR to a "+
					"folder on a disk", path.Dir(side.file), err)}
		}
	}
	return nil
}
