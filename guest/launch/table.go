package launch

import (
	"maps"
	"slices"
	"strings"
)

// Rule is what one word of QEMU's command line has of its host, and what becomes of it in the destination's.
type Rule struct {
	Option string // "-chardev"
	// backend, type or driver that it is about, with " server" if it listens; a final * stands for any rest; "" for any
	Kind    string
	Key     string // "" for the whole value
	Has     string // "socket, listened on"
	Does    Action
	Example string // a value that has it
}

// Action is what becomes of a word.
type Action string

// What becomes of a word that has something of the host.
const (
	Keep   Action = "kept; `--path OLD=NEW` names another"
	Disk   Action = "the file and format that the source has there now, or refused; `--path OLD=NEW` names another"
	Move   Action = "moved into the new folder, or to what `--path OLD=NEW` names"
	Listen Action = "moved into the new folder, or to what `--path OLD=NEW` names; nobody is waited for"
	Port   Action = "kept where the source does not hold the port; `--port OLD=NEW` names another; else a socket in " +
		"the new folder"
	PortOnly Action = "kept where the source does not hold the port; `--port OLD=NEW` names another; else refused"
	Later    Action = "kept where the source does not hold the port; `--port OLD=NEW` names another; else moved when " +
		"the guest has moved"
	Ask     Action = "refused, unless `--path OLD=NEW` names another"
	TAP     Action = "kept on another network; `--tap OLD=NEW` names another; else refused"
	Drop    Action = "dropped"
	Refuse  Action = "refused"
	Replace Action = "replaced"
)

// Rules are all options of QEMU 7.2 to 11.1 that open, create or hold something, in the order of QEMU's help.
// Those that hold nothing are in plain and flags. Source: -help and qapi of 7.2, 10.0 and 11.1.
func Rules() []Rule { return rules }

var rules = []Rule{
	{"-machine", "", "type", "an alias of a machine type", Replace, "q35"},
	{"-set", "", "", "a value of another option", Replace, "chardev.c.path=/run/a/c2"},
	{"-readconfig", "", "", "options in a file", Replace, "/etc/a.cfg"},
	{"-writeconfig", "", "", "file, created", Drop, "/tmp/a.cfg"},
	{"-add-fd", "", "", "descriptor of another program", Refuse, "fd=3,set=2"},
	{"-mem-path", "", "", "file behind private memory", Keep, "/dev/hugepages"},
	{"-audio", "wav", "path", "file, created", Move, "wav,path=/tmp/a.wav"},
	{"-audiodev", "wav", "path", "file, created", Move, "wav,id=w,path=/tmp/a.wav"},
	{"-audiodev", "oss", "out.dev", "device that several may open", Keep, "oss,id=w,out.dev=/dev/dsp"},
	{"-device", "vfio-*", "", "device of the host", Refuse, "vfio-pci,host=0000:01:00.0"},
	{"-device", "usb-host", "", "device of the host", Refuse, "usb-host,vendorid=1133"},
	{"-device", "u2f-passthru", "", "device of the host", Refuse, "u2f-passthru,hidraw=/dev/hidraw0"},
	{"-device", vsock, "", "context number, one on a host", Refuse, "vhost-vsock-pci,guest-cid=3"},
	{"-device", "vhost-scsi-*", "", "target of the host", Refuse, "vhost-scsi-pci,wwpn=naa.5001405324af0985"},
	{"-device", "vhost-vdpa-device*", "vhostdev", "device of the host", Ask,
		"vhost-vdpa-device-pci,vhostdev=/dev/vhost-vdpa-0"},
	{"-device", "xen-pci-passthrough", "", "device of the host", Refuse, "xen-pci-passthrough,hostaddr=0000:01:00.0"},
	{"-device", "canokey", "file", "file, written", Ask, "canokey,file=/run/a/key"},
	{"-device", "u2f-emulated", "dir", "files, written", Ask, "u2f-emulated,dir=/run/a/u2f"},
	{"-device", "usb-mtp", "rootdir", "folder that several may use", Keep, "usb-mtp,rootdir=/srv"},
	{"-device", "loader", "file", "file, read", Keep, "loader,file=/srv/blob"},
	{"-device", "", "romfile", "file, read", Keep, "e1000,romfile=/srv/rom"},
	{"-fda", "", "", "disk", Disk, "/srv/a.img"},
	{"-fdb", "", "", "disk", Disk, "/srv/a.img"},
	{"-hda", "", "", "disk", Disk, "/srv/a.img"},
	{"-hdb", "", "", "disk", Disk, "/srv/a.img"},
	{"-hdc", "", "", "disk", Disk, "/srv/a.img"},
	{"-hdd", "", "", "disk", Disk, "/srv/a.img"},
	{"-cdrom", "", "", "disk", Disk, "/srv/a.iso"},
	{"-blockdev", "nvme", "", "device of the host", Refuse, "nvme,device=0000:01:00.0,namespace=1,node-name=n"},
	{"-blockdev", "virtio-blk-vhost-vdpa", "path", "device of the host", Ask,
		"virtio-blk-vhost-vdpa,path=/dev/vhost-vdpa-0,node-name=n"},
	{"-blockdev", "virtio-blk-vhost-user", "path", "socket of a server", Ask,
		"virtio-blk-vhost-user,path=/run/a/vub,node-name=n"},
	{"-blockdev", "", "filename", "disk", Disk, `{"driver":"file","filename":"/srv/a.img","node-name":"n"}`},
	{"-drive", "", "snapshot", "temporary image of the source's", Refuse, "file=/srv/a.img,snapshot=on"},
	{"-drive", "", "file", "disk", Disk, "file=/srv/a.img,if=virtio"},
	{"-mtdblock", "", "", "disk", Disk, "/srv/a.img"},
	{"-sd", "", "", "disk", Disk, "/srv/a.img"},
	{"-snapshot", "", "", "temporary images of the source's", Refuse, ""},
	{"-fsdev", "local", "path", "folder that several may use", Keep, "local,id=f,path=/srv,security_model=none"},
	{"-fsdev", "proxy", "socket", "socket of a server", Ask, "proxy,id=f,socket=/run/a/9p"},
	{"-virtfs", "local", "path", "folder that several may use", Keep, "local,path=/srv,mount_tag=t,security_model=none"},
	{"-virtfs", "proxy", "socket", "socket of a server", Ask, "proxy,socket=/run/a/9p,mount_tag=t"},
	{"-display", "curses", "", "terminal", Replace, "curses"},
	{"-curses", "", "", "terminal", Replace, ""},
	{"-display", "spice-app", "", "socket, listened on, in the user's runtime folder", Replace, "spice-app,gl=on"},
	{"-display", "vnc", "vnc", "port, listened on", Port, "vnc=:1"},
	{"-vnc", "", "websocket", "port, listened on", Port, "127.0.0.1:1,websocket=5701"},
	{"-vnc", "", "vnc", "port or socket, listened on", Port, ":1,password=on"},
	{"-spice", "", "port", "port, listened on", Port, "port=5900,disable-ticketing=on"},
	{"-spice", "", "tls-port", "port, listened on", Port, "tls-port=5901,x509-dir=/etc/pki"},
	{"-spice", "unix", "addr", "socket, listened on", Listen, "unix=on,addr=/run/a/spice"},
	{"-netdev", "user", "hostfwd", "port, listened on", Later, "user,id=u,hostfwd=tcp:127.0.0.1:2222-:22"},
	{"-netdev", "user", "guestfwd", "what the character device behind it has", Replace,
		"user,id=u,guestfwd=tcp:10.0.2.100:80-file:/tmp/web"},
	{"-netdev", "user", "smb", "folder that several may use", Keep, "user,id=u,smb=/srv"},
	{"-netdev", "user", "tftp", "folder, read", Keep, "user,id=u,tftp=/srv"},
	{"-netdev", "passt", "tcp-ports", "ports, listened on", PortOnly, "passt,id=u,tcp-ports=2222:22"},
	{"-netdev", "passt", "udp-ports", "ports, listened on", PortOnly, "passt,id=u,udp-ports=5353:53"},
	{"-netdev", "tap", "ifname", "interface", TAP, "tap,id=t,ifname=tap0,script=no"},
	{"-netdev", "l2tpv3", "srcport", "UDP port", PortOnly,
		"l2tpv3,id=l,src=10.0.0.1,dst=10.0.0.2,udp=on,srcport=1701,dstport=1701,txsession=1"},
	{"-netdev", "socket", "listen", "port, listened on", PortOnly, "socket,id=s,listen=:9000"},
	{"-netdev", "socket", "mcast", "group that several may be in", Keep, "socket,id=s,mcast=230.0.0.1:9000"},
	{"-netdev", "socket", "localaddr", "UDP port", PortOnly, "socket,id=s,udp=10.0.0.2:9000,localaddr=10.0.0.1:9001"},
	{"-netdev", "stream server", "addr.path", "socket, listened on", Listen,
		"stream,id=s,server=on,addr.type=unix,addr.path=/run/a/net"},
	{"-netdev", "stream server", "addr.port", "port, listened on", PortOnly,
		"stream,id=s,server=on,addr.type=inet,addr.host=::,addr.port=9000"},
	{"-netdev", "stream", "addr.path", "socket of a server", Ask, "stream,id=s,addr.type=unix,addr.path=/run/a/switch"},
	{"-netdev", "dgram", "local.path", "socket, bound", Listen, "dgram,id=s,local.type=unix,local.path=/run/a/dgram"},
	{"-netdev", "dgram", "local.port", "UDP port", PortOnly, "dgram,id=s,local.type=inet,local.host=::,local.port=9000"},
	{"-netdev", "vde", "port", "port of a switch", Refuse, "vde,id=v,sock=/run/vde,port=3"},
	{"-netdev", "netmap", "ifname", "interface", TAP, "netmap,id=n,ifname=vale0:a"},
	{"-netdev", "af-xdp", "ifname", "queues of an interface", TAP, "af-xdp,id=x,ifname=eth0"},
	{"-netdev", "vhost-vdpa", "vhostdev", "device of the host", Ask, "vhost-vdpa,id=v,vhostdev=/dev/vhost-vdpa-0"},
	{"-nic", "user", "hostfwd", "port, listened on", Later, "user,hostfwd=tcp::8080-:80"},
	{"-net", "user", "hostfwd", "port, listened on", Later, "user,hostfwd=udp::5353-:53"},
	{"-net", "tap", "ifname", "interface", TAP, "tap,ifname=tap0"},
	{"-chardev", "", "logfile", "file, created", Move, "null,id=c,logfile=/var/log/c"},
	{"-chardev", "socket server", "path", "socket, listened on", Listen, "socket,id=c,path=/run/a/c,server=on,wait=on"},
	{"-chardev", "socket server", "port", "port, listened on", Port,
		"socket,id=c,host=0.0.0.0,port=4000,server=on,telnet=on"},
	{"-chardev", "socket", "path", "socket of a server", Ask, "socket,id=c,path=/run/a/vhost"},
	{"-chardev", "udp", "localport", "UDP port", PortOnly, "udp,id=c,host=10.0.0.1,port=5,localport=6"},
	{"-chardev", "file", "path", "file, created", Move, "file,id=c,path=/var/log/c"},
	{"-chardev", "file", "input-path", "file, read", Keep, "file,id=c,input-path=/srv/in"},
	{"-chardev", "pty", "path", "link, created", Move, "pty,id=c,path=/run/a/pty"},
	{"-chardev", "pipe", "path", "pipe", Ask, "pipe,id=c,path=/run/a/pipe"},
	{"-chardev", "serial", "path", "device of the host", Ask, "serial,id=c,path=/dev/ttyS0"},
	{"-chardev", "tty", "path", "device of the host", Ask, "tty,id=c,path=/dev/ttyS0"},
	{"-chardev", "parallel", "path", "device of the host", Ask, "parallel,id=c,path=/dev/parport0"},
	{"-chardev", "parport", "path", "device of the host", Ask, "parport,id=c,path=/dev/parport0"},
	{"-tpmdev", "passthrough", "", "device of the host", Refuse, "passthrough,id=t"},
	{"-bios", "", "", "file, read", Keep, "/srv/bios"},
	{"-pflash", "", "", "disk", Disk, "/srv/vars.fd"},
	{"-kernel", "", "", "file, read", Keep, "/boot/vmlinuz"},
	{"-shim", "", "", "file, read", Keep, "/boot/shim.efi"},
	{"-initrd", "", "", "file, read", Keep, "/boot/initrd"},
	{"-dtb", "", "", "file, read", Keep, "/boot/dtb"},
	{"-fw_cfg", "", "file", "file, read", Keep, "name=opt/a,file=/srv/a"},
	{"-acpitable", "", "file", "file, read", Keep, "file=/srv/table"},
	{"-smbios", "", "file", "file, read", Keep, "file=/srv/smbios"},
	{"-option-rom", "", "", "file, read", Keep, "/srv/rom"},
	{"-L", "", "", "folder, read", Keep, "/usr/share/qemu"},
	{"-serial", "unix server", "", "socket, listened on", Listen, "unix:/run/a/serial,server=on"},
	{"-serial", "unix", "", "socket of a server", Ask, "unix:/run/a/serial"},
	{"-serial", "tcp server", "", "port, listened on", Port, "tcp::4000,server=on"},
	{"-serial", "udp", "", "UDP port", PortOnly, "udp:10.0.0.1:5000@0.0.0.0:5001"},
	{"-serial", "file", "", "file, created", Move, "file:/var/log/serial"},
	{"-serial", "pipe", "", "pipe", Ask, "pipe:/run/a/pipe"},
	{"-serial", "/dev", "", "device of the host", Ask, "/dev/ttyS0"},
	{"-parallel", "/dev", "", "device of the host, and as -serial", Ask, "/dev/parport0"},
	{"-monitor", "unix server", "", "socket, listened on, and as -serial", Listen, "mon:unix:/run/a/mon,server,nowait"},
	{"-qmp", "unix server", "", "socket, listened on, and as -serial", Listen, "unix:/run/a/qmp,server=on"},
	{"-qmp-pretty", "unix server", "", "socket, listened on, and as -serial", Listen, "unix:/run/a/qmp,server=on"},
	{"-debugcon", "file", "", "file, created, and as -serial", Move, "file:/var/log/debug"},
	{"-qtest", "unix server", "", "socket, listened on, and as -serial", Listen, "unix:/run/a/qtest,server=on"},
	{"-gdb", "unix server", "", "socket, listened on, and as -serial", Listen, "unix:/run/a/gdb,server=on"},
	{"-gdb", "tcp", "", "port, listened on", Port, "tcp::1234"},
	{"-s", "", "", "port 1234, listened on", Drop, ""},
	{"-pidfile", "", "", "file, created", Move, "/run/a/pid"},
	{"-D", "", "", "file of trace lines and -d, created: trace.log in the new folder; moved there if its name has a %",
		Replace, "/var/log/a"},
	{"-msg", "", "timestamp", "no file; trace lines need it on to be placed in time", Replace, "timestamp=off"},
	{"-qtest-log", "", "", "file, created", Move, "/var/log/qtest"},
	{"-trace", "", "file", "file, created", Move, "events=/srv/events,file=/var/log/trace"},
	{"-trace", "", "events", "file, read", Keep, "events=/srv/events"},
	{"-plugin", "", "file", "file, read", Keep, "file=/srv/plugin.so"},
	{"-dump-vmstate", "", "", "file, created", Drop, "/tmp/vmstate"},
	{"-icount", "", "rr", "a recording of the source's", Refuse, "shift=7,rr=record,rrfile=/tmp/rr"},
	{"-incoming", "", "", "how its process began", Drop, "tcp:0:4444"},
	{"-loadvm", "", "", "how its process began", Drop, "snap"},
	{"-preconfig", "", "", "how its process began", Drop, ""},
	{"-daemonize", "", "", "how its process began", Drop, ""},
	{"-run-with", "", "exit-with-parent", "its own parent", Drop, "exit-with-parent=on"},
	{"-run-with", "", "user", becomes, Drop, "user=nobody"},
	{"-run-with", "", "chroot", goes, Refuse, "chroot=/srv/empty"},
	{"-runas", "", "", becomes, Drop, "nobody"},
	{"-chroot", "", "", goes, Refuse, "/srv/empty"},
	{"-object", "memory-backend-file", "mem-path", "file behind memory that is shared", Ask,
		"memory-backend-file,id=m,size=1G,share=on,mem-path=/dev/shm/a"},
	{"-object", "filter-dump", "file", "file, created", Move, "filter-dump,id=d,netdev=n,file=/tmp/n.pcap"},
	{"-object", "input-linux", "evdev", "device of the host", Ask, "input-linux,id=i,evdev=/dev/input/event0"},
	{"-object", "x-vfio-user-server", "socket.path", "socket, listened on", Listen,
		"x-vfio-user-server,id=v,type=unix,socket.path=/run/a/vfio,device=d"},
	{"-object", "rng-random", "filename", "device that several may open", Keep, "rng-random,id=r,filename=/dev/urandom"},
	{"-object", "secret", "file", "file, read", Keep, "secret,id=s,file=/etc/secret"},
	{"-object", "tls-creds-*", "dir", "folder, read", Keep, "tls-creds-x509,id=t,dir=/etc/pki,endpoint=server"},
	{"-object", "pr-manager-helper", "path", "socket of a server for many", Keep, "pr-manager-helper,id=p,path=/run/pr"},
}

const (
	vsock   = "vhost-vsock-*"
	becomes = "the user that it becomes, as which the destination is started"
	goes    = "root that it goes to when it has opened its files"
)

// flags are the options without a value. Source: -help and qemu-options.hx of 7.2, 10.0 and 11.1.
var flags = words(`-h -help -version -S -s -daemonize -snapshot -nodefaults -no-user-config -nographic -curses
	-full-screen
	-alt-grab -ctrl-grab -no-quit -sdl -portrait -usb -no-acpi -no-hpet -no-fd-bootchk -win2k-hack -enable-kvm -no-reboot
	-no-shutdown -only-migratable -preconfig -singlestep -mem-prealloc -semihosting -xen-attach -xen-domid-restrict
	-enable-sync-profile -nodefconfig -old-param -async-teardown -perfmap -jitdump -audio-help -enable-fips`)

// plain are the options with a value that hold nothing: sizes, names and texts for the guest.
var plain = words(`-M -cpu -accel -smp -numa -boot -m -k -name -uuid -append -iscsi -usbdevice -vga -rotate -nic -net
	-mon -compat
	-overcommit -d -dfilter -seed -xen-domid -action -rtc -watchdog -watchdog-action -echr -sandbox -msg -g
	-semihosting-config -prom-env -soundhw -global -id`)

func words(s string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(s) {
		m[w] = true
	}
	return m
}

// Plain are the options that hold nothing, sorted.
func Plain() []string {
	all := slices.AppendSeq(slices.Collect(maps.Keys(plain)), maps.Keys(flags))
	all = slices.DeleteFunc(all, func(o string) bool { r, ruled := ruleFor(o, nil, ""); return ruled && r.Option == o })
	return slices.Sorted(slices.Values(all))
}

// Known reports whether an option is one of QEMU's that we know, and whether it takes a value.
func Known(option string) (ok, value bool) { return known(option), !flags[option] }

// known reports whether an option is one of QEMU's that we know.
func known(option string) bool {
	if flags[option] || plain[option] {
		return true
	}
	for _, r := range rules {
		if r.Option == option {
			return true
		}
	}
	return false
}

// ruleFor finds what is known of a key of an option.
func ruleFor(option string, kinds []string, key string) (Rule, bool) {
	if option == "-nic" || option == "-net" {
		option = "-netdev"
	}
	for _, r := range rules {
		if r.Option == option && r.Key == key && r.about(kinds) {
			return r, true
		}
	}
	return Rule{}, false
}

func (r Rule) about(kinds []string) bool {
	for _, k := range kinds {
		if stem, ok := strings.CutSuffix(r.Kind, "*"); ok && strings.HasPrefix(k, stem) || k == r.Kind {
			return true
		}
	}
	return r.Kind == ""
}
