package connect

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"qmigrate/engine/clock"
	"qmigrate/engine/endpoint"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
)

const reachLimit = time.Second

// Endpoint is a VM of the lab as the engine sees it.
func Endpoint(vm *guest.VM) *endpoint.Endpoint {
	dial := func(role string) endpoint.Dialer {
		return func(ctx context.Context) (net.Conn, error) { return vm.Dial(ctx, role) }
	}
	e := &endpoint.Endpoint{
		Name:    "unix:" + vm.Spec().Socket(guest.Control),
		Host:    vm.Host().Name(),
		Control: dial(guest.Control), Events: dial(guest.Events), Sampler: dial(guest.Sampler),
		Process: NewProcess(vm.Host(), vm.Process()), ReadFile: vm.Host().ReadFile, Files: true,
		Log:     logsOf(vm),
		Clock:   clockOf(vm.Host()),
		Reaches: func(ctx context.Context, address string) error { return reaches(ctx, vm.Host(), address) },
	}
	if far, ok := vm.Host().(*host.Far); ok {
		e.Files = false
		e.Machine = func() string {
			ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
			defer cancel()
			look, ours, _ := lookAt(ctx, far, vm.Process().PID())
			return machineOn(far.Name(), look.Boot, ours)
		}
	}
	return e
}

// clockOf looks at a host's clock.
func clockOf(h host.Host) func(context.Context) (clock.Look, error) {
	return func(ctx context.Context) (clock.Look, error) {
		c, err := h.Clock(ctx)
		return clock.Look(c), err
	}
}

// reaches tries whether a host reaches an address: a port on which nobody listens refuses, and that is an answer too.
func reaches(ctx context.Context, h host.Host, address string) error {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", net.JoinHostPort(address, "1"))
	if err == nil {
		return conn.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return err
}
