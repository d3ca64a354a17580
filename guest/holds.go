package guest

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
	"qmigrate/qmp"
)

// holdsLimit is how long a QEMU may take to say that it has no guest.
const holdsLimit = 3 * time.Second

// Holds tells whether a process of a host may hold a guest: it must not be ended then. folder is where its control
// monitor is. It holds none if it is no QEMU, if it has no machine, or if its own word is that it waits for a migration
// of which nothing has begun. One that does not answer may hold one.
func Holds(ctx context.Context, at host.Host, p host.Process, folder string) bool {
	cmdline, err := at.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID()))
	if err != nil {
		select {
		case <-p.Done():
			return false
		default:
			return true
		}
	}
	args := procfs.Args(cmdline)
	qemu := slices.ContainsFunc(args[:min(len(args), loaderWords)], func(a string) bool {
		return strings.Contains(filepath.Base(a), "qemu")
	})
	if !qemu { // its program may have any name, but it has our monitor
		monitor := Spec{Dir: "/"}.Socket(Control)
		qemu = slices.ContainsFunc(args, func(a string) bool { return strings.HasSuffix(a, monitor) })
	}
	if !qemu || noMachine(args) {
		return false
	}
	if folder == "" {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, holdsLimit)
	defer cancel()
	return !waits(ctx, at, Spec{Dir: folder}.Socket(Control))
}

// loaderWords is within how many words of its command line a QEMU is named: a dynamic linker may run it, with options.
const loaderWords = 8

// noMachine: a QEMU that is started to be asked, with -machine none, has no guest.
func noMachine(args []string) bool {
	i := slices.Index(args, "-machine")
	return i >= 0 && i+1 < len(args) && args[i+1] == "none"
}

// waits tells whether the QEMU behind a monitor says that it waits for a migration of which nothing has begun.
func waits(ctx context.Context, at host.Host, monitor string) bool {
	nc, err := at.Dial(ctx, "unix", monitor)
	if err != nil {
		return false
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return false
	}
	defer c.Close()
	status, err := c.QueryStatus(ctx)
	if err != nil || status.Status != "inmigrate" {
		return false
	}
	info, err := c.QueryMigrate(ctx)
	if err != nil {
		return false
	}
	switch info.Status { // "setup": from 8.0 on it listens
	case "", "none", "setup":
		return true
	}
	return false
}
