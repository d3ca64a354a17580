package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/engine/tlscreds"
	"qmigrate/hostnet/host"
)

// Credentials makes new ones for one migration, with an authority of its own that nobody else has certificates of.
// hosts are the names and addresses by which the source knows the destination; with none the certificate, and t, get
// one.
func Credentials(t *plan.TLS, hosts ...string) (source, destination tlscreds.Files, err error) {
	if t.Kind == plan.PSK {
		source, err = tlscreds.PSK(cmp.Or(t.Username, plan.DefaultUsername))
		return source, source, err
	}
	ca, err := tlscreds.NewAuthority(tlscreds.Certificate{Name: "one migration's"})
	if err != nil {
		return nil, nil, err
	}
	if source, err = ca.Issue(tlscreds.Client, tlscreds.Certificate{Name: "source"}); err != nil {
		return nil, nil, err
	}
	if t.Hostname == "" && len(hosts) == 0 && !t.NoVerify {
		t.Hostname = "destination"
	}
	if t.Hostname != "" {
		hosts = append(hosts, t.Hostname)
	}
	destination, err = ca.Issue(tlscreds.Server, tlscreds.Certificate{Name: "destination", Hosts: hosts})
	return source, destination, err
}

// WriteCredentials writes files to a new private folder on h.
func WriteCredentials(h host.Host, dir string, files tlscreds.Files) (err error) {
	if err := h.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder for TLS credentials: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := h.WriteFile(path.Join(dir, name), files[name], 0o600); err != nil {
			return errors.Join(fmt.Errorf("write TLS credentials: %w", err), h.RemoveAll(dir))
		}
	}
	return nil
}

// Secure makes new credentials for QEMUs of this machine where the plan wants TLS and names no folders. What it returns
// removes them.
func Secure(ctx context.Context, p *plan.Plan, src, dst *endpoint.Endpoint) (remove func() error, err error) {
	remove = func() error { return nil }
	if p.TLS == nil || p.TLS.SourceDir != "" {
		return remove, nil
	}
	source, destination, err := Credentials(p.TLS, p.Hosts()...)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "qmigrate-tls-")
	if err != nil {
		return nil, fmt.Errorf("make folder for TLS credentials: %w", err)
	}
	remove = func() error { return os.RemoveAll(dir) }
	for _, side := range []struct {
		role  string
		ep    *endpoint.Endpoint
		files tlscreds.Files
		into  *string
	}{{"source", src, source, &p.TLS.SourceDir}, {"destination", dst, destination, &p.TLS.DestinationDir}} {
		*side.into = filepath.Join(dir, side.role)
		if err := give(ctx, side.ep, *side.into, side.files); err != nil {
			err = fmt.Errorf("make TLS credentials for %s %s: %w", side.role, side.ep.Name, err)
			return nil, errors.Join(setting.About(err, "tls-dir-source", "tls-dir-destination"), remove())
		}
	}
	return remove, os.Chmod(dir, 0o711)
}

// give writes files to a folder of this machine that the endpoint's QEMU, and nobody else, can read.
func give(ctx context.Context, e *endpoint.Endpoint, dir string, files tlscreds.Files) error {
	mend := "put some there yourself and give `tls-dir-source` and `tls-dir-destination`"
	if len(files) == 0 {
		mend = "a tunnel's socket has to be on this machine"
	}
	p, ok := e.Process.(*peer)
	if !ok {
		return errors.New("its files cannot be written from here: " + mend)
	}
	nc, err := e.Control(ctx)
	if err != nil {
		return err
	}
	if err := nc.Close(); err != nil {
		return err
	}
	if err := WriteCredentials(host.Local(), dir, files); err != nil {
		return err
	}
	if p.proc == nil {
		return errors.New("which process listens there is not known: " + mend)
	}
	uid, gid, err := p.owner()
	if err != nil {
		return err
	}
	if uid != os.Geteuid() {
		for _, name := range append([]string{""}, slices.Sorted(maps.Keys(files))...) {
			if err := os.Chown(filepath.Join(dir, name), uid, gid); err != nil {
				return fmt.Errorf("its QEMU is another user's: %w: %s", err, mend)
			}
		}
	}
	for name := range files {
		if _, err := p.readFile(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("its QEMU does not see this machine's files: %w: %s", err, mend)
		}
	}
	return nil
}

// own gives a socket to the endpoint's QEMU, whose user may be another than ours.
func own(e *endpoint.Endpoint, name string) error {
	p, ok := e.Process.(*peer)
	if !ok {
		return nil
	}
	uid, gid, err := p.owner()
	if err != nil || uid == os.Geteuid() {
		return err
	}
	return os.Chown(name, uid, gid)
}
