package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"qmigrate/hostnet/host"
)

// PlaceQEMU is the QEMU on a host that is like one of this machine: the same version, at the same path.
func PlaceQEMU(ctx context.Context, h host.Host, b Binary) (Binary, error) {
	if _, far := h.(*host.Far); !far {
		return b, nil
	}
	if _, err := h.Stat(b.Path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("it has no %s, and a QEMU %s like this machine's is needed there", b.Path, b.Version)
		}
		return Binary{}, fmt.Errorf("find QEMU on host %s: %w", h.Name(), err)
	}
	version, err := hostVersion(ctx, h, b.Path)
	if err != nil {
		return Binary{}, fmt.Errorf("find QEMU on host %s: %w", h.Name(), err)
	}
	if version != b.Version {
		return Binary{}, fmt.Errorf("find QEMU on host %s: its %s is QEMU %s, and this machine's %s", h.Name(), b.Path, version,
			b.Version)
	}
	return b, nil
}
