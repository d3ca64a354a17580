package engine

import (
	"context"
	"fmt"
	"net"
	"qmigrate/engine/internal/run"
	"qmigrate/qmp"
	"strings"
)

// reserve prepares both sides. Every QEMU answers these commands at once: one that does not is taken to hang.
func (m *migration) reserve(ctx context.Context) error { return m.run.Promptly(ctx, m.configureBoth) }

// configureBoth configures the destination, makes it listen, and only then configures the source.
func (m *migration) configureBoth(ctx context.Context) error {
	for _, f := range m.run.Features {
		if err := f.Reserve(ctx); err != nil {
			return err
		}
	}
	if err := m.run.Dst.Control.Stop(ctx); err != nil { // in inmigrate this only means: do not start by yourself
		return fmt.Errorf("keep destination paused: %w", err)
	}
	if err := m.run.Configure(ctx, m.run.Dst); err != nil {
		return err
	}
	m.run.Listening = true
	if err := m.run.Listen(ctx); err != nil {
		if strings.Contains(err.Error(), "already been started") { // it listens for somebody else, and is not ours to end
			m.run.Listening = false
			return fmt.Errorf("listen on %s: %w: if a migration was interrupted, `qmigrate migrate --recover` with the same "+
				"endpoints ends it", m.run.Plan.Listen, err)
		}
		m.run.Listening = !qmp.IsRefusal(err) // one that has refused waits as before, and may be asked again
		return fmt.Errorf("listen on %s: %w", m.run.Plan.Listen, err)
	}
	if err := m.run.Tells(ctx, m.run.Dst); err != nil {
		return err
	}
	if m.run.Plan.Connect == "" { // the destination itself says where
		var err error
		if m.run.Plan.Connect, err = run.ConnectURI(ctx, m.run.Dst.Control, m.run.Plan.Listen); err != nil {
			return err
		}
		m.run.Elsewhere = !m.sameAddress()
	} else {
		m.run.Elsewhere = !m.sameAddress() || m.run.Plan.Connect != m.run.Plan.Listen && m.run.Plan.Tunnel == "" &&
			m.run.Plan.TLS == nil
	}
	if err := m.run.Configure(ctx, m.run.Src); err != nil {
		return err
	}
	if err := m.run.ReadBack(ctx); err != nil {
		return err
	}
	m.run.Doubts()
	return nil
}

// sameAddress tells whether the address at which the destination listens means the destination to the source too: a
// socket's path and a loopback address do so on one host only. A tunnel leads where it was built to, and with TLS the
// other end has proved that it is the destination.
func (m *migration) sameAddress() bool {
	if m.run.Plan.Tunnel != "" || m.run.Plan.TLS != nil || m.run.Src.Endpoint.Host == m.run.Dst.Endpoint.Host {
		return true
	}
	kind, rest, _ := strings.Cut(m.run.Plan.Connect, ":")
	if kind != "tcp" {
		far := m.run.Src.Endpoint.Machine != nil || m.run.Dst.Endpoint.Machine != nil // with folders of its own
		return m.run.Src.Facts.Here() && m.run.Dst.Facts.Here() && !far
	}
	host, _, err := net.SplitHostPort(rest)
	ip := net.ParseIP(host)
	return err == nil && host != "" && host != "localhost" && (ip == nil || !ip.IsLoopback() && !ip.IsUnspecified())
}
