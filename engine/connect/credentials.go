package connect

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/engine/tlscreds"
	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
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

// Secure makes new credentials where the plan wants TLS and names no folders, each side's on the host of its QEMU. What
// it returns removes them, or has them stay when the channels to the hosts close.
func Secure(ctx context.Context, p *plan.Plan, src, dst *endpoint.Endpoint) (_ *Credentialed, err error) {
	c := &Credentialed{}
	if p.TLS == nil || p.TLS.SourceDir != "" {
		return c, nil
	}
	source, destination, err := Credentials(p.TLS, p.Hosts()...)
	if err != nil {
		return nil, err
	}
	for _, side := range []struct {
		role  string
		ep    *endpoint.Endpoint
		files tlscreds.Files
		into  *string
	}{{"source", src, source, &p.TLS.SourceDir}, {"destination", dst, destination, &p.TLS.DestinationDir}} {
		if *side.into, err = c.give(ctx, side.ep, side.files); err != nil {
			err = fmt.Errorf("make TLS credentials for %s %s: %w: put some there yourself and give `tls-dir-source` and "+
				"`tls-dir-destination`", side.role, side.ep.Name, err)
			return nil, errors.Join(setting.About(err, "tls-dir-source", "tls-dir-destination"), c.Remove())
		}
	}
	return c, nil
}

// Credentialed is the folders of credentials that Secure made.
type Credentialed struct {
	made []folderOn
}

type folderOn struct {
	host host.Host
	name string
}

// Remove removes them. It is harmless twice.
func (c *Credentialed) Remove() error {
	var errs []error
	for _, f := range c.made {
		errs = append(errs, f.host.RemoveAll(f.name))
	}
	c.made = nil
	return errors.Join(errs...)
}

// Keep has them stay when the channels close: a post-copy that goes on may need them.
func (c *Credentialed) Keep(ctx context.Context) error {
	var errs []error
	for _, f := range c.made {
		if far, ok := f.host.(*host.Far); ok {
			errs = append(errs, far.Keep(ctx, f.name))
		}
	}
	c.made = nil
	return errors.Join(errs...)
}

// give writes files to a new folder that the endpoint's QEMU, and nobody else, can read.
func (c *Credentialed) give(ctx context.Context, e *endpoint.Endpoint, files tlscreds.Files) (dir string, err error) {
	q, err := qemuOf(ctx, e)
	if err != nil {
		return "", err
	}
	h := q.host
	if q.uid != q.ours {
		if h, err = host.As(h, host.Like{UID: q.uid, GID: q.gid}); err != nil {
			return "", err
		}
	}
	dir = temporary(h, "qmigrate-tls-")
	if err := WriteCredentials(h, dir, files); err != nil {
		if q.uid != q.ours {
			err = fmt.Errorf("its QEMU is another user's: %w", err)
		}
		return "", err
	}
	c.made = append(c.made, folderOn{h, dir})
	for name := range files {
		if _, err := h.ReadFile(fmt.Sprintf("/proc/%d/root%s", q.pid, path.Join(dir, name))); err != nil {
			return "", fmt.Errorf("its QEMU does not see the files of %s: %w", where(h), err)
		}
	}
	return dir, nil
}

// where is a host for people.
func where(h host.Host) string {
	if _, ok := h.(*host.Far); ok {
		return "host " + h.Name()
	}
	return "this machine"
}

// qemu is a QEMU on a host: its process, whose it is, and who we are there.
type qemu struct {
	host           host.Host
	pid            int
	uid, gid, ours int
}

// qemuOf finds the QEMU behind an endpoint.
func qemuOf(ctx context.Context, e *endpoint.Endpoint) (q qemu, err error) {
	if _, err := HostOf(ctx, e); errors.Is(err, ErrElsewhere) {
		return q, errNoFiles
	}
	nc, err := e.Control(ctx) // then it is known who is there
	if err != nil {
		return q, err
	}
	if err := nc.Close(); err != nil {
		return q, err
	}
	h, err := HostOf(ctx, e)
	if err != nil {
		return q, err
	}
	p := Handle(e)
	if at, ok := e.Process.(*peer); p == nil || ok && !at.isQEMU() { // a forwarder's files are not the QEMU's
		return q, errNoFiles
	}
	q = qemu{host: h, pid: p.PID()}
	if q.uid, q.gid, err = actsAs(h, strconv.Itoa(q.pid)); err != nil {
		return q, err
	}
	q.ours, _, err = actsAs(h, "self")
	return q, err
}

// actsAs is the user and group that a process of a host acts as.
func actsAs(h host.Host, process string) (uid, gid int, err error) {
	status, err := h.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return 0, 0, err
	}
	for name, into := range map[string]*int{"Uid": &uid, "Gid": &gid} {
		all := strings.Fields(procfs.Value(status, name)) // real, effective, saved, for files
		if len(all) != 4 {
			return 0, 0, fmt.Errorf("read user of process %s: its status names none", process)
		}
		if *into, err = strconv.Atoi(all[1]); err != nil {
			return 0, 0, fmt.Errorf("read user of process %s: %w", process, err)
		}
	}
	return uid, gid, nil
}

// temporary is a new name in a host's folder for temporary files.
func temporary(h host.Host, prefix string) string {
	dir := "/tmp"
	if _, ok := h.(*host.Far); !ok {
		dir = os.TempDir()
	}
	return path.Join(dir, prefix+rand.Text())
}
