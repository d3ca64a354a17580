package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"qmigrate/engine/facts"
	"qmigrate/qmp"
)

// self is what a QEMU says of itself that tells it from another one. On one host the number of a vCPU's thread alone
// does; of two hosts the rest may. The run state tells a source from its destination, which else may say the same.
type self struct {
	thread     int // of the first vCPU, as its host numbers it; 0: none
	uuid, name string
	chardevs   []string
	run        string
}

// asker is a monitor: *qmp.Conn or *qmp.Sampler.
type asker interface {
	Execute(ctx context.Context, command string, args, reply any) error
}

// saysOf asks a monitor which QEMU it is. A command that QEMU does not know tells nothing.
func saysOf(ctx context.Context, a asker) (me self, err error) {
	var cpus []struct {
		Thread int `json:"thread-id"`
	}
	var uuid struct{ UUID string }
	var name struct{ Name string }
	var status struct{ Status string }
	var devices []facts.Chardev
	for _, q := range []struct {
		command string
		reply   any
	}{
		{"query-cpus-fast", &cpus}, {"query-uuid", &uuid}, {"query-name", &name},
		{"query-chardev", &devices}, {"query-status", &status},
	} {
		if err := a.Execute(ctx, q.command, nil, q.reply); err != nil && !qmp.IsRefusal(err) {
			return me, err
		}
	}
	if len(cpus) > 0 {
		me.thread = cpus[0].Thread
	}
	me.uuid, me.name, me.run, me.chardevs = uuid.UUID, name.Name, status.Status, facts.ChardevAddresses(devices)
	return me, nil
}

// differs is how two of them contradict each other; "" if they do not.
func (s self) differs(o self) string {
	switch {
	case s.thread != o.thread:
		return fmt.Sprintf("vCPU thread %d, %d", s.thread, o.thread)
	case s.uuid != o.uuid:
		return fmt.Sprintf("UUID %s, %s", s.uuid, o.uuid)
	case s.name != o.name:
		return fmt.Sprintf("name %q, %q", s.name, o.name)
	case s.run != o.run:
		return fmt.Sprintf("run state %s, %s", s.run, o.run)
	case !slices.Equal(s.chardevs, o.chardevs):
		return fmt.Sprintf("character devices %q, %q", s.chardevs, o.chardevs)
	}
	return ""
}

// agreeTries is how often two monitors are compared: what a QEMU says may change between two questions.
const (
	agreeTries = 10
	agreePause = 20 * time.Millisecond
)

// agree is why two monitors of one endpoint do not belong to one QEMU. The first one is asked before and after the
// other, so what it says both times was so while the other was asked.
func agree(ctx context.Context, control, other asker, role string) error {
	differ := ""
	before, err := saysOf(ctx, control)
	for range agreeTries {
		if err != nil {
			return err
		}
		var there, after self
		if there, err = saysOf(ctx, other); err != nil {
			return err
		}
		if differ = before.differs(there); differ == "" {
			return nil
		}
		if after, err = saysOf(ctx, control); err == nil && after.differs(before) != "" { // it changed meanwhile
			before, differ = after, ""
			time.Sleep(agreePause)
			continue
		}
		break
	}
	if differ == "" || err != nil {
		return err
	}
	return fmt.Errorf("the first monitor and the one for %s belong to two QEMUs (%s): give the monitors of one", role,
		differ)
}

// MonitorError is an error about a monitor beside the first one, which has answered.
type MonitorError struct{ error }

func (e MonitorError) Unwrap() error { return e.error }

var errNoEvents = errors.New("the monitor for events has told of none: does it belong to another QEMU than the first one?")

// Tells makes sure that a side's events come, when it has just taken a command that makes it send one: what the monitor
// for events answers has its events before it. One that does not answer is found by watch.
func (r *Run) Tells(ctx context.Context, s *Side) error {
	if s.events == s.Control || s.Status != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, AnswerLimit)
	defer cancel()
	if _, err := s.events.QueryStatus(ctx); err != nil {
		return nil
	}
	if r.CatchUp(); s.Status == "" {
		return fmt.Errorf("%s %s: %w", s.Role, s.Endpoint.Name, errNoEvents)
	}
	return nil
}
