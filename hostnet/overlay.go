package hostnet

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Overlay is a VXLAN: Ethernet between hosts that see one another by IP alone (RFC 7348). Each frame goes as a UDP
// datagram to port 4789 of the host behind which its address was learnt, else to all. Frames of 1500 bytes go as
// fragments where the link carries no more.
type Overlay struct {
	ID    uint32     // 24 bits, the same on all its hosts: see OverlayID
	Local netip.Addr // of the host, on the link
	Peers []netip.Addr
}

// OverlayID is the ID of an owner's overlay.
func OverlayID(owner string) uint32 {
	sum := sha256.Sum256([]byte(owner))
	return binary.BigEndian.Uint32(sum[:])>>8 | 1
}

const vxlanPort = 4789

// overlay makes the uplink a VXLAN, if it is none yet.
func (ns *nsBuilder) overlay() error {
	o, name := ns.join.Overlay, ns.join.Uplink
	l, err := ns.link(name, func(l netlink.Link) bool {
		v, ok := l.(*netlink.Vxlan)
		return ok && v.VxlanId == int(o.ID) && v.SrcAddr.Equal(o.Local.AsSlice())
	})
	if err != nil {
		return err
	}
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err := ns.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(o.ID), SrcAddr: o.Local.AsSlice(), Port: vxlanPort,
			Learning: true})
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("another overlay of the host has its number, %d, already", o.ID)
		}
		if err != nil {
			return unsupportedLink("vxlan", "CONFIG_VXLAN", err)
		}
		if l, err = ns.LinkByName(name); err != nil {
			return err
		}
	}
	for _, peer := range o.Peers {
		// What is learnt of no other host goes to all of them.
		err := ns.NeighAppend(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			State: netlink.NUD_NOARP | netlink.NUD_PERMANENT, IP: peer.AsSlice(), HardwareAddr: make(net.HardwareAddr, 6)})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add peer %s: %w", peer, err)
		}
	}
	return nil
}
