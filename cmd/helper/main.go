// Command helper is the program that runs on a host which is not the machine of qmigrate: a container, or a machine
// behind ssh. qmigrate copies it there and starts it; its standard streams are the channel, and it ends with them. It
// links every task: what a host can do for qmigrate is listed here.
package main

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"qmigrate/engine/connect/behind"
	"qmigrate/engine/lab/observe/on"
	"qmigrate/engine/storage"
	"qmigrate/engine/tunnel"
	"qmigrate/guest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/libvirtd"
)

// clockVariable sets the clock that this host shows, for tests: see host.ParseDrift.
const clockVariable = "QMIGRATE_HELPER_CLOCK"

func main() {
	if os.Getpid() == 1 { // of a container that qmigrate made
		host.Init()
		return
	}
	hostnet.Main()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "qmigrate's helper:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 || os.Args[1] != "serve" {
		return fmt.Errorf("it is started by qmigrate, found %q", os.Args[1:])
	}
	clock, err := host.ParseDrift(os.Getenv(clockVariable))
	if err != nil {
		return err
	}
	undo := hostnet.Undos()
	maps.Copy(undo, tunnel.Undos())
	maps.Copy(undo, launch.Undos())
	tasks := slices.Concat(hostnet.Tasks(), libvirtd.Tasks(), on.Tasks(), storage.Tasks(), tunnel.Tasks(), behind.Tasks(),
		launch.Tasks())
	return host.Helper{Clock: clock, Tasks: tasks, Undo: undo, Holds: guest.Holds}.Serve(os.Stdin, os.Stdout)
}
