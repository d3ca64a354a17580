package qmp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// Address is where a migration goes to or comes from. Source: qapi/migration.json, MigrationAddress;
// migration/migration.c, migrate_uri_parse.
type Address struct {
	Kind       string // tcp, unix, vsock, fd, exec, file
	Host, Port string // tcp; vsock: CID and port
	Path       string // unix, file
	Name       string // fd: as getfd named it, or a number
	Command    string // exec: for /bin/sh
}

// ParseAddress reads an address as QEMU's commands take it: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT, fd:NAME,
// exec:COMMAND, file:PATH. Options that may follow after a comma (tcp, file) stay where they are: only the form as one
// text has them.
func ParseAddress(uri string) (Address, error) {
	kind, rest, ok := strings.Cut(uri, ":")
	a := Address{Kind: kind}
	if !ok || rest == "" {
		return Address{}, fmt.Errorf("address %q: write it as tcp:HOST:PORT, unix:PATH, fd:NAME or exec:COMMAND", uri)
	}
	var err error
	switch kind {
	case "tcp", "vsock":
		if a.Host, a.Port, err = net.SplitHostPort(rest); err == nil && a.Port == "" {
			err = errors.New("it has no port")
		}
		if err != nil {
			return Address{}, fmt.Errorf("address %q: %w", uri, err)
		}
	case "unix", "file":
		a.Path = rest
	case "fd":
		a.Name = rest
	case "exec":
		a.Command = rest
	default:
		return Address{}, fmt.Errorf("address %q: QEMU has tcp, unix, vsock, fd, exec and file, not %s", uri, kind)
	}
	return a, nil
}

// Channels is the address as the commands' argument of that name.
func (a Address) Channels() map[string]any {
	addr := map[string]any{"transport": "socket", "type": a.Kind}
	switch a.Kind {
	case "tcp":
		addr["type"], addr["host"], addr["port"] = "inet", a.Host, a.Port
	case "vsock":
		addr["cid"], addr["port"] = a.Host, a.Port
	case "unix":
		addr["path"] = a.Path
	case "fd":
		addr["str"] = a.Name
	case "exec":
		addr = map[string]any{"transport": "exec", "args": []string{"/bin/sh", "-c", a.Command}}
	case "file":
		addr = map[string]any{"transport": "file", "filename": a.Path, "offset": 0}
	}
	return map[string]any{"channels": []any{map[string]any{"channel-type": "main", "addr": addr}}}
}

// MigrateChannels is Migrate with the address as a structure, which QEMU takes from 8.2 on.
func (c *Conn) MigrateChannels(ctx context.Context, a Address) error {
	return c.Execute(ctx, "migrate", a.Channels(), nil)
}

// MigrateIncomingChannels is MigrateIncoming with the address as a structure.
func (c *Conn) MigrateIncomingChannels(ctx context.Context, a Address) error {
	return c.Execute(ctx, "migrate-incoming", a.Channels(), nil)
}
