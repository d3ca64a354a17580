package beside

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/record"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// forwardLimit is the time that moving a port forwarding may take.
const forwardLimit = 10 * time.Second

// forwardsFile is the file in the destination's folder that has the forwardings until they have moved, for
// RecoverForwards.
const forwardsFile = "forwards.json"

// noteForwards writes it, before anything can move. What is cut off there belongs to a migration that never began.
func (l *Launched) noteForwards() error {
	if len(l.Forwards) == 0 {
		return nil
	}
	b, err := json.Marshal(l.Forwards)
	if err != nil {
		return err
	}
	return l.Host().WriteFile(filepath.Join(l.Spec().Dir, forwardsFile), b, 0o600)
}

// MoveForwards takes the ports that lead to the guest from the source and gives them to the destination, where the
// guest is now. What fails is a warning.
func (l *Launched) MoveForwards(ctx context.Context, src, dst *endpoint.Endpoint, rec *record.Migration) {
	if l == nil || len(l.Forwards) == 0 || rec.GuestOn != record.Destination {
		return
	}
	failed := 0
	for _, f := range l.Forwards {
		if err := moveForward(ctx, src, dst, f); err != nil {
			rec.Warn("%s", err)
			failed++
		}
	}
	if failed == 0 {
		if err := l.Host().RemoveAll(filepath.Join(l.Spec().Dir, forwardsFile)); err != nil {
			rec.Warn("the port forwardings have moved, and their list is left: %v", err)
		}
	}
}

// moveForward may be called again: the destination lets go of a port that it has already, and the source may have let
// go of it, or be dead.
func moveForward(ctx context.Context, src, dst *endpoint.Endpoint, f launch.Forward) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forwardLimit) // the guest has moved, Ctrl-C or not
	defer cancel()
	remove := "hostfwd_remove " + strings.TrimSpace(f.Netdev+" "+f.Address())
	_ = humanMonitor(ctx, dst, remove, "removed")
	removed := humanMonitor(ctx, src, remove, "removed")
	err := humanMonitor(ctx, dst, "hostfwd_add "+strings.TrimSpace(f.Netdev+" "+f.Rule), "")
	if err != nil {
		return fmt.Errorf("the port forwarding %s could not be moved to the destination: %w: end the source, then give the "+
			"destination's monitor `hostfwd_add %s`", f.Rule, cmp.Or(removed, err), strings.TrimSpace(f.Netdev+" "+f.Rule))
	}
	return nil
}

// RecoverForwards moves what an interrupted migration to a launched destination had still to move: folder is the one
// that was made for the destination, on its host. It says how many those were.
func RecoverForwards(ctx context.Context, src, dst *endpoint.Endpoint, at host.Host, folder string) (n int, err error) {
	name := filepath.Join(folder, forwardsFile)
	b, err := at.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the port forwardings that are still to move: %w", err)
	}
	var all []launch.Forward
	if json.Unmarshal(b, &all) != nil { // cut off: see noteForwards
		return 0, nil
	}
	for _, f := range all {
		err = errors.Join(err, moveForward(ctx, src, dst, f))
	}
	if err != nil {
		return 0, err
	}
	return len(all), at.RemoveAll(name)
}

// humanMonitor gives a command whose answer has to have a text in it; an answer of no words is that of a command that
// has nothing to say.
func humanMonitor(ctx context.Context, e *endpoint.Endpoint, line, want string) error {
	nc, err := e.Control(ctx)
	if err != nil {
		return err
	}
	conn, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	said, err := conn.HumanMonitor(ctx, line)
	if said = strings.TrimSpace(said); err == nil && (want == "" && said != "" || !strings.Contains(said, want)) {
		err = fmt.Errorf("%s: %s", line, said)
	}
	return err
}
