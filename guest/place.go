package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"qmigrate/guest/debian"
	"qmigrate/hostnet/host"
)

// FindQEMUOn is FindQEMU for a host. On one behind a helper these are tried: path, if that is given, and nothing else;
// the host's $PATH; this machine's unpacked QEMU, which is sent there once. The first of the wanted version is taken;
// if any is wanted, the newest. What it is is asked on the host.
func FindQEMUOn(ctx context.Context, h host.Host, want, path string) (Binary, error) {
	far, ok := h.(*host.Far)
	if path == "" && strings.ContainsRune(want, '/') {
		path, want = want, ""
	}
	if !ok {
		if path != "" {
			want = path
		}
		return FindQEMU(ctx, want)
	}
	if path != "" {
		version, err := hostVersion(ctx, h, path)
		if err == nil && want != "" && Series(version) != want {
			err = fmt.Errorf("%s is QEMU %s, and %s is wanted", path, version, want)
		}
		if err != nil {
			return Binary{}, fmt.Errorf("find QEMU on host %s: %w", h.Name(), err)
		}
		return Binary{path, version}, nil
	}
	there, theirErr := pathQEMU(ctx, h)
	if theirErr == nil && want != "" && Series(there.Version) == want {
		return there, nil
	}
	ours, ourErr := FindQEMU(ctx, want)
	switch {
	case theirErr == nil && want == "" && (ourErr != nil || CompareVersions(ours.Version, there.Version) <= 0):
		return there, nil
	case ourErr != nil:
		looked := []string{"its $PATH: " + foundThere(there, theirErr), "this machine"}
		return Binary{}, fmt.Errorf("host %s: %w", h.Name(), &NoQEMUError{Want: want, Looked: looked})
	}
	sent, err := sendQEMU(ctx, far, ours)
	if err != nil && want == "" && theirErr == nil {
		return there, nil // older, and there
	}
	if err != nil {
		return Binary{}, fmt.Errorf("find QEMU %s on host %s: $PATH there: %s; this machine's: %w", want, h.Name(),
			foundThere(there, theirErr), err)
	}
	return sent, nil
}

func foundThere(b Binary, err error) string {
	if err != nil {
		return err.Error()
	}
	return b.Version
}

// PlaceQEMU is the QEMU on a host that is like one of this machine: the same version, found there or sent.
func PlaceQEMU(ctx context.Context, h host.Host, b Binary) (Binary, error) {
	far, ok := h.(*host.Far)
	if !ok {
		return b, nil
	}
	same := func(there Binary, err error) bool { return err == nil && there.Version == b.Version }
	version, err := hostVersion(ctx, h, b.Path) // one file system, or the same distribution
	if there := (Binary{b.Path, version}); same(there, err) {
		return there, nil
	}
	there, theirErr := pathQEMU(ctx, h)
	if same(there, theirErr) {
		return there, nil
	}
	sent, err := sendQEMU(ctx, far, b)
	if err != nil {
		return Binary{}, fmt.Errorf("find QEMU %s on host %s: $PATH there: %s; this machine's: %w", b.Version, h.Name(),
			foundThere(there, theirErr), err)
	}
	return sent, nil
}

// pathQEMU is the QEMU in a host's $PATH.
func pathQEMU(ctx context.Context, h host.Host) (Binary, error) {
	var out bytes.Buffer
	p, err := h.Start(ctx, host.Command{Args: []string{"sh", "-c", "command -v " + debian.Program}, Stdout: &out,
		Stderr: io.Discard})
	if err != nil {
		return Binary{}, err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return Binary{}, errors.Join(ctx.Err(), p.Kill(context.WithoutCancel(ctx)))
	}
	path := strings.TrimSpace(out.String())
	if path == "" {
		return Binary{}, errors.New("no " + debian.Program)
	}
	version, err := hostVersion(ctx, h, path)
	return Binary{path, version}, err
}

// sendQEMU sends an unpacked QEMU of this machine to a host, once.
func sendQEMU(ctx context.Context, far *host.Far, b Binary) (Binary, error) {
	root := debian.Unpacked(b.Path)
	if root == "" {
		return Binary{}, fmt.Errorf("%s (%s) is installed and cannot be sent: install that version there, or give its path as "+
			"qemu in a hosts file; or get one that can be sent, by `qmigrate doctor --mend`", b.Path, b.Version)
	}
	copied, err := far.PutTree(ctx, root, func(name string) bool { return name == debian.Program })
	if err != nil {
		return Binary{}, fmt.Errorf("send %s: %w", root, err)
	}
	script, err := debian.Wrapper(root, copied)
	if err != nil {
		return Binary{}, err
	}
	dir, err := os.MkdirTemp("", "qmigrate")
	if err != nil {
		return Binary{}, err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, debian.Program)
	if err := os.WriteFile(name, []byte(script), 0o755); err != nil {
		return Binary{}, err
	}
	path, err := far.Put(ctx, name)
	if err != nil {
		return Binary{}, fmt.Errorf("send %s: %w", name, err)
	}
	version, err := hostVersion(ctx, far, path)
	if err != nil {
		return Binary{}, fmt.Errorf("it does not run there: install QEMU there, and give its path as qemu in a hosts file: %w", err)
	}
	return Binary{path, version}, nil
}
