package fit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"qmigrate/engine/endpoint"
	"qmigrate/qmp"
)

// Trial is what a throw-away QEMU of the same binary said when things were tried on it that no introspection tells:
// what its host and its build can really do.
type Trial struct {
	Why      string            // why nothing was tried; "" if it was
	Refused  map[string]string // each attempt by name, and QEMU's words; "" if it took it
	Defaults map[string]any    // the parameters of a QEMU that nobody has touched
	Ranges   map[string]string // what a number may be, as QEMU says when it refuses one: "1 to 255"
}

// said is how QEMU refused an attempt; tried is false for one that was not made.
func (t *Trial) said(attempt string) (refusal string, tried bool) {
	if t == nil {
		return "", false
	}
	refusal, tried = t.Refused[attempt]
	return refusal, tried
}

// Try tries things on the QEMU behind the endpoint, which is for nothing else and waits with -incoming defer: a
// capability that makes QEMU look at its host (userfaultfd, write tracking, KVM's dirty ring), or at others that are
// on; credentials; a transport. Afterwards it is of no more use.
func Try(ctx context.Context, ep *endpoint.Endpoint) (*Trial, error) {
	nc, err := ep.Control(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w", ep.Name, err)
	}
	c, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return nil, fmt.Errorf("talk to %s: %w", ep.Name, err)
	}
	defer c.Close()
	t := &Trial{Refused: map[string]string{}, Ranges: map[string]string{}}
	have, err := c.QueryMigrateCapabilities(ctx)
	if err != nil {
		return nil, fmt.Errorf("try %s: %w", ep.Name, err)
	}
	if t.Defaults, err = c.QueryMigrateParameters(ctx); err != nil {
		return nil, fmt.Errorf("try %s: %w", ep.Name, err)
	}
	var broken error
	note := func(name string, err error) {
		t.Refused[name] = ""
		switch {
		case qmp.IsRefusal(err):
			t.Refused[name] = refusalText(err)
		case err != nil && broken == nil:
			broken = fmt.Errorf("try %s on %s: %w", name, ep.Name, err)
		}
	}
	off := map[string]bool{}
	for name := range have {
		off[name] = false
	}
	set := func(name string, with ...string) {
		on := map[string]bool{}
		for _, c := range append(with, strings.Split(name, "+")...) {
			if _, ok := have[c]; !ok {
				return // it has not got that one, which is known without a trial
			}
			on[c] = true
		}
		note(name, c.SetMigrateCapabilities(ctx, on))
		if err := c.SetMigrateCapabilities(ctx, off); err != nil && broken == nil {
			broken = fmt.Errorf("try %s on %s: %w", name, ep.Name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		switch name {
		case "postcopy-preempt":
			set(name, "postcopy-ram")
		case "zero-copy-send":
			set(name, "multifd")
		case "switchover-ack":
			set(name, "return-path")
		default:
			set(name)
		}
	}
	set("multifd+postcopy-ram")
	set("multifd+xbzrle")
	t.tryRanges(ctx, c, func(name string, err error) { note("parameter "+name, err) })
	for _, credentials := range []string{"tls-creds-anon", "tls-creds-psk", "tls-creds-x509"} {
		err := c.Execute(ctx, "object-add", map[string]any{"qom-type": credentials, "id": credentials, "endpoint": "server",
			"dir": "/nonexistent"}, nil)
		if qmp.IsRefusal(err) && strings.Contains(err.Error(), "/nonexistent") {
			err = nil // it knows them, and looks for their files
		}
		note(credentials, err)
	}
	if text := ""; broken == nil { // the last attempt: 10.0 can try one only
		err := c.MigrateIncoming(ctx, "rdma:127.0.0.1:1")
		if qmp.IsRefusal(err) {
			text = refusalText(err)
		} else if err != nil {
			broken = fmt.Errorf("try rdma on %s: %w", ep.Name, err)
		}
		t.Refused["rdma"] = text
	}
	return t, broken
}

// tryRanges gives each number values that are hardly legal, and keeps what QEMU then says that it expects.
func (t *Trial) tryRanges(ctx context.Context, c *qmp.Conn, note func(name string, err error)) {
	for _, name := range slices.Sorted(maps.Keys(t.Defaults)) {
		if _, number := t.Defaults[name].(int64); !number {
			continue
		}
		for _, v := range []int64{math.MaxInt64, math.MaxUint8, 0} {
			err := c.SetMigrateParameters(ctx, map[string]any{name: v})
			if err != nil && !qmp.IsRefusal(err) {
				note(name, err)
			}
			if _, expected, ok := strings.Cut(refusalText(err), " expects "); ok {
				t.Ranges[name] = rangeText(expected)
			}
		}
		if err := c.SetMigrateParameters(ctx, map[string]any{name: t.Defaults[name]}); err != nil {
			note(name, err)
		}
	}
}

// rangeText makes QEMU's ways to say a range one.
func rangeText(expected string) string {
	switch expected {
	case "uint8_t":
		return "0 to 255"
	case "uint32_t":
		return "0 to 4294967295"
	}
	if from, to, ok := strings.Cut(strings.TrimPrefix(expected, "a value between "), " and "); ok {
		return from + " to " + to
	}
	return strings.TrimPrefix(expected, "an integer in the range of ")
}

// refusalText is QEMU's own words alone.
func refusalText(err error) string {
	var refusal *qmp.CommandError
	if errors.As(err, &refusal) {
		return refusal.Desc
	}
	return fmt.Sprint(err)
}
