package qmp_test

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"qmigrate/qmp"
	"qmigrate/qmp/qmptest"
)

// BenchmarkQueryMigrate is the round trip on a real QEMU's socket, which has one client at a time. The p50 of drivers
// that ran one after another wanders with the machine; compare those of qmptest.RoundTrips (the last one), which takes turns.
func BenchmarkQueryMigrate(b *testing.B) {
	for _, version := range versions {
		b.Run("qemu-"+version, func(b *testing.B) {
			path := filepath.Join(startQEMU(b, version, []string{"m"}, guestArgs...), "m")
			migrated(b, path)
			dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
			for _, name := range []string{qmptest.Bare, qmptest.Sampler, qmptest.Conn, qmptest.SocketMonitor} {
				b.Run(name, func(b *testing.B) {
					call, hangUp, err := qmptest.Driver(limit(b), name, dial, path)
					if err != nil {
						b.Fatal(err)
					}
					defer hangUp()
					b.ReportAllocs()
					times := make([]time.Duration, 0, 1<<20)
					for b.Loop() {
						begun := time.Now()
						if err := call(); err != nil {
							b.Fatal(err)
						}
						times = append(times, time.Since(begun))
					}
					b.ReportMetric(float64(p50(times))/1e3, "p50-us")
				})
			}
			b.Run("in-turn", func(b *testing.B) {
				for b.Loop() {
					times, err := qmptest.RoundTrips(limit(b), dial, path, 2000)
					if err != nil {
						b.Fatal(err)
					}
					bare := float64(p50(times[qmptest.Bare]))
					for name, list := range times {
						b.ReportMetric(float64(p50(list))/1e3, name+"-p50-us")
						b.ReportMetric(float64(p50(list))/bare, name+"-per-bare")
					}
				}
			})
		})
	}
}

// migrated leaves the QEMU with a migration behind it, so that query-migrate answers in full.
func migrated(b *testing.B, path string) {
	c, err := qmp.Dial(limit(b), "unix", path, qmp.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := c.Migrate(limit(b), "exec:cat >/dev/null"); err != nil {
		b.Fatal(err)
	}
	for {
		m, err := c.QueryMigrate(limit(b))
		if err != nil || m.Status == "failed" {
			b.Fatal(m, err)
		}
		if m.Status == "completed" && m.TotalTime > 0 {
			return
		}
	}
}

func p50(list []time.Duration) time.Duration {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

func TestRoundTrips(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			path := filepath.Join(startQEMU(t, version, []string{"m"}, guestArgs...), "m")
			dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
			times, err := qmptest.RoundTrips(limit(t), dial, "", 70) // without go-qemu, which has data races
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{qmptest.Bare, qmptest.Sampler, qmptest.Conn} {
				if len(times[name]) != 70 {
					t.Errorf("%s: %d times, want 70", name, len(times[name]))
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			if _, err := qmptest.RoundTrips(ctx, dial, "", 1e6); err == nil {
				t.Error("a context that ends: want an error")
			}
			if _, _, err := qmptest.Driver(limit(t), "pigeon", dial, ""); err == nil {
				t.Error("unknown driver: want an error")
			}
		})
	}
}
