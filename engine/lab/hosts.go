package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"qmigrate/engine/connect"
	"qmigrate/engine/lab/load"
	"qmigrate/engine/setting"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
)

// labHost is a host of the lab, with what the lab has there.
type labHost struct {
	host.Host
	name   string       // in the site
	tap    string       // of the guest
	folder string       // of the lab on the host: sockets, logs, credentials
	qemu   guest.Binary // on the host
	image  guest.Image  // its files, on the host
}

// dir is the folder of the host's QEMU.
func (h *labHost) dir() string { return path.Join(h.folder, h.name) }

// place is the host with the lab's folder on it.
func (h *labHost) place() load.Place { return load.Place{Host: h.Host, Folder: h.folder} }

// take gives the lab its folder on each host of its site. A folder that is there belongs to another lab.
func (l *Lab) take(ctx context.Context) error {
	if _, far := l.site.Observer().(*host.Far); far && l.spec.Workload.Name == "iperf3" {
		return setting.Errorf("workload", "iperf3", "its other end runs where the observer is, and that is another machine: "+
			"leave the observer out")
	}
	if _, far := l.site.Observer().(*host.Far); far && l.spec.Workload.Type().Outside {
		l.warnings = append(l.warnings, fmt.Sprintf("workload %s: its part outside of the guest works through the channel to the "+
			"observer, and what it measures has that in it", l.spec.Workload.Name))
	}
	l.hosts = map[string]*labHost{}
	for _, name := range []string{sourceHost, destinationHost} {
		h := &labHost{Host: l.site.Host(name), name: name, tap: l.site.TAP(name), folder: l.dir}
		if far, ok := h.Host.(*host.Far); ok {
			if err := h.settle(path.Join(far.Folder(), l.spec.Owner+"."+name)); err != nil { // no lab is called so
				return fmt.Errorf("lab %s: %w", l.spec.Owner, err)
			}
		}
		l.hosts[name] = h
	}
	return ctx.Err()
}

// settle makes the lab's folder on a host that is elsewhere.
func (h *labHost) settle(folder string) error {
	switch _, err := h.Stat(folder); {
	case err == nil:
		return fmt.Errorf("host %s has its folder, %s, already: a lab of that name stands there: remove it, or take another name",
			h.Name(), folder)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("make a folder on host %s: %w", h.Name(), err)
	}
	if err := h.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("make a folder on host %s: %w", h.Name(), err)
	}
	h.folder = folder
	return nil
}

// forget removes the lab's folders on hosts that are elsewhere.
func (l *Lab) forget() error {
	var errs []error
	for _, h := range l.hosts {
		if h.folder != l.dir {
			errs = append(errs, h.RemoveAll(h.folder))
		}
	}
	return errors.Join(errs...)
}

// supply gives a host what it is to run: QEMU and what the guest boots. What is there already is not sent.
func (l *Lab) supply(ctx context.Context, name string, qemu guest.Binary, image guest.Image) (err error) {
	h := l.hosts[name]
	if qemu.Path != "" {
		h.qemu, err = guest.PlaceQEMU(ctx, h.Host, qemu)
	} else {
		h.qemu, err = l.findQEMU(ctx, h)
	}
	if err != nil {
		return err
	}
	h.image = image
	for _, file := range []*string{&h.image.Kernel, &h.image.Initrd, &h.image.Root} {
		if *file == "" {
			continue
		}
		there, err := h.Put(ctx, *file)
		if err != nil {
			return fmt.Errorf("put %s on host %s: %w", *file, h.Name(), err)
		}
		*file = there
	}
	return nil
}

// findQEMU finds the QEMU of a host that is elsewhere: the one that was asked for, or else what the site says of it.
func (l *Lab) findQEMU(ctx context.Context, h *labHost) (guest.Binary, error) {
	want := l.spec.SourceQEMU
	if h.name == destinationHost {
		want = l.spec.DestinationQEMU
	}
	path := ""
	if site, ok := l.site.(interface{ QEMU(host string) string }); ok && want == "" {
		path = site.QEMU(h.name)
	}
	b, err := guest.FindQEMUOn(ctx, h.Host, want, path)
	if err == nil {
		err = tooOld(b)
	}
	return b, err
}

// guestOn is the guest's QEMU on a host.
func (l *Lab) guestOn(h *labHost, s guest.Spec) guest.Spec {
	s.Name, s.QEMU, s.Dir, s.NIC.TAP = l.spec.Owner+"-"+h.name, h.qemu.Path, h.dir(), h.tap
	s.Image.Kernel, s.Image.Initrd, s.Image.Root = h.image.Kernel, h.image.Initrd, h.image.Root
	return s
}

// probe settles what runs the guest's instructions. KVM serves only where both hosts have it.
func (l *Lab) probe(ctx context.Context, s guest.Spec) (a guest.Accelerator, err error) {
	for _, name := range []string{sourceHost, destinationHost} {
		h := l.hosts[name]
		if a, err = guest.ProbeAccelerator(ctx, h.Host, l.guestOn(h, s), l.spec.Accelerator); err != nil || a.Name == "tcg" {
			return a, err
		}
		if _, far := l.hosts[destinationHost].Host.(*host.Far); !far { // both are this machine
			break
		}
	}
	return a, nil
}

// tryCOLO tries on the source's host whether two QEMUs can be in step.
func (l *Lab) tryCOLO(ctx context.Context, primary, secondary string) error {
	h := l.hosts[sourceHost]
	return connect.TryCOLO(ctx, h.Host, primary, secondary, path.Join(h.folder, "probe"))
}

// hostOf is the name in the site of the host that a VM runs on.
func (l *Lab) hostOf(vm *guest.VM) string { return path.Base(vm.Spec().Dir) }
