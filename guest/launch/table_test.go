package launch_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// files are what -readconfig reads.
func files(name string) ([]byte, error) {
	if name != "/etc/a.cfg" {
		return nil, os.ErrNotExist
	}
	return []byte("[chardev \"c\"]\n  backend = \"socket\"\n  path = \"/run/a/c\"\n  server = \"on\"\n"), nil
}

// Every rule does what it says with its example, when the source holds all that the example names.
func TestRules(t *testing.T) {
	for _, r := range launch.Rules() {
		t.Run(strings.TrimSpace(r.Option+" "+r.Kind+" "+r.Key), func(t *testing.T) {
			args := []string{"qemu", r.Option}
			if r.Example != "" {
				args = append(args, r.Example)
			}
			if r.Option == "-set" {
				args = append([]string{"qemu", "-chardev", "socket,id=c,path=/run/a/c,server=on"}, args[1:]...)
			}
			o := launch.Options{Dir: "/run/b", Machine: "pc-q35-7.2", ReadFile: files}
			line, err := launch.Destination(args, o)
			refused := (*launch.ArgumentError)(nil)
			if errors.As(err, &refused) != (err != nil) {
				t.Fatal(err)
			}
			mine := func() string { // without what every destination has
				if line == nil {
					return ""
				}
				words, _, _ := strings.Cut(strings.Join(line.Args, "\n"), "-incoming\ndefer")
				return strings.TrimSuffix(strings.TrimSuffix(words, "-msg\ntimestamp=on\n"), "-D\n/run/b/trace.log\n")
			}
			added := 7 // which every destination has
			if r.Option == "-D" || r.Option == "-msg" {
				added = 6
			}
			switch words := mine(); r.Does {
			case launch.Keep, launch.Disk:
				if err != nil || !strings.Contains(words, r.Example) || strings.Contains(words, "/run/b") {
					t.Errorf("want it kept: %q %v", words, err)
				}
			case launch.Move, launch.Listen:
				if err != nil || !strings.Contains(words, "/run/b/") || strings.Contains(words, r.Example) {
					t.Errorf("want it in the folder: %q %v", words, err)
				}
			case launch.Port:
				if err != nil || strings.Contains(words, r.Example) || len(line.Changes) < added {
					t.Errorf("want it off the port, and named: %q %v", words, err)
				}
			case launch.Later:
				if err != nil || len(line.Forwards) != 1 || strings.Contains(words, "hostfwd") ||
					!strings.HasPrefix(line.Forwards[0].Rule, line.Forwards[0].Address()+"-") {
					t.Errorf("want it later: %q %v", words, err)
				}
			case launch.Drop:
				named := line != nil && slices.ContainsFunc(line.Changes,
					func(c launch.Change) bool { return c.Option == r.Option && c.To == "" })
				if err != nil || !named || strings.Contains(words, r.Option) {
					t.Errorf("want it dropped, and named: %q %v", words, err)
				}
			case launch.Replace:
				if err != nil || len(line.Changes) <= added || strings.Contains("\n"+words, "\n"+r.Example+"\n") && r.Example != "" {
					t.Errorf("want another in its place: %q %v", words, err)
				}
			case launch.Refuse, launch.PortOnly, launch.Ask, launch.TAP:
				if err == nil || refused.Option != r.Option {
					t.Errorf("want it refused, and named: %q %v", words, err)
				}
			default:
				t.Errorf("what is %q?", r.Does)
			}
			// The words of --path, --port and --tap are taken, and on another network ports and interfaces are free.
			if o.Paths, o.Ports, o.TAPs = everyWord(r.Example); r.Does == launch.Ask || r.Does == launch.PortOnly || r.Does == launch.TAP {
				if line, err = launch.Destination(args, o); err != nil || strings.Contains(mine(), r.Example) {
					t.Errorf("want what is asked for: %q %v", mine(), err)
				}
			}
			if r.Does == launch.Port || r.Does == launch.PortOnly || r.Does == launch.Later || r.Does == launch.TAP {
				o = launch.Options{Dir: "/run/b", OtherNetwork: true}
				if line, err = launch.Destination(args, o); err != nil || !strings.Contains(strings.ReplaceAll(mine(), ",wait=off", ""), r.Example) {
					t.Errorf("want it kept on another network: %q %v", mine(), err)
				}
			}
		})
	}
}

// everyWord maps each path, port and interface of a value to another.
func everyWord(value string) (paths, ports, taps map[string]string) {
	paths, ports, taps = map[string]string{}, map[string]string{}, map[string]string{}
	for _, w := range regexp.MustCompile(`[^,=":@]+(:a)?`).FindAllString(value, -1) {
		if strings.HasPrefix(w, "/") {
			paths[w] = "/2" + strings.ReplaceAll(w, "/", "_")
		}
		if strings.Trim(w, "0123456789") == "" {
			ports[w] = "1" + w
		}
		taps[w] = "2" + w
	}
	return paths, ports, taps
}

// Every option that a QEMU names in its help is known, and takes a value where it says so.
func TestEveryOption(t *testing.T) {
	guesttest.EachQEMU(t, func(t *testing.T, bin string) {
		out, err := exec.CommandContext(t.Context(), bin, "-help").Output()
		if err != nil {
			t.Fatal(err)
		}
		// An option begins its line; one blank stands before its value, several before what it is.
		lines := regexp.MustCompile(`(?m)^--?([A-Za-z][\w-]*)(?:/-(\w+)| or -(\w+))?(.*)$`).FindAllStringSubmatch(string(out),
			-1)
		if len(lines) < 100 {
			t.Fatalf("only %d options in its help", len(lines))
		}
		for _, l := range lines {
			takes := regexp.MustCompile(`^ \S|^\[|^ +file +use `).MatchString(l[4])
			for _, name := range l[1:4] {
				if name == "" {
					continue
				}
				switch name { // whose lines are unlike the others
				case "M":
					takes = true
				case "async-teardown":
					takes = false
				}
				if known, value := launch.Known("-" + name); !known {
					t.Errorf("-%s is not known: %s", name, l[0])
				} else if takes != value {
					t.Errorf("-%s takes a value: %v, and we think %v: %s", name, takes, value, l[0])
				}
			}
		}
	})
}

// The manual's page is the table.
func TestPage(t *testing.T) {
	const page = "../../docs/launch.md"
	var b strings.Builder
	b.WriteString("# What `migrate --launch` does with each option\n\n" +
		"Written from guest/launch by `go test ./guest/launch -run TestPage -update`; the test fails where this page is out of date.\n\n" +
		"`--launch` starts a second QEMU from the command line of the first, on the same machine or [on another host](#on-another-host). Two QEMUs of one machine cannot have everything twice. This is each option of QEMU 7.2 to 11.1 that can open,\n" +
		"create or hold something, and what becomes of it. What the source holds is asked of the kernel: its listening sockets, its UDP ports, its socket paths and abstract names, the files that\n" +
		"it has open for writing or has locked. Ports and abstract names count within a network namespace. The kernel has no table of vsock, whose context numbers count\n" +
		"on the whole host: one is asked for by /dev/vhost-vsock, kept if nobody has it, and refused if somebody has it or it cannot be asked for. `-readconfig`\n" +
		"and `-set` are read first and count as the options that they stand for. An option that is not here, and not in the list at the end, passes and is named, unless it names something that the source holds; that is refused.\n" +
		"`-qmp`, `-monitor`, `-parallel`, `-debugcon`, `-qtest` and `-gdb` take all that `-serial` takes; `-nic` and `-net` all that `-netdev` takes.\n\n" +
		"The program is the file that the source runs (`/proc/PID/exe`, a dynamic linker looked through), in the source's working folder and with its environment. It is refused where the program has\n" +
		"been removed, and where there is no memory for a second guest. A program that has been replaced, as by an upgrade, is named with both versions.\n\n" +
		"The destination is always started as the source's user; root never runs another user's program as root. If qmigrate runs as root and the source does not, the destination gets the source's user,\n" +
		"group and supplementary groups, and no capability that the source cannot have. The new folder is made by that user, or by root and given to that user where only root can write. `-runas` is left\n" +
		"out; a file that only root may open is then refused by the destination's QEMU, before anything is changed.\n\n" +
		"If the source is in a chroot or a container (another root, or other mounts in which one of its files is another one), root starts the destination in the same root, mounts and process numbers, and in\n" +
		"the same network unless `--destination-host` says otherwise. Its program and all paths are those of there, also in `--path`. The folder of `--destination` is named as qmigrate sees it, and the source\n" +
		"must see it too: `unix:/srv/jail/tmp/b` for a chroot in /srv/jail, or `unix:/proc/PID/root/tmp/b`. The control group is qmigrate's. These are refused: another user namespace, a seccomp filter that\n" +
		"QEMU did not make itself (in a container: any), a label of a security module, a source with several user numbers, and a source that went to its root after its start (`-chroot`). Where qmigrate\n" +
		"does not run as root, the source must be its own user's and have its root.\n\n" +
		"A port of `hostfwd` moves in the moment after the guest: `hostfwd_remove` on the source, `hostfwd_add` on the destination. Connections through it end. Where that fails the record warns. Until they have moved, the folder has a list\n" +
		"of them, forwards.json: if qmigrate is killed in between, `--recover` with the same endpoints moves them once the guest is on the destination. Where that fails too, end the source, then give\n" +
		"the destination's monitor `hostfwd_add ID RULE`.\n\n" +
		"What `device_add` plugged in while the source ran becomes `-device` options with the source's ids, addresses and properties, behind options for what it uses and the command line lacks: `-netdev` (user,\n" +
		"tap), `-blockdev` or `-drive`, `-object` (memory-backend-ram, -memfd and -file, rng, iothread), `-chardev` (null, pty); memory and CPUs too. The rules below hold for these. What QEMU does not let be read is a warning:\n" +
		"`discard=` and `aio=` of a disk, `vhost=` of a TAP, most options of a user network. What cannot be read back is refused: sockets, other networks and character devices, secrets, disks behind a filter or on a\n" +
		"server. An option whose device was unplugged (`device_del`) is left out, and so is its backend where that is gone too; the devices that stay keep their addresses.\n\n" +
		"## On another host\n\n" +
		"`--destination ssh://HOST/FOLDER` or `lxc://NAME/FOLDER` names the host and the new folder there. The source may be on any host, too: its process is looked at where it runs. `--destination-host` is for\n" +
		"network namespaces of this machine. If both are on the same host, what is said above holds there. If they are on two hosts, these differ:\n\n" +
		"| what | on another host |\n|---|---|\n" +
		"| ports, interfaces, devices, sockets of servers | the same as the source's, because what the source holds is not in their way. Each must be free, or be there; `--port`, `--tap` and `--path` name others |\n" +
		"| files that QEMU reads | must be there, if the name is absolute; `--path` names others |\n" +
		"| disks | must be the source's own file, by storage that both hosts have at the same path. To find out, qmigrate makes a file beside the image on one host, looks for it on the other, and removes it. Another file is refused: give it " +
		"by `--path OLD=NEW` and copy it with `--mirror`. A copy of what is only read is a warning. So is an image beside which no file can be made, if its size and its first MiB are the same |\n" +
		"| the program | the same path, and the same version of QEMU; or `--destination-qemu`, a path there, or a version, which is sent there if this machine has it |\n" +
		"| user, groups, capabilities | those of the helper, which are your login's there. It is said where the numbers differ |\n" +
		"| environment | the helper's, and of the source's what names QEMU's parts (`LD_...`, `QEMU_...`) |\n" +
		"| working folder | the same path if there is such a folder, else / |\n" +
		"| memory, limits | those of that host |\n\n" +
		"Whatever is missing is named in one go, before anything is started: a line each. The destination listens at the address by which its host was reached, or at `--listen`.\n\n" +
		"A destination that may hold a guest stays when the channel to its host closes. One whose monitor says that it only waits is ended by the helper, and its folder removed; one that does not answer\n" +
		"is left alone, and the next connection names it.\n\n" +
		"## The options\n\n" +
		"| option | of | key | what it has | what becomes of it |\n|---|---|---|---|---|\n")
	for _, r := range launch.Rules() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", r.Option, code(r.Kind), code(r.Key), r.Has, r.Does)
	}
	fmt.Fprintf(&b, "\nThese hold nothing and stay: `%s`.\n", strings.Join(launch.Plain(), "`, `"))
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if is, err := os.ReadFile(page); err != nil || string(is) != b.String() {
		t.Errorf("%s is out of date (%v): go test ./guest/launch -run TestPage -update", page, err)
	}
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// A context number stays where the kernel says that nobody has it, and only there.
func TestContextNumber(t *testing.T) {
	for _, c := range []struct {
		device string
		answer error
		silent bool
		want   string // in the refusal
	}{
		{device: "vhost-vsock-pci,guest-cid=3"},
		{device: `{"driver":"vhost-vsock-pci","guest-cid":3}`},
		{device: "vhost-vsock-pci,guest-cid=3", answer: unix.EADDRINUSE, want: "context number 3 is in use on this host"},
		{device: "vhost-vsock-pci,guest-cid=3", answer: os.ErrNotExist, want: "context number, one on a host"},
		{device: "vhost-vsock-pci,guest-cid=3", silent: true, want: "context number, one on a host"},
		{device: "vhost-vsock-pci,guest-cid=three", want: "context number, one on a host"},
	} {
		o := launch.Options{Dir: "/run/b", AskCID: func(cid uint64) error {
			if cid != 3 {
				t.Errorf("asked for %d", cid)
			}
			return c.answer
		}}
		if c.silent {
			o.AskCID = nil
		}
		line, err := launch.Destination([]string{"qemu", "-device", c.device}, o)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) ||
			err == nil && !slices.Contains(line.Args, c.device) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := launch.AskCID(t.Context(), host.Local())(2); err == nil { // the host's own: no guest gets it
		t.Error("the kernel gave the host's number to a guest")
	}
}

// What counts is what the source holds, not what its words name.
func TestHeldCounts(t *testing.T) {
	held := &launch.Held{
		Sockets: []launch.Socket{{Network: "tcp", Address: "[::]:5901", Listening: true},
			{Network: "udp", Address: "0.0.0.0:5353"},
			{Network: "unix", Address: "/run/a/own", Listening: true}, {Network: "unix", Address: "@name", Listening: true}},
		Files: []launch.File{{Path: "/var/log/own"}},
	}
	for _, c := range []struct {
		args  []string
		ports map[string]string
		paths map[string]string
		want  string // in the command line; "" is a refusal
	}{
		{args: []string{"-vnc", ":1"}, want: "unix:/run/b/vnc.sock"},
		{args: []string{"-vnc", ":2"}, want: ":2"},
		{args: []string{"-vnc", ":2,websocket=5901"}, want: "unix:/run/b/vnc.sock"},
		{args: []string{"-spice", "port=5902,tls-port=5901"}, want: "unix=on,addr=/run/b/spice.sock"},
		{args: []string{"-spice", "port=5902"}, want: "port=5902"},
		{args: []string{"-serial", "tcp::5353,server=on"}, want: "tcp::5353,server=on,wait=off"},
		{args: []string{"-netdev", "user,id=u,hostfwd=udp::5353-:53"}, want: "user,id=u"},
		{args: []string{"-netdev", "user,id=u,hostfwd=tcp::5353-:53"}, want: "user,id=u,hostfwd=tcp::5353-:53"},
		{args: []string{"-netdev", "user,id=u,hostfwd=udp::5353-:53"}, ports: map[string]string{"5353": "5354"}, want: "user,id=u,hostfwd=udp::5354-:53"},
		{args: []string{"-netdev", "user,id=u,hostfwd=tcp::22-:22"}, ports: map[string]string{"22": "5901"}},
		{args: []string{"-netdev", "socket,id=s,listen=:5901"}},
		{args: []string{"-netdev", "socket,id=s,listen=:5901"}, ports: map[string]string{"5901": "5902"}, want: "socket,id=s,listen=:5902"},
		{args: []string{"-netdev", "socket,id=s,listen=:5353"}, want: "socket,id=s,listen=:5353"},
		{args: []string{"-chardev", "socket,id=c,path=/run/a/x,server=on"}, paths: map[string]string{"/run/a/x": "/run/a/own"}},
		{args: []string{"-pidfile", "/run/a/pid"}, paths: map[string]string{"/run/a/pid": "/var/log/own"}},
		{args: []string{"-new", "listen=unix:/run/a/own"}},
		{args: []string{"-new", "/var/log/own"}},
		{args: []string{"-new", "a=b,name=name"}},
		{args: []string{"-new", "port=5901"}},
		{args: []string{"-new", "size=5901,path=/run/a/other"}, want: "size=5901,path=/run/a/other"},
		{args: []string{"-device", "e1000,mac=52:54:00:12:59:01,addr=5901"}, want: "e1000,mac=52:54:00:12:59:01,addr=5901"},
		{args: []string{"-device", "new-device,socket=/run/a/own"}},
	} {
		line, err := launch.Destination(append([]string{"qemu"}, c.args...),
			launch.Options{Dir: "/run/b", Held: held, Ports: c.ports, Paths: c.paths})
		refused := (*launch.ArgumentError)(nil)
		switch {
		case c.want == "" && !errors.As(err, &refused):
			t.Errorf("%q %v %v is not refused: %v %v", c.args, c.ports, c.paths, line, err)
		case c.want != "" && (err != nil || !strings.HasSuffix(line.Args[2], c.want)):
			t.Errorf("%q %v: %v %v", c.args, c.ports, line, err)
		}
	}
}
