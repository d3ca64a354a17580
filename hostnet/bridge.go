package hostnet

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func (ns *nsBuilder) bridge() (netlink.Link, error) {
	mac := hardwareAddr(ns.join.Name)
	br, err := ns.link(ns.join.Bridge, func(l netlink.Link) bool { return l.Type() == "bridge" })
	if err != nil {
		return nil, err
	}
	if br == nil {
		// The address is given, because a bridge without one takes the lowest of its ports' and changes it when a TAP comes
		// or goes: the neighbours would send to nobody until they ask again. Without snooping there are no queries, and
		// RARP and multicast go to every port.
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = ns.join.Bridge, mac, ns.join.MTU
		snooping := false
		if err := ns.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return nil, unsupportedLink("bridge", "CONFIG_BRIDGE", err)
		}
		if br, err = ns.LinkByName(ns.join.Bridge); err != nil {
			return nil, err
		}
	}
	if !bytes.Equal(br.Attrs().HardwareAddr, mac) {
		if err := ns.LinkSetHardwareAddr(br, mac); err != nil {
			return nil, fmt.Errorf("set its address to %s: %w", mac, err)
		}
	}
	if err := setBridgeTimers(br.Attrs().Index); err != nil {
		return nil, fmt.Errorf("switch STP off: %w", err)
	}
	if err := ns.addresses(br, ns.join.Address); err != nil {
		return nil, err
	}
	return br, ns.up(br, nil)
}

// setBridgeTimers switches STP off (the default, but some systems change it for all bridges by udev) and the forward
// delay to 0, so that a port forwards as soon as it has a carrier. netlink.Bridge has neither.
func setBridgeTimers(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// hardwareAddr is a locally administered address that is always the same for the same name.
func hardwareAddr(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}
