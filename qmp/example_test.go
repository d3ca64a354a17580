package qmp_test

import (
	"context"
	"fmt"
	"testing"

	"qmigrate/qmp"
	"qmigrate/qmp/qmptest"
)

// What a QEMU 10.0 says to the example.
const conversation = `
< {"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": []}}
> {"execute": "qmp_capabilities", "arguments": {}, "id": 1}
< {"return": {}, "id": 1}
> {"execute": "query-status", "id": 2}
< {"return": {"status": "running", "running": true}, "id": 2}
> {"execute": "stop", "id": 3}
< {"timestamp": {"seconds": 1, "microseconds": 0}, "event": "STOP"}
< {"return": {}, "id": 3}
> {"execute": "stopp", "id": 4}
< {"id": 4, "error": {"class": "CommandNotFound", "desc": "The command stopp has not been found"}}
! next
`

// served is what qmptest wants of a test, for an example.
type served struct {
	testing.TB
	undo []func()
}

func (s *served) Helper()                     {}
func (s *served) Cleanup(f func())            { s.undo = append(s.undo, f) }
func (s *served) Errorf(f string, all ...any) { fmt.Printf(f+"\n", all...) }

// monitor is a QEMU's monitor for the example: `qemu-system-x86_64 -qmp unix:PATH,server=on,wait=off` has a real one.
func monitor() (socket string, done func()) {
	script, err := qmptest.Parse([]byte(conversation))
	if err != nil {
		panic(err)
	}
	s := &served{}
	socket = qmptest.ServeTranscript(s, "example", script)
	return socket, s.undo[0]
}

// A monitor answers commands and tells by itself what happens. Its events overtake its replies: subscribe before you
// send.
func ExampleDial() {
	socket, done := monitor()
	defer done()

	ctx := context.Background()
	conn, err := qmp.Dial(ctx, "unix", socket, qmp.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	events := conn.Subscribe(16)

	status, err := conn.QueryStatus(ctx)
	fmt.Println("QEMU", conn.Greeting().Version, "is", status.Status, err)
	if err := conn.Stop(ctx); err != nil {
		fmt.Println(err)
	}
	fmt.Println((<-events.C).Name)
	err = conn.Execute(ctx, "stopp", nil, nil) // any command, with arguments and a reply
	fmt.Println(err)
	fmt.Println("QEMU refused it, the connection is good:", qmp.IsRefusal(err))
	// Output:
	// QEMU 10.0.2 is running <nil>
	// STOP
	// stopp: CommandNotFound: The command stopp has not been found
	// QEMU refused it, the connection is good: true
}
