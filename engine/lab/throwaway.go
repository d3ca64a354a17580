package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/engine"
	"qmigrate/guest"
	"qmigrate/hostnet"
)

// Throwaway starts the binary of a QEMU once more, on this machine, with no guest in it (-machine none), tries on it what introspection cannot tell, and
// ends it. env is what the binary needs to find its parts; accelerator is that of the QEMU it stands for.
func Throwaway(ctx context.Context, qemu string, env []string, accelerator string) (*engine.Trial, error) {
	trial, err := throwaway(ctx, qemu, env, accelerator)
	if err != nil {
		return nil, fmt.Errorf("try on a throw-away: %w", err)
	}
	if refusal, tried := trial.Refused["dirty-limit"]; tried && refusal != "" {
		// It needs KVM with a dirty ring, which few guests are started with: can this host do it?
		if _, err := os.Stat("/dev/kvm"); err == nil {
			if ring, err := throwaway(ctx, qemu, env, "kvm,dirty-ring-size=4096"); err == nil && ring.Refused["dirty-limit"] == "" {
				trial.Refused["dirty-limit"] = refusal + "; this host's KVM would take -accel kvm,dirty-ring-size=4096, if a guest boots under it"
			}
		}
	}
	return trial, nil
}

func throwaway(ctx context.Context, qemu string, env []string, accelerator string) (_ *engine.Trial, err error) {
	dir, err := os.MkdirTemp("", "qmig-try-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	dir = filepath.Join(dir, "vm")
	control := guest.Spec{Dir: dir}.Socket(guest.Control)
	argv := []string{qemu, "-name", "qmig-try", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-accel", accelerator,
		"-chardev", "socket,id=control,server=on,wait=off,path=" + strings.ReplaceAll(control, ",", ",,"), "-mon", "chardev=control,mode=control", "-incoming", "defer", "-S"}
	vm, err := guest.StartIncoming(ctx, hostnet.Local(), argv, env, dir)
	if err != nil {
		return nil, err
	}
	defer func() { // it has no guest to lose, and would take its time to quit
		killed, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if closeErr := errors.Join(vm.Kill(killed), vm.Close()); err == nil {
			err = closeErr
		}
	}()
	return engine.Try(ctx, Endpoint(vm))
}
