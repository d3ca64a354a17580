package connect

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"

	"qmigrate/engine/plan"
	"qmigrate/engine/tlscreds"
	"qmigrate/hostnet/host"
)

// Credentials makes new ones for one migration, with an authority of its own that nobody else has certificates of. hosts are the names and addresses
// by which the source knows the destination; with none the certificate, and t, get one.
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
