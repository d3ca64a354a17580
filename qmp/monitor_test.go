package qmp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/digitalocean/go-qemu/qemu"
	goqemu "github.com/digitalocean/go-qemu/qmp"

	"qmigrate/qmp"
)

// TestDomain drives go-qemu's qemu.Domain with our Monitor.
func TestDomain(t *testing.T) {
	guests := map[string][]string{"domain": guestArgs}
	forEachMonitor(t, guests, func(t *testing.T, l *lab) {
		m := qmp.NewMonitor(func(context.Context) (net.Conn, error) {
			nc, err := l.dial("domain")
			return &traced{Conn: nc, trace: l.trace("domain")}, err
		})
		if err := m.Connect(); err != nil {
			t.Fatal(err)
		}
		if err := m.Connect(); err == nil {
			t.Error("second Connect: want an error")
		}
		d, err := qemu.NewDomain(m, "guest")
		if err != nil {
			t.Fatal(err)
		}
		events, done, err := d.Events()
		if err != nil {
			t.Fatal(err)
		}
		if v, err := d.Version(); err != nil || !strings.HasPrefix(v, l.version) {
			t.Errorf("version %q, %v", v, err)
		}
		if v, err := d.PackageVersion(); err != nil || !strings.HasPrefix(v, "Debian") {
			t.Errorf("package %q, %v", v, err)
		}
		if s, err := d.Status(); err != nil || s != qemu.StatusPreLaunch {
			t.Errorf("status %v, %v", s, err)
		}
		if ok, err := d.Supported("query-migrate"); !ok || err != nil {
			t.Errorf("query-migrate: %v, %v", ok, err)
		}
		var refused *qmp.CommandError
		if _, err := d.Run(goqemu.Command{Execute: "nope"}); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
			t.Errorf("nope: %v", err)
		}
		if out, err := m.Run([]byte(`{"execute": "migrate-pause", "id": "mine"}`)); err == nil {
			t.Errorf("migrate-pause: %s", out)
		}
		if out, err := d.Run(goqemu.Command{Execute: "cont"}); err != nil || string(out) != `{"return": {}}` {
			t.Errorf("cont: %s, %v", out, err)
		}
		if e := <-events; e.Event != "RESUME" || e.Timestamp.Seconds == 0 {
			t.Errorf("event %+v", e)
		}
		close(done)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// dialFake is a Monitor whose far end has negotiated and does what f does.
func dialFake(t *testing.T, f func(nc net.Conn, in *bufio.Reader)) *qmp.Monitor {
	return qmp.NewMonitor(func(context.Context) (net.Conn, error) { return fake(t, ready(f)), nil })
}

func TestMonitorRun(t *testing.T) {
	m := dialFake(t, func(nc net.Conn, in *bufio.Reader) {
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return
			}
			var r struct {
				ID int `json:"id"`
			}
			json.Unmarshal(line, &r)
			fmt.Fprintf(nc, `{"id": %d, "return": %s}`+"\r\n", r.ID, bytes.TrimSpace(line))
		}
	})
	if err := m.Connect(); err != nil {
		t.Fatal(err)
	}
	defer m.Disconnect()
	for command, want := range map[string]string{
		`{"execute":"x"}`: `{"return": {"execute":"x","id":N}}`,
		` { "execute" : "x", "id": "mine", "arguments": { "a": 1 } } `: `{"return": {"execute":"x","arguments":{"a":1},"id":N}, "id": "mine"}`,
		`{"exec-oob":"x", "id": 5}`:                                    `{"return": {"exec-oob":"x","id":N}, "id": 5}`,
	} {
		out, err := m.Run([]byte(command))
		got := string(out)
		if i := strings.LastIndex(got, `"id":`); !strings.Contains(want, `, "id"`) && i >= 0 {
			got = got[:i] + `"id":N}}`
		} else if i := strings.Index(got, `"id":`); i >= 0 {
			got = got[:i] + `"id":N` + got[i+strings.Index(got[i:], "}"):]
		}
		if err != nil || got != want {
			t.Errorf("%s: got %s, %v; want %s", command, out, err, want)
		}
	}
	for _, bad := range []string{``, `{`, `{"execute":"x"}{"execute":"y"}`, `{"execute":"x"}}`, `{"execute":"x"} y`, `{}`, `[]`, `null`, `{"execute":"x","exec-oob":"x"}`,
		`{"execute":"x","other":1}`, `{"execute":5}`, `{"execute":"x","arguments":[1]}`} {
		if out, err := m.Run([]byte(bad)); err == nil || out != nil {
			t.Errorf("%s: %s, %v", bad, out, err)
		}
	}
	if _, err := m.Run([]byte(`{"execute":"x"}`)); err != nil {
		t.Errorf("after bad commands: %v", err)
	}
}

// TestMonitorEvents has streams that nobody reads, which stop go-qemu's SocketMonitor for good.
func TestMonitorEvents(t *testing.T) {
	m := dialFake(t, func(nc net.Conn, in *bufio.Reader) {
		in.ReadString('\n')
		for i := range 3000 {
			fmt.Fprintf(nc, `{"timestamp": {"seconds": 5, "microseconds": 6}, "event": "E", "data": {"n": %d}}`+"\r\n", i)
		}
		io.WriteString(nc, `{"return": {}, "id": 2}`+"\r\n")
		io.Copy(io.Discard, in)
	})
	if _, err := m.Events(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Events before Connect: %v", err)
	}
	if _, err := m.Run([]byte(`{"execute":"x"}`)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run before Connect: %v", err)
	}
	if err := m.Disconnect(); err != nil {
		t.Error(err)
	}
	if err := m.Connect(); err != nil {
		t.Fatal(err)
	}
	unread, err := m.Events(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, err := m.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run([]byte(`{"execute":"x"}`)); err != nil {
		t.Error(err)
	}
	if e := <-ended; e.Event != "E" || e.Data["n"] != 0.0 || e.Timestamp.Seconds != 5 || e.Timestamp.Microseconds != 6 {
		t.Errorf("event %+v", e)
	}
	cancel()
	for range ended {
	}
	if err := m.Disconnect(); err != nil {
		t.Error(err)
	}
	for range unread {
	}
}

func TestMonitorNotThere(t *testing.T) {
	want := errors.New("no such monitor")
	m := qmp.NewMonitor(func(context.Context) (net.Conn, error) { return nil, want })
	if err := m.Connect(); !errors.Is(err, want) || m.Conn() != nil {
		t.Errorf("%v", err)
	}
	m = qmp.NewMonitor(func(context.Context) (net.Conn, error) {
		return fake(t, func(nc net.Conn) { io.WriteString(nc, "hello\n") }), nil
	})
	if err := m.Connect(); err == nil || m.Conn() != nil {
		t.Errorf("not QMP: %v", err)
	}
}
