package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"qmigrate/guest/guesttest"
	"qmigrate/qmp"
)

// pluggedInto is what a QEMU has of -device and device_add, its memory and CPUs, its disks, and the ports that lead to
// its guest.
func pluggedInto(execute func(command string, arguments, answer any)) string {
	var all []string
	for _, path := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		var children []struct{ Name, Type string }
		execute("qom-list", map[string]string{"path": path}, &children)
		for _, c := range children {
			if strings.HasPrefix(c.Name, "device[") { // numbered anew
				c.Name = ""
			}
			all = append(all, strings.TrimSpace(c.Name+" "+c.Type))
		}
	}
	var dimms []struct {
		Data struct{ Size, Addr, Slot int64 }
	}
	execute("query-memory-devices", nil, &dimms)
	for _, d := range dimms {
		all = append(all, fmt.Sprint("memory ", d.Data))
	}
	var cpus []qmp.CPUSlot
	execute("query-hotpluggable-cpus", nil, &cpus)
	for _, c := range cpus {
		all = append(all, fmt.Sprint("CPU ", c.Place, c.Path != ""))
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	execute("query-named-block-nodes", nil, &nodes)
	for _, n := range nodes {
		if !strings.HasPrefix(n.Name, "#") { // QEMU's own names
			all = append(all, n.Name+" node")
		}
	}
	var ports string
	execute("human-monitor-command", map[string]string{"command-line": "info usernet"}, &ports)
	for line := range strings.Lines(ports) {
		if f := strings.Fields(line); len(f) > 5 && strings.HasSuffix(f[0], "[HOST_FORWARD]") {
			all = append(all, fmt.Sprint(f[0], f[2:6]))
		}
	}
	all = append(all, strings.Split(present(execute), "\n")...)
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// What was plugged in and out while the source ran is so on a destination that is launched, or nothing is started.
func TestLaunchPlugged(t *testing.T) {
	const board = "-m slots=2,maxmem=1G -smp 1,sockets=2,maxcpus=2 -device qemu-xhci,id=usb,p2=8 -device pcie-root-port,id=p1,chassis=1 " +
		"-device pcie-root-port,id=p2,chassis=2 -device pcie-root-port,id=p3,chassis=3 -device pcie-root-port,id=p4,chassis=4 "
	for _, c := range []struct {
		name, words string
		steps       []string // commands with their arguments; wait is until a disk is gone
		gone, want  string   // what the destination has to lack and to have
		refused     string
	}{
		{name: "in", words: "-device usb-tablet", want: "hot child<virtio-net-pci>", steps: []string{
			`netdev_add {"type":"user","id":"n","hostfwd":[{"str":"tcp:127.0.0.1:0-:22"}]}`,
			`device_add {"driver":"virtio-net-pci","id":"hot","netdev":"n","bus":"p1","mac":"52:54:00:00:00:09"}`,
			`blockdev-add {"driver":"raw","node-name":"d","file":{"driver":"file","filename":"DIR/d"}}`,
			`device_add {"driver":"virtio-blk-pci","drive":"d","bus":"p2","serial":"abc"}`,
			`object-add {"qom-type":"memory-backend-memfd","id":"m","size":134217728}`,
			`device_add {"driver":"pc-dimm","id":"dimm","memdev":"m"}`,
			`device_add {"driver":"qemu64-x86_64-cpu","id":"cpu","socket-id":1,"core-id":0,"thread-id":0}`,
			`object-add {"qom-type":"iothread","id":"io"}`,
			`device_add {"driver":"virtio-scsi-pci","id":"a-bus","bus":"p3","iothread":"io"}`,
			`blockdev-add {"driver":"file","node-name":"e","filename":"DIR/e","read-only":true}`,
			`device_add {"driver":"scsi-hd","id":"a","drive":"e","bus":"a-bus.0","lun":3}`,
			`object-add {"qom-type":"rng-random","id":"r","filename":"/dev/urandom"}`,
			`device_add {"driver":"virtio-rng-pci","id":"rng","bus":"p4","rng":"r"}`,
			`device_add {"driver":"usb-hub","id":"hub"}`,
			`device_add {"driver":"usb-tablet","id":"far","port":"2.3"}`,
			`device_add {"driver":"usb-tablet"}`,
			`human-monitor-command {"command-line":"drive_add 0 if=none,id=old,file=DIR/f,format=raw"}`,
			`device_add {"driver":"usb-storage","id":"stick","drive":"old"}`,
		}},
		{name: "out", words: "-blockdev file,node-name=f,filename=DIR/d -blockdev raw,node-name=d,file=f -device virtio-scsi-pci,id=hba -device scsi-hd,id=disk,drive=d,bus=hba.0 -device usb-tablet,id=t " +
			"-netdev user,id=n -device usb-net,id=card,netdev=n -device usb-mouse -device usb-kbd",
			gone: "card disk child<usb-mouse> d f", want: "t child<usb-kbd>", steps: []string{
				`device_del {"id":"disk"}`, "wait DIR/d", `blockdev-del {"node-name":"d"}`, `blockdev-del {"node-name":"f"}`, `device_del {"id":"card"}`, `netdev_del {"id":"n"}`,
				`device_del {"id":"t"}`, `device_del {"id":"/machine/peripheral-anon/device[2]"}`,
				`device_add {"driver":"usb-kbd","id":"t"}`,
			}},
		{name: "socket", refused: "character device that was made while the source ran (disconnected:unix:", steps: []string{
			`device_add {"driver":"virtio-serial-pci","id":"ports","bus":"p1"}`,
			`chardev-add {"id":"c","backend":{"type":"socket","data":{"server":true,"wait":false,"addr":{"type":"unix","data":{"path":"DIR/s"}}}}}`,
			`device_add {"driver":"virtserialport","id":"hot","bus":"ports.0","chardev":"c"}`,
		}},
		{name: "network", refused: "network backend of type socket", steps: []string{
			`netdev_add {"type":"socket","id":"s","udp":"127.0.0.1:9","localaddr":"127.0.0.1:0"}`,
			`device_add {"driver":"virtio-net-pci","id":"hot","bus":"p1","netdev":"s"}`,
		}},
		{name: "host", refused: "device of the host, which cannot be had twice", steps: []string{
			`device_add {"driver":"usb-host","id":"hot","vendorid":65534,"productid":65534}`,
		}},
		{name: "layer", words: "-blockdev file,node-name=f,filename=DIR/d -blockdev raw,node-name=d,file=f",
			refused: "a layer over d, which another option names", steps: []string{
				`device_add {"driver":"virtio-blk-pci","id":"hot","drive":"d","bus":"p1"}`,
				`blockdev-snapshot-sync {"node-name":"d","snapshot-node-name":"d2","snapshot-file":"DIR/d2"}`,
			}},
		{name: "port", words: "-device qemu-xhci,id=full,p2=1,p3=1", refused: "usb port 1.1 (bus full.0) not found",
			steps: []string{
				`device_add {"driver":"usb-tablet","id":"hot","bus":"full.0"}`, // QEMU makes a hub for it
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			guesttest.EachQEMU(t, func(t *testing.T, qemu string) {
				dir := guesttest.Dir(t)
				images(t, dir, "d", "e", "f")
				execute := diskVM(t, qemu, dir, "a", false, board+c.words)
				for _, s := range c.steps {
					command, arguments, _ := strings.Cut(strings.ReplaceAll(s, "DIR", dir), " ")
					if command != "wait" {
						execute(command, json.RawMessage(arguments), nil)
						continue
					}
					for deadline := time.Now().Add(patience); strings.Contains(present(execute), arguments) &&
						time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
					}
				}
				before := pluggedInto(execute)
				t.Cleanup(func() { endLaunched(t, dir+"/b") })
				status, said := runIn(t, dir, "--source", "unix:DIR/a", "--destination", "unix:DIR/b", "--launch")
				if c.refused != "" {
					_, err := os.Stat(dir + "/b")
					if status != 1 || !strings.Contains(said, "\nqmigrate: ") && strings.Count(said, "\n") != 1 || err == nil ||
						!strings.Contains(said, c.refused) ||
						!strings.Contains(said, "hot first (device_del)") {
						t.Errorf("status %d, folder: %v\n%s", status, err, said)
					}
					return
				}
				if status != 0 {
					t.Fatalf("status %d\n%s", status, said)
				}
				after := pluggedInto(monitorOf(t, dir+"/b"))
				if after != before {
					t.Errorf("the destination has\n%s\nthe source had\n%s\n\n%s", after, before, said)
				}
				for _, name := range strings.Fields(c.gone) {
					if strings.Contains("\n"+after, "\n"+name+" ") {
						t.Errorf("%s is there:\n%s", name, after)
					}
				}
				if !strings.Contains(after, c.want) {
					t.Errorf("no %s:\n%s", c.want, after)
				}
			})
		})
	}
}
