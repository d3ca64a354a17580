// Command library migrates a guest, as a program does that has qmigrate as a library: README.md says how it is built.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"qmigrate/engine"
	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
)

func main() {
	if err := move(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func move(ctx context.Context, from, to string) error {
	src, err := connect.Parse(from, nil)
	if err != nil {
		return err
	}
	dst, err := connect.Parse(to, nil)
	if err != nil {
		return err
	}
	rec, err := engine.Migrate(ctx, src, dst, plan.Plan{DowntimeLimit: 200 * time.Millisecond}, plan.Options{})
	fmt.Printf("%s: the guest is on the %s; %d passes in %d stages\n", rec.Outcome, rec.GuestOn, len(rec.Passes),
		len(rec.Stages))
	return err
}
