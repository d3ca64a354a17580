// Package behind looks at the process behind a monitor: who it is, where it runs, what it has open, why it does not
// answer. All of it must be asked where that process is, so it is tasks, which run in this process for a QEMU of this
// machine and in the helper for one of another host. Package connect asks; cmd/helper lists the tasks.
//
// It changes nothing, and speaks to no monitor. It imports the type of an endpoint, guest/launch, which reads command
// lines, and hostnet/host.
package behind

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"qmigrate/guest"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// Tasks are all of the package's, for a helper to list.
func Tasks() []host.Served {
	return []host.Served{Looks(), Networks(), Opened(), Mute(), Listens(), TryListen(), Machines(), Monitors(),
		Nears(), Logs(), Threads()}
}

// one is a task that gives one answer.
func one[In, Out any](name string, work func(context.Context, In) (Out, error)) host.Task[In, Out] {
	return host.Task[In, Out]{Name: name, Work: func(ctx context.Context, _ host.Host, in In, give func(Out) error) error {
		out, err := work(ctx, in)
		if err != nil {
			return err
		}
		return give(out)
	}}
}

// Look is what a host says of a process.
type Look struct {
	PID   int
	Start uint64 // when it started, for host.FindProcess
	QEMU  bool   // it is one, by the name of its program
	Place string // where it runs, as its host has it: local, netns:NAME, or a container, as in lxc:NAME; "" if not known
	Boot  string // the kernel that it runs on, as BootOf has it; "" if it does not say
	Clock int64  // of that kernel when the look was taken, as Clock has it
}

// Looks looks at the process that has a number now. The error wraps os.ErrProcessDone if there is none.
func Looks() host.Task[int, Look] {
	return one("behind.look", func(_ context.Context, pid int) (Look, error) {
		start, err := host.StartTime(pid)
		if err != nil {
			return Look{}, err
		}
		l := Look{PID: pid, Start: start, QEMU: isQEMU(pid)}
		l.Boot, _ = BootOf(os.ReadFile) // some kernels have none
		l.Clock = Clock()
		if l.QEMU {
			l.Place = placeOf(pid)
		}
		return l, nil
	})
}

func isQEMU(pid int) bool {
	p, err := launch.ReadProcess(pid)
	return err == nil && p.IsQEMU()
}

// Networks names the network namespace of a process by what no other one of its machine has.
func Networks() host.Task[int, string] {
	return one("behind.network", func(_ context.Context, pid int) (string, error) { return network(pid) })
}

func network(pid int) (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)) }

// Port is a TCP address on which a process is to listen.
type Port struct {
	PID        int
	Host, Port string
}

// TryListen listens for a moment in place of a process that is on the host's own network. Nothing is tried for one that
// is on another, nor where options follow the port.
func TryListen() host.Task[Port, struct{}] {
	return one("behind.listen", func(_ context.Context, in Port) (none struct{}, err error) {
		ours, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			return none, nil
		}
		if theirs, err := network(in.PID); err != nil || theirs != ours || strings.Contains(in.Port, ",") {
			return none, nil
		}
		l, err := net.Listen("tcp", net.JoinHostPort(in.Host, in.Port))
		if err != nil {
			return none, err
		}
		return none, l.Close()
	})
}

// Monitors are the sockets that a path stands for: those of a folder with control.qmp, or the path itself.
func Monitors() host.Task[string, []string] {
	return one("behind.monitors", func(_ context.Context, path string) ([]string, error) { return MonitorsAt(path), nil })
}

// MonitorsAt is what Monitors gives, on this machine.
func MonitorsAt(path string) (all []string) {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return []string{path}
	}
	for _, role := range []string{guest.Control, guest.Events, guest.Sampler} {
		name := filepath.Join(path, role+".qmp")
		if _, err := os.Stat(name); err == nil || role == guest.Control {
			all = append(all, name)
		}
	}
	return all
}
