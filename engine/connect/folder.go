package connect

import (
	"context"
	"fmt"
	"strings"

	"qmigrate/engine/endpoint"
	"qmigrate/hostnet/host"
)

// HostOf is the host of an endpoint that has a path; an error wraps ErrElsewhere where there is none.
func HostOf(ctx context.Context, e *endpoint.Endpoint) (host.Host, error) {
	switch p := e.Process.(type) {
	case Process:
		return p.host, nil
	case *peer:
		return p.host(ctx)
	}
	return nil, ErrElsewhere
}

// Folder is the host and the folder that an endpoint names, for a QEMU that is to be started there: unix:FOLDER,
// ssh://HOST/FOLDER or lxc://NAME/FOLDER. The host is as host.Pool finds it.
func Folder(text string) (name, folder string, err error) {
	kind, rest, _ := strings.Cut(text, ":")
	switch {
	case kind == "unix" && rest != "":
		return local, rest, nil
	case kind == "ssh", kind == "lxc":
		if name, folder, err = hostAndPath(kind, rest); err == nil {
			return name, folder, nil
		}
		return "", "", fmt.Errorf("endpoint %q: %w", text, err)
	}
	return "", "", fmt.Errorf("endpoint %q: give the folder that is to be made for it, as in unix:/run/b, ssh://HOST/run/b or "+
		"lxc://NAME/run/b", text)
}
