package lab

import (
	"context"
	"errors"
	"fmt"

	"qmigrate/engine/plan"
	"qmigrate/engine/storage"
)

// CheckAgain refuses a lab whose guest can be migrated only once: what Again could not make as it was.
func (s Spec) CheckAgain() error {
	switch {
	case s.SourceQEMU != s.DestinationQEMU:
		return &plan.UnsupportedError{Feature: "a second migration of one guest between different QEMUs",
			Have: "it would be the way back: boot the guest anew"}
	case s.Storage.Kind != "" && s.Storage.Kind != storage.None:
		return &plan.UnsupportedError{Feature: "a second migration of one guest with disks",
			Have: "what it had written to them was checked and is no more followed: boot the guest anew"}
	}
	return nil
}

// Again makes the lab ready for another migration of its guest, back to the host that it came from, after one that has
// completed: what is left of the source goes, a new QEMU waits in its place, and the guest's workload starts anew over
// the same memory. After an error the lab is good for Close alone.
func (l *Lab) Again(ctx context.Context) error {
	if err := l.spec.CheckAgain(); err != nil {
		return err
	}
	free := l.hostOf(l.source)
	gone := l.source
	l.source, l.destination = l.destination, nil
	// First of all the state: from now on a sweep looks for the waiting side where the guest came from.
	if err := errors.Join(l.save(), gone.Close()); err != nil {
		l.destination = gone // for Close
		return fmt.Errorf("remove the QEMU that the guest has left: %w", err)
	}
	var err error
	if l.destination, err = l.startDestination(ctx, free); err != nil {
		return fmt.Errorf("start a new destination on host %s: %w", free, err)
	}
	if err := l.save(); err != nil {
		return err
	}
	if err := l.startWorkload(ctx); err != nil {
		return fmt.Errorf("again: %w", err)
	}
	return nil
}
