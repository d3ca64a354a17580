package connect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

// Throwaway starts a QEMU once more, on this machine, with no guest in it (-machine none), tries on it what
// introspection cannot tell, and ends it. command is its binary, and before it what runs that; env is what the binary
// needs to find its parts; accelerator is that of the QEMU it stands for.
func Throwaway(ctx context.Context, command, env []string, accelerator string) (*fit.Trial, error) {
	trial, err := throwaway(ctx, command, env, accelerator)
	if err != nil {
		return nil, fmt.Errorf("try on a throw-away: %w", err)
	}
	if refusal, tried := trial.Refused["dirty-limit"]; tried && refusal != "" {
		// It needs KVM with a dirty ring, which few guests are started with: can this host do it?
		if _, err := os.Stat("/dev/kvm"); err == nil {
			if ring, err := throwaway(ctx, command, env, "kvm,dirty-ring-size=4096"); err == nil && ring.Refused["dirty-limit"] == "" {
				trial.Refused["dirty-limit"] = refusal +
					"; this host's KVM would take -accel kvm,dirty-ring-size=4096, if a guest boots under it"
			}
		}
	}
	return trial, nil
}

func throwaway(ctx context.Context, command, env []string, accelerator string) (trial *fit.Trial, err error) {
	err = onThrowaway(ctx, command, env, accelerator, func(vm *guest.VM) error {
		trial, err = fit.Try(ctx, Endpoint(vm))
		return err
	})
	return trial, err
}

// Facts are what a QEMU binary on this machine says of itself, with no guest in it.
func Facts(ctx context.Context, qemu, accelerator string, schemas qmp.SchemaCache) (f *facts.Facts, err error) {
	err = onThrowaway(ctx, []string{qemu}, nil, accelerator, func(vm *guest.VM) error {
		f, err = facts.Inspect(ctx, Endpoint(vm), plan.Options{Schemas: schemas})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask %s what it can do: %w", qemu, err)
	}
	f.Name = filepath.Base(qemu)
	return f, nil
}

// longFolder is the longest name of a folder that leaves room for qmig-try-NUMBER/vm/control.qmp: the path of a unix
// socket may have 107 bytes.
const longFolder = 60

// onThrowaway does something with a QEMU that has no guest, and ends it.
func onThrowaway(ctx context.Context, command, env []string, accelerator string, do func(*guest.VM) error) (err error) {
	parent := os.TempDir()
	if len(parent) > longFolder {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "qmig-try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	dir = filepath.Join(dir, "vm")
	control := guest.Spec{Dir: dir}.Socket(guest.Control)
	argv := append(slices.Clone(command), "-name", "qmig-try", "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "none", "-accel", accelerator,
		"-chardev", "socket,id=control,server=on,wait=off,path="+strings.ReplaceAll(control, ",",
			",,"), "-mon", "chardev=control,mode=control", "-incoming", "defer", "-S")
	vm, err := guest.StartIncoming(ctx, host.Local(), host.Command{Args: argv, Env: env}, dir)
	if err != nil {
		return err
	}
	defer func() { // it has no guest to lose, and would take its time to quit
		killed, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if closeErr := errors.Join(vm.Kill(killed), vm.Close()); err == nil {
			err = closeErr
		}
	}()
	return do(vm)
}
