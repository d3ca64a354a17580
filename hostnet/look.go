package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
)

// Look is what to look at on a host: devices that somebody else made.
type Look struct {
	Bridge  string   // that guests join; ""
	TAPs    []string // of guests; one that is free is enough
	NeedTAP bool     // without TAPs: one will have to be made
	Overlay bool     // one will have to be made, too
}

// Looked is what was found.
type Looked struct {
	User      string // who we are there
	Root      bool   // of that network
	Kernel    string
	Processor string
	Memory    int64 // bytes that a guest could have: MemAvailable
	KVM       Capability
	TUN       Capability // of a guest's TAP
	Bridge    Capability
	TAP       string // the first that is free
	Addresses []Address
	Reached   netip.Addr // by which a far host was reached; zero if that is not known
}

// Address is an address of a host.
type Address struct {
	Device string
	Prefix netip.Prefix // the address, with the length of its subnet's prefix
}

// LookTask looks at a host. Nothing is made, and nothing changed.
func LookTask() host.Task[Look, Looked] {
	return host.Task[Look, Looked]{Name: "hostnet.look",
		Work: func(_ context.Context, at host.Host, l Look, give func(Looked) error) error {
			found, err := l.do(at)
			if err != nil {
				return err
			}
			return give(found)
		}}
}

// CheckTask is Check on a host.
func CheckTask() host.Task[struct{}, Capabilities] {
	return host.Task[struct{}, Capabilities]{Name: "hostnet.check",
		Work: func(ctx context.Context, _ host.Host, _ struct{}, give func(Capabilities) error) error {
			return give(Check(ctx))
		}}
}

func (l Look) do(at host.Host) (found Looked, err error) {
	found.User = fmt.Sprint("user ", os.Geteuid())
	if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
		found.User = u.Username
	}
	if b, err := at.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		found.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := at.ReadFile("/proc/meminfo"); err == nil {
		kib, _ := strconv.ParseInt(strings.TrimSuffix(procfs.Value(b, "MemAvailable"), " kB"), 10, 64)
		found.Memory = kib << 10
	}
	if b, err := at.ReadFile("/proc/cpuinfo"); err == nil {
		found.Processor = procfs.Value(b, "model name")
	}
	if words := strings.Fields(os.Getenv("SSH_CONNECTION")); len(words) == 4 { // from, its port, to, its port
		found.Reached, _ = netip.ParseAddr(words[2])
	}
	found.KVM = lookKVM(found.User)
	err = host.In(at, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		found.Root = privileged()
		if found.Addresses, err = addressesOf(h); err != nil {
			return err
		}
		found.Bridge = l.lookBridge(h)
		found.TUN, found.TAP = l.lookTAP(h, found)
		return nil
	})
	return found, err
}

// lookKVM says what can be said of KVM without booting anything.
func lookKVM(user string) Capability {
	c := Capability{Name: "KVM", Optional: true, OK: true}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
	case errors.Is(err, os.ErrNotExist):
		c.OK, c.Reason = false, "no /dev/kvm: guests run under TCG"
	case errors.Is(err, os.ErrPermission):
		c.OK, c.Reason = false, user+" may not open /dev/kvm: guests run under TCG"
		c.Mend = "as root there run `usermod -aG kvm " + user + "`"
	default:
		c.OK, c.Reason = false, "/dev/kvm does not open ("+plainError(err)+"): guests run under TCG"
	}
	return c
}

func plainError(err error) string {
	var e *os.PathError
	if errors.As(err, &e) {
		return e.Err.Error()
	}
	return err.Error()
}

func addressesOf(h *netlink.Handle) (all []Address, err error) {
	links, err := whole(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	have, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range have {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			bits, _ := a.Mask.Size()
			all = append(all, Address{names[a.LinkIndex], netip.PrefixFrom(ip.Unmap(), bits)})
		}
	}
	return all, nil
}

func (l Look) lookBridge(h *netlink.Handle) Capability {
	c := Capability{Name: CapBridge, OK: true}
	if l.Bridge == "" {
		return c
	}
	br, err := h.LinkByName(l.Bridge)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		c.OK, c.Reason = false, "there is no "+l.Bridge
		c.Mend = "as root there run `ip link add " + l.Bridge + " type bridge && ip link set " + l.Bridge + " up`"
	case err != nil:
		c.OK, c.Reason = false, err.Error()
	case br.Type() != "bridge":
		c.OK, c.Reason = false, l.Bridge+" is a "+br.Type()+", and no bridge"
	case br.Attrs().OperState == netlink.OperDown && br.Attrs().RawFlags&unix.IFF_UP == 0:
		c.OK, c.Reason, c.Mend = false, l.Bridge+" is down", "as root there run `ip link set "+l.Bridge+" up`"
	}
	return c
}

// lookTAP finds a TAP that this user can open and that nobody has.
func (l Look) lookTAP(h *netlink.Handle, found Looked) (c Capability, free string) {
	c = Capability{Name: CapTUN, OK: true}
	if len(l.TAPs) == 0 {
		if !l.NeedTAP || found.Root {
			if l.NeedTAP {
				c = unableOrOK(c, openTUN())
			}
			return c, ""
		}
		bridge := l.Bridge
		if l.Overlay {
			c.OK, c.Reason = false, "only root can make an overlay, and "+found.User+" is not root there"
			c.Mend = "log in as root, or name a bridge and a tap instead of the overlay"
			return c, ""
		}
		c.OK, c.Reason = false, "only root can make a TAP, and "+found.User+" is not root there"
		c.Mend = mendTAP("tap0", found.User, bridge) + ", and write tap = [\"tap0\"]"
		return c, ""
	}
	var reasons []string
	for _, name := range l.TAPs {
		why, mend := l.tryTAP(h, name, found)
		if why == "" {
			return Capability{Name: CapTUN, OK: true}, name
		}
		reasons = append(reasons, why)
		c.Mend = mend
	}
	c.OK, c.Reason = false, strings.Join(reasons, "; ")
	return c, ""
}

func unableOrOK(c Capability, err error) Capability {
	if err != nil {
		return unable(c, err)
	}
	return c
}

func mendTAP(name, user, bridge string) string {
	made := fmt.Sprintf("as root there run `ip tuntap add %s mode tap user %s && ip link set %s up", name, user, name)
	if bridge != "" {
		made += " master " + bridge
	}
	return made + "`"
}

// tryTAP opens a TAP that is there as a QEMU does.
func (l Look) tryTAP(h *netlink.Handle, name string, found Looked) (why, mend string) {
	link, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return "there is no " + name, mendTAP(name, found.User, l.Bridge)
	}
	if err != nil {
		return err.Error(), ""
	}
	tap, ok := link.(*netlink.Tuntap)
	if !ok || tap.Mode != netlink.TUNTAP_MODE_TAP {
		return name + " is no TAP", "name a TAP"
	}
	if link.Attrs().RawFlags&unix.IFF_UP == 0 {
		return name + " is down", "as root there run `ip link set " + name + " up`"
	}
	switch master := link.Attrs().MasterIndex; {
	case master == 0:
		return name + " is a port of no bridge", "as root there run `ip link set " + name + " master BRIDGE`"
	case l.Bridge != "":
		if br, err := h.LinkByName(l.Bridge); err == nil && br.Attrs().Index != master {
			return name + " is no port of " + l.Bridge, "as root there run `ip link set " + name + " master " + l.Bridge + "`"
		}
	}
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		c := unable(Capability{}, noTUN(err))
		return c.Reason, c.Mend
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err.Error(), ""
	}
	req.SetUint16(uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR))
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); {
	case err == nil:
		return "", ""
	case errors.Is(err, unix.EBUSY):
		return name + " is in use", "end the QEMU that has it, or name another TAP"
	case errors.Is(err, unix.EPERM):
		return name + " is not " + found.User + "'s", "as root there run `ip tuntap del " + name + " mode tap`, then " +
			strings.TrimPrefix(mendTAP(name, found.User, l.Bridge), "as root there run ")
	case errors.Is(err, unix.EINVAL):
		return name + " has several queues", "make it without multi_queue"
	default:
		return name + ": " + err.Error(), ""
	}
}

// openTUN tells whether TAPs can be made.
func openTUN() error {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return noTUN(err)
	}
	return unix.Close(fd)
}
