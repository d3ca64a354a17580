package connect

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

const pairLimit = time.Minute // two QEMUs without a machine, started and ended, on a busy machine

// TryCOLO tries on two throw-away QEMUs without a machine whether the first enters COLO, and the second follows:
// nothing that QEMU says of itself tells, and the guest would have to be stopped to find out. They meet on host h, at
// sockets in dir, which is removed again. The primary is tried with its like first: what it cannot do is then not taken
// for the secondary's fault.
func TryCOLO(ctx context.Context, h host.Host, primary, secondary, dir string) error {
	if primary != secondary {
		if err := tryPair(ctx, h, primary, primary, dir); err != nil {
			return err
		}
	}
	return tryPair(ctx, h, primary, secondary, dir)
}

func tryPair(ctx context.Context, h host.Host, primary, secondary, dir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, pairLimit)
	defer cancel()
	if err := h.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("try COLO: %w", err)
	}
	defer func() { err = errors.Join(err, h.RemoveAll(dir)) }()
	var conns [2]*qmp.Conn
	for i, qemu := range []string{primary, secondary} {
		d := filepath.Join(dir, string(rune('a'+i)))
		argv := []string{qemu, "-name", "qmig-probe", "-nodefaults", "-no-user-config", "-display", "none", "-machine",
			"none", "-accel", "tcg",
			"-chardev", "socket,id=control,server=on,wait=off,path=" +
				guest.Spec{Dir: d}.Socket(guest.Control), "-mon", "chardev=control,mode=control"}
		if i == 1 {
			argv = append(argv, "-incoming", "defer")
		}
		vm, startErr := guest.StartIncoming(ctx, h, host.Command{Args: argv}, d)
		if startErr != nil {
			return fmt.Errorf("try COLO: %w", startErr)
		}
		defer func() { err = errors.Join(err, vm.Close()) }()
		nc, dialErr := vm.Dial(ctx, guest.Control)
		if dialErr != nil {
			return fmt.Errorf("try COLO: %w", dialErr)
		}
		if conns[i], err = qmp.NewConn(ctx, nc, qmp.Options{}); err != nil {
			return fmt.Errorf("try COLO: %w", err)
		}
		defer conns[i].Close()
		if err := conns[i].SetMigrateCapabilities(ctx, map[string]bool{"x-colo": true, "events": true}); err != nil {
			// 11.1.3 wants return-path with it, and with that its primary does not get into step with the stages of
			// engine/colo (seen).
			return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO on QEMU %s", conns[i].Greeting().Version),
				Have: fmt.Sprintf("%v; mode colo works with primaries such as QEMU 7.2: try qemu 7.2", err)}
		}
	}
	source, destination := conns[0], conns[1]
	address := "unix:" + filepath.Join(dir, "m")
	if err := destination.MigrateIncoming(ctx, address); err != nil {
		return fmt.Errorf("try COLO: %w", err)
	}
	if err := source.Migrate(ctx, address); err != nil {
		return fmt.Errorf("try COLO: %w", err)
	}
	for {
		a, err := source.QueryMigrate(ctx)
		if err != nil {
			return fmt.Errorf("try COLO: %w", err)
		}
		if a.Status == "completed" {
			return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO with QEMU %s as the primary", source.Greeting().Version),
				Have: "tried on a QEMU without a guest: its migration completes instead of entering COLO, as 10.0's do, which " +
					"begin it only from a state that they have left by then (migration_completion in migration/migration.c): " +
					"try qemu 7.2, or source-qemu 7.2: this one can be the secondary"}
		}
		b, err := destination.QueryMigrate(ctx)
		switch {
		case err != nil && destination.Err() == nil:
			return fmt.Errorf("try COLO: %w", err)
		case err != nil: // a secondary that cannot follow exits; the primary goes on to say what became of its migration
			b = &qmp.MigrationInfo{Status: "gone"}
		}
		switch {
		case a.Status == "colo" && b.Status == "colo":
			return nil
		case a.Status == "failed", b.Status == "failed", a.Status == "colo" && b.Status == "gone":
			return &plan.UnsupportedError{Feature: fmt.Sprintf("COLO from QEMU %s to %s", source.Greeting().Version,
				destination.Greeting().Version),
				Have: strings.TrimSpace("tried on QEMUs without a guest: the migration failed " + a.ErrorDesc + b.ErrorDesc)}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("try COLO: the primary is %q and the secondary %q after %s", a.Status, b.Status, pairLimit)
		}
	}
}
