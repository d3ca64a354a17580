package lxc

import (
	"context"
	"errors"

	"qmigrate/hostnet/host"
)

// daemon is LXD or Incus, by its command.
type daemon struct{ program string }

func client(m host.LXC) daemon {
	if m == host.Incus {
		return daemon{"incus"}
	}
	return daemon{"lxc"}
}

func (d daemon) check(context.Context) error                      { return errors.ErrUnsupported }
func (d daemon) remove(context.Context, string) ([]string, error) { return nil, nil }
func (s Spec) applyClient(context.Context, *Network) error        { return errors.ErrUnsupported }
