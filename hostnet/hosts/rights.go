package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"qmigrate/hostnet"
)

// withoutRight turns a watch that this user may not have into none.
func withoutRight(w *hostnet.FrameWatch, err error) (*hostnet.FrameWatch, error) {
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	return w, err
}

// addressTowards is this machine's address towards another one. Nothing is sent.
func addressTowards(to netip.Addr) (netip.Addr, error) {
	c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no way to %s: %w", to, err)
	}
	defer c.Close()
	a, err := netip.ParseAddrPort(c.LocalAddr().String())
	return a.Addr(), err
}
