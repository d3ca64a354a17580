package hosttest

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
	"time"

	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet/host"
)

// TestWrongClock: the helper, and a program that it starts, show the same wrong clock.
func TestWrongClock(t *testing.T) {
	d := host.Drift{Offset: 5 * time.Second, PPM: 300, From: time.Now().Round(0).Add(-time.Hour), Step: time.Now().Round(0),
		StepBy: -time.Second}
	h, err := New(t, map[string]Machine{"wrong": {Env: WrongClock(t, d)}}).Pool.Find(within.Context(t), "ssh://wrong")
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.Clock(within.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if is := d.At(c.At).Sub(c.At.Round(0)); (c.Offset - is).Abs() > c.Error {
		t.Errorf("the helper is %v ahead within %v, want %v", c.Offset, c.Error, is)
	}
	var out bytes.Buffer
	before := d.Now()
	p, err := h.Start(within.Context(t), host.Command{Args: []string{"date", "+%s%N"}, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	after := d.Now()
	ns, err := strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if at := time.Unix(0, ns); at.Before(before) || at.After(after) {
		t.Errorf("date says %v, want between %v and %v", at, before, after)
	}
}
