package engine_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

// The guest of one QEMU moves to another one, which waits with -incoming defer. Each has its monitors in a folder.
func ExampleMigrate() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	src, err := connect.Parse("unix:a", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	dst, err := connect.Parse("unix:b", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	rec, err := engine.Migrate(ctx, src, dst, plan.Plan{DowntimeLimit: 200 * time.Millisecond}, plan.Options{})
	if err != nil {
		fmt.Println("the guest is on the", rec.GuestOn, "after", err) // there is a record after a failure too
		return
	}
	fmt.Println(rec.Outcome, "the guest is on the", rec.GuestOn)
	for _, s := range rec.Stages {
		fmt.Println(s.Name)
	}
}

// TestExampleMigrate runs it between two QEMUs.
func TestExampleMigrate(t *testing.T) {
	qemu := guesttest.QEMU(t, "10.0")
	t.Chdir(guesttest.Dir(t))
	for _, name := range []string{"a", "b"} {
		vm, err := guest.Start(within.Context(t), host.Local(), guest.Spec{Name: name, QEMU: qemu, Memory: 16 << 20,
			Dir: name, Incoming: name == "b", Paused: name == "b"})
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Close()
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := os.Stdout
	os.Stdout = w
	ExampleMigrate()
	os.Stdout = out
	w.Close()
	said, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	const want = "completed the guest is on the destination\n" +
		"initialization\nreservation\npre-copy\nstop-and-copy\ncommitment\nactivation\n"
	if string(said) != want {
		t.Errorf("it printed\n%swant\n%s", said, want)
	}
}
