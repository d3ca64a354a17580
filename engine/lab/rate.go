package lab

import (
	"context"
	"errors"
	"fmt"
	"os"

	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// SetRate changes the rate of the guest's workload, which must have one (dirty), from now on: writes a second, 0 is as
// fast as it can.
func (l *Lab) SetRate(ctx context.Context, perSecond float64) error {
	return setRate(ctx, l.agent, perSecond)
}

func setRate(ctx context.Context, a *guest.Agent, perSecond float64) error {
	if err := a.Call(ctx, wire.DoWorkloadRate, wire.NewRate{Rate: perSecond}, nil); err != nil {
		return fmt.Errorf("change the rate of the guest's workload: %w", err)
	}
	return nil
}

// SetRate changes the rate of the workload in the guest of a lab that stands, on whichever side it runs.
func SetRate(ctx context.Context, hosts *host.Pool, owner string, perSecond float64) error {
	st := Inspect(ctx, hosts, owner)
	if len(st.Sides) == 0 {
		return fmt.Errorf("no lab %s: `qmigrate lab status` lists them", owner)
	}
	if st.Owned {
		return fmt.Errorf("lab %s is %w", owner, ErrInUse)
	}
	s, err := read(st.Dir)
	if err != nil {
		return err
	}
	source, destination := s.sides(ctx, hosts)
	for i, v := range []*vmState{source, destination} {
		if v == nil || i >= len(st.Sides) || st.Sides[i].RunState != "running" {
			continue
		}
		at, err := hosts.Find(ctx, v.Host)
		if err != nil {
			return err
		}
		vm, err := guest.Open(ctx, at, v.Spec, v.PID)
		if errors.Is(err, os.ErrProcessDone) {
			continue
		}
		if err != nil {
			return err
		}
		a, err := dialAgent(ctx, vm)
		if err != nil {
			return err
		}
		defer a.Close()
		ctx, cancel := context.WithTimeout(ctx, readyLimit)
		defer cancel()
		return setRate(ctx, a, perSecond)
	}
	return fmt.Errorf("lab %s: %s: only a running guest's workload can be changed", owner, st.Guest())
}
