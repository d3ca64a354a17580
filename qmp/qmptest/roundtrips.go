package qmptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"

	"qmigrate/qmp"
)

// Driver names what RoundTrips measures.
const (
	Bare          = "bare"                  // write and read on the socket, nothing looked at but the line's end
	Sampler       = "sampler"               // qmp.Sampler
	Conn          = "conn"                  // qmp.Conn.QueryMigrate
	SocketMonitor = "go-qemu-socketmonitor" // go-qemu's SocketMonitor.Run, without unmarshalling the value
)

// blockSize is how many calls a driver makes before the next one's turn: one monitor serves one client, so they
// interleave by blocks, each on a connection of its own.
const blockSize = 50

// RoundTrips measures query-migrate on one monitor n times with each driver, in turn. Dial connects to the monitor;
// path is its unix socket, for go-qemu, which is left out if path is "". The times are in order of measurement.
func RoundTrips(ctx context.Context, dial func(context.Context) (net.Conn, error), path string,
	n int) (map[string][]time.Duration, error) {
	drivers := []string{Bare, Sampler, Conn}
	if path != "" {
		drivers = append(drivers, SocketMonitor)
	}
	times := make(map[string][]time.Duration)
	for round := 0; round*blockSize < n; round++ {
		for i := range drivers {
			name := drivers[(i+round)%len(drivers)] // who goes first changes
			call, hangUp, err := Driver(ctx, name, dial, path)
			if err != nil {
				return nil, fmt.Errorf("connect %s: %w", name, err)
			}
			for k := -5; k < min(blockSize, n-round*blockSize); k++ {
				begun := time.Now()
				err = call()
				took := time.Since(begun)
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					hangUp()
					return nil, fmt.Errorf("measure %s: %w", name, err)
				}
				if k >= 0 { // the first five warm up
					times[name] = append(times[name], took)
				}
			}
			hangUp()
		}
	}
	return times, nil
}

// Driver connects one of the drivers; call makes one round trip.
func Driver(ctx context.Context, name string, dial func(context.Context) (net.Conn, error),
	path string) (call func() error, hangUp func(), err error) {
	if name == SocketMonitor {
		m, err := goqemu.NewSocketMonitor("unix", path, 5*time.Second)
		if err != nil {
			return nil, nil, err
		}
		if err := m.Connect(); err != nil {
			m.Disconnect()
			return nil, nil, err
		}
		command := []byte(`{"execute":"query-migrate"}`)
		return func() error { _, err := m.Run(command); return err }, func() { m.Disconnect() }, nil
	}
	nc, err := dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	switch name {
	case Bare:
		return bare(ctx, nc)
	case Sampler:
		s, err := qmp.NewSampler(ctx, nc)
		if err != nil {
			return nil, nil, err
		}
		m := new(qmp.MigrationInfo)
		return func() error { return s.QueryMigrate(m) }, func() { s.Close() }, nil
	case Conn:
		c, err := qmp.NewConn(ctx, nc, qmp.Options{})
		if err != nil {
			return nil, nil, err
		}
		return func() error { _, err := c.QueryMigrate(ctx); return err }, func() { c.Close() }, nil
	}
	nc.Close()
	return nil, nil, fmt.Errorf("no driver %q", name)
}

// bare is the least that a client can do.
func bare(ctx context.Context, nc net.Conn) (call func() error, hangUp func(), err error) {
	if deadline, ok := ctx.Deadline(); ok {
		nc.SetDeadline(deadline)
	}
	buf := make([]byte, 64<<10)
	line := func() error {
		for n := 0; ; {
			k, err := nc.Read(buf[n:])
			if n += k; bytes.HasSuffix(buf[:n], []byte("\n")) {
				return nil
			}
			if err == nil && n == len(buf) {
				err = errors.New("line is too long")
			}
			if err != nil {
				return err
			}
		}
	}
	command := func(text []byte) error {
		if _, err := nc.Write(text); err != nil {
			return err
		}
		return line()
	}
	if err = line(); err == nil {
		err = command([]byte(`{"execute":"qmp_capabilities"}` + "\n"))
	}
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	query := []byte(`{"execute":"query-migrate"}` + "\n")
	return func() error { return command(query) }, func() { nc.Close() }, nil
}
