package hostnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"qmigrate/hostnet/cpucap"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/netns"
)

// What Check looks at.
const (
	CapRoot           = "root"
	CapUserNamespaces = "user namespaces" // what stands in for root
	CapNamespaces     = "network namespaces"
	CapTUN            = "TUN"
	CapBridge         = "bridge"
	CapVeth           = "veth"
	CapTBF            = "TBF"
	CapHTB            = "HTB" // the other way to a rate
	CapNetem          = "netem"
	CapCPUCgroup      = "cgroup cpu"
	CapRawICMP        = "raw ICMP"
	CapPingSocket     = "ping socket" // the other way to ping
	CapUserfaultfd    = "userfaultfd"
)

// Capability is one thing that this machine and user can do, or not.
type Capability struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Optional bool   `json:"optional"` // a lab works without it, if with less; see Reason
	// not OK: what was found, and what it is for. OK: which kind, where there are several
	Reason string `json:"reason,omitempty"`
	Mend   string `json:"mend,omitempty"` // what to do about it, if anything can be done
}

// Capabilities is what Check found, in a fixed order.
type Capabilities []Capability

// Get finds one by name; the zero Capability, not OK, if it was not looked at.
func (c Capabilities) Get(name string) Capability {
	for _, one := range c {
		if one.Name == name {
			return one
		}
	}
	return Capability{Name: name, Reason: "not looked at"}
}

// Missing are those that a lab cannot do without and that are not there.
func (c Capabilities) Missing() Capabilities {
	var missing Capabilities
	for _, one := range c {
		if !one.OK && !one.Optional {
			missing = append(missing, one)
		}
	}
	return missing
}

// Check finds out what this machine and user can do for a lab by doing it in a namespace that is thrown away; nothing
// is left. Without root it asks a copy of this program in namespaces as Reexec makes them: see Main.
func Check(ctx context.Context) Capabilities {
	root := Capability{Name: CapRoot, OK: privileged() && !inUserNamespace(), Optional: true}
	users := Capability{Name: CapUserNamespaces, OK: true}
	err := startsInUserNamespace(ctx)
	if err != nil {
		users = unable(users, err)
	}
	if !root.OK {
		root.Reason = "not root: a lab runs in a user namespace instead, if it can be made; `lab up` and other users' " +
			"QEMUs need root"
		root.Mend = "run as root"
	}
	users.Optional = privileged()
	found := Capabilities{root, users}
	switch {
	case privileged():
		return append(found, probe()...)
	case err != nil:
		return append(found, unable(Capability{Name: CapNamespaces}, err))
	}
	var out bytes.Buffer
	cmd := inNewNamespaces([]string{checkFlag}, markCheck)
	cmd.Stdout = &out
	if err = cmd.Start(); err == nil {
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		stop()
	}
	var inside Capabilities
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &inside)
	}
	if err != nil {
		return append(found, unable(Capability{Name: CapNamespaces},
			fmt.Errorf("ask a copy of this program in a user namespace: %w", err)))
	}
	return append(found, inside...)
}

// answerCheck is the copy's side of Check.
func answerCheck(w io.Writer) int {
	found := probe()
	if err := privateRun(); err != nil {
		found = append(found, unable(Capability{Name: "private /run"}, noUserNamespaces(err)))
	}
	if err := json.NewEncoder(w).Encode(found); err != nil {
		return 1
	}
	return 0
}

// unable fills in why not.
func unable(c Capability, err error) Capability {
	c.OK, c.Reason = false, err.Error()
	if u := new(host.UnsupportedError); errors.As(err, &u) {
		c.Mend = u.Mend
		bare := *u
		bare.Mend = ""
		c.Reason = strings.TrimPrefix(bare.Error(), u.Feature+": ")
	}
	return c
}

// probe tries everything in a network namespace without a name, which goes with the last that is in it.
func probe() Capabilities {
	var found Capabilities
	add := func(c Capability, err error) {
		c.OK = err == nil
		if err != nil {
			purpose := c.Reason
			c = unable(c, err)
			if purpose != "" {
				c.Reason += ": " + purpose
			}
		} else {
			c.Reason, c.Mend = "", ""
		}
		found = append(found, c)
	}
	err := netns.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return noNamespaces(os.NewSyscallError("unshare", err))
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		add(Capability{Name: CapNamespaces}, nil)
		add(Capability{Name: CapTUN}, makeTAP("qmigtap", false))
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "qmigbr"
		add(Capability{Name: CapBridge}, unsupportedLink("bridge", "CONFIG_BRIDGE",
			h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})))
		attrs.Name = "qmigup"
		veth := netlink.NewVeth(attrs)
		veth.PeerName = "qmigpeer"
		vethErr := unsupportedLink("veth", "CONFIG_VETH", h.LinkAdd(veth))
		add(Capability{Name: CapVeth}, vethErr)
		if vethErr == nil {
			probeQdiscs(h, veth, add)
		}
		add(Capability{Name: CapRawICMP, Reason: "the observer cannot ping"}, openSocket(unix.SOCK_RAW))
		add(Capability{Name: CapPingSocket, Optional: true, Reason: "raw ICMP is used instead",
			Mend: "as root run `sysctl net.ipv4.ping_group_range='0 2147483647'`"}, openSocket(unix.SOCK_DGRAM))
		return nil
	})
	if err != nil {
		add(Capability{Name: CapNamespaces}, err)
	}
	kind, cgroupErr := cpucap.Probe()
	add(Capability{Name: CapCPUCgroup, Optional: true, Reason: "a guest's share of the CPU cannot be limited",
		Mend: "as root mount the controller, or have it delegated (systemd: Delegate=cpu)"}, cgroupErr)
	if cgroupErr == nil {
		found[len(found)-1].Reason = kind
	}
	add(Capability{Name: CapUserfaultfd, Optional: true, Reason: "post-copy does not work",
		Mend: "run as root, or as root run `sysctl vm.unprivileged_userfaultfd=1`"}, userfaultfd())
	return found
}

func probeQdiscs(h *netlink.Handle, l netlink.Link, add func(Capability, error)) {
	attrs := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: shaperHandle, Parent: netlink.HANDLE_ROOT}
	try := func(q netlink.Qdisc) error {
		err := h.QdiscAdd(q)
		if err == nil {
			return h.QdiscDel(q)
		}
		return err
	}
	const rate = 125_000_000
	tbfErr := try(&netlink.Tbf{QdiscAttrs: attrs, Rate: rate, Limit: queue(rate),
		Buffer: netlink.Xmittime(rate, burst(rate, 1500))})
	htbErr := try(netlink.NewHtb(attrs))
	netemErr := try(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{Latency: 1000}))
	other := func(name string, err error) string {
		if err != nil {
			return "a link cannot be given a rate"
		}
		return name + " is used instead"
	}
	add(Capability{Name: CapTBF, Optional: true, Reason: other("HTB", htbErr), Mend: "as root run `modprobe sch_tbf`"},
		tbfErr)
	add(Capability{Name: CapHTB, Optional: true, Reason: other("TBF", tbfErr), Mend: "as root run `modprobe sch_htb`"},
		htbErr)
	add(Capability{Name: CapNetem, Optional: true, Reason: "nothing here needs it",
		Mend: "as root run `modprobe sch_netem`"}, netemErr)
}

// openSocket opens an ICMP socket in the thread's namespace, and closes it.
func openSocket(kind int) error {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	return unix.Close(fd)
}

// userfaultfd opens one as QEMU's post-copy does: the device if there is one, else the system call, with faults
// from the kernel included.
func userfaultfd() error {
	if f, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0); err == nil {
		return f.Close()
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("userfaultfd", errno)
	}
	return unix.Close(int(fd))
}
