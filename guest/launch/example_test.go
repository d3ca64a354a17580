package launch_test

import (
	"fmt"

	"qmigrate/guest/launch"
)

func ExampleDestination() {
	source := []string{"/usr/bin/qemu-system-x86_64", "-machine", "q35", "-m", "1G", "-daemonize",
		"-serial", "file:/var/log/a.log", "-netdev", "user,id=n,hostfwd=tcp::2222-:22", "-device", "virtio-net,netdev=n"}
	line, err := launch.Destination(source, launch.Options{Dir: "/run/b", Machine: "pc-q35-10.0"})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range line.Changes[:4] {
		fmt.Println(c)
	}
	fmt.Println("later:", line.Forwards[0].Rule)
	// Output:
	// -machine: q35 -> pc-q35-10.0 (the machine type that the source's name stands for)
	// -daemonize dropped: -daemonize (the source's own: how its process began)
	// -serial: file:/var/log/a.log -> file:/run/b/a.log (the source's own)
	// -netdev dropped: hostfwd=tcp::2222-:22 (the source holds port 2222: it is moved when the guest has moved)
	// later: tcp::2222-:22
}
