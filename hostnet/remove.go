package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/cpucap"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/mark"
	"qmigrate/hostnet/internal/netns"
	"qmigrate/internal/procfs"
)

// deleteNamespace ends the processes in a named namespace and removes the name; the kernel then removes the namespace
// with all that is in it. It says what it removed. No such namespace is no error.
func deleteNamespace(ctx context.Context, name string) (removed []string, err error) {
	path := netns.Path(name)
	if fd, err := netns.Open(name); err == nil {
		unix.Close(fd)
		removed, err = killAll(ctx, path)
		if err != nil {
			// The name stays: it is the only way back to a process that would not die.
			return removed, fmt.Errorf("remove namespace %s: %w", name, err)
		}
		// Detached, for someone may be looking at it. Unlinking the file takes copies in other mount namespaces along.
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return removed, fmt.Errorf("remove namespace %s: %w", name, os.NewSyscallError("umount", err))
		}
	}
	switch err := os.Remove(path); {
	case err == nil:
		removed = append(removed, "namespace "+name)
	case !errors.Is(err, fs.ErrNotExist):
		return removed, fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return removed, nil
}

// killAll kills every process, except us, whose main thread is in the namespace at path, and waits until they are dead.
func killAll(ctx context.Context, path string) (killed []string, err error) {
	want, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	for {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return killed, err
		}
		found := 0
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			inside := func() bool {
				have, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
				return err == nil && os.SameFile(have, want)
			}
			if !inside() {
				continue
			}
			st, err := procfs.Process(pid).Stat(os.ReadFile)
			if err != nil {
				continue
			}
			p, err := host.FindProcess(pid, st.Start)
			if err != nil || !inside() { // gone, or another process by now
				continue
			}
			found++
			if err := p.Kill(ctx); err != nil {
				return killed, err
			}
			killed = append(killed, fmt.Sprintf("process %d (%s) in %s", pid, st.Name, filepath.Base(path)))
		}
		if found == 0 { // nobody is left who could fork
			return killed, nil
		}
	}
}

// Remove removes everything with that owner's mark and nothing else, processes included, whoever made it and however
// far he came. It says what it removed, also beside an error.
func Remove(ctx context.Context, owner string) (removed []string, err error) {
	if !mark.IsOwner(owner) {
		return nil, fmt.Errorf("remove network of %q: not an owner's mark", owner)
	}
	names, err := netns.Names(mark.Prefix + owner + "-")
	if err != nil {
		return nil, fmt.Errorf("remove network of %s: %w", owner, err)
	}
	link := mark.Prefix + owner + "-" + linkHost
	slices.SortFunc(names, func(a, b string) int { // hosts before the link, as Close does
		switch {
		case a == link && b != link:
			return 1
		case b == link && a != link:
			return -1
		}
		return strings.Compare(b, a)
	})
	var errs []error
	for _, name := range names {
		if o, ok := mark.Owner(name); !ok || o != owner {
			continue
		}
		r, err := deleteNamespace(ctx, name)
		removed = append(removed, r...)
		errs = append(errs, err)
	}
	limited, cancel := context.WithTimeout(ctx, undoLimit)
	defer cancel()
	r, err := cpucap.Remove(limited, owner) // their processes are dead now
	removed, errs = append(removed, r...), append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("remove network of %s: %w", owner, err)
	}
	return removed, nil
}

// Owners lists the marks that are found on this machine, sorted.
func Owners(context.Context) ([]string, error) {
	names, err := netns.Names(mark.Prefix)
	if err != nil {
		return nil, fmt.Errorf("list network owners: %w", err)
	}
	var owners []string
	for _, name := range names {
		if owner, ok := mark.Owner(name); ok {
			owners = append(owners, owner)
		}
	}
	slices.Sort(owners)
	return slices.Compact(owners), nil
}
