package main

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

// monitor is what a QEMU 10.0.2 answers until it is changed; recorded, but for the introspection, which is cut down.
func monitor(runState, migration, socket string) *fake {
	return &fake{
		before:  `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}` + "\n",
		answers: -1,
		replies: map[string]string{
			"query-status":               fmt.Sprintf(`{"status": %q, "running": %v}`, runState, runState == "running"),
			"qom-get type":               `"pc-q35-7.2-machine"`,
			"qom-get memory":             `{"size": 67108864, "max-size": 67108864, "slots": 0}`,
			"qom-get feature-words":      `[]`,
			"query-block":                `[]`,
			"query-block-exports":        `[]`,
			"query-hotpluggable-cpus":    `[]`,
			"query-memdev":               `[]`,
			"x-query-ramblock":           `{"human-readable-text": ""}`,
			"human-monitor-command":      `""`,
			"query-memory-size-summary":  `{"base-memory": 67108864, "plugged-memory": 0}`,
			"query-cpus-fast":            `[{"thread-id": 1, "props": {}, "qom-path": "/machine/unattached/device[0]", "cpu-index": 0, "target": "x86_64"}]`,
			"query-kvm":                  `{"enabled": false, "present": true}`,
			"query-migrate-capabilities": `[{"state": false, "capability": "xbzrle"}, {"state": false, "capability": "events"}]`,
			"query-migrate-parameters":   `{"max-bandwidth": 134217728, "downtime-limit": 300}`,
			"query-migrate":              migration,
			"query-block-jobs":           "[]",
			"query-chardev":              fmt.Sprintf(`[{"frontend-open": true, "filename": "unix:%s,server=on", "label": "control"}]`, socket),
			"query-commands":             `[{"name": "query-status"}, {"name": "query-qmp-schema"}]`,
			"query-qmp-schema":           `[{"name": "migrate-set-parameters", "ret-type": "0", "meta-type": "command", "arg-type": "1"}, {"name": "0", "members": [], "meta-type": "object"}, {"name": "1", "members": [{"name": "max-bandwidth", "default": null, "type": "int"}], "meta-type": "object"}, {"name": "int", "json-type": "int", "meta-type": "builtin"}]`,
		},
	}
}

// TestMonitorDies cuts the handshake and the inspection before, and in the middle of, each message of a monitor: each time the command
// ends soon, with status 1 and one line that names the side. A monitor that dies when all has been asked may find the pair refused.
func TestMonitorDies(t *testing.T) {
	for _, cut := range []struct {
		name string
		args []string // a and b are sockets
		side string
	}{
		{"caps", []string{"caps", "unix:a"}, "a"},
		{"source", []string{"migrate", "--source", "unix:a", "--destination", "unix:b"}, "a"},
		{"destination", []string{"migrate", "--source", "unix:a", "--destination", "unix:b"}, "b"},
		{"parameter", []string{"migrate", "--source", "unix:a", "--destination", "unix:b", "--parameter", "max-postcopy-bandwidth=1"}, "a"},
		{"recover", []string{"migrate", "--source", "unix:a", "--destination", "unix:b", "--recover"}, "a"},
	} {
		t.Run(cut.name, func(t *testing.T) {
			died := 0
			for n := 0; ; n++ {
				for _, half := range []bool{false, true} {
					if !dies(t, cut.args, cut.side, n, half) {
						if n < 9 {
							t.Errorf("only %d cuts were in time", n)
						}
						return
					}
					died++
				}
			}
		})
	}
}

// dies runs the command with the monitor dying at message n, and returns false if there was no such message.
func dies(t *testing.T, args []string, side string, n int, half bool) bool {
	t.Helper()
	dir := guesttest.Dir(t)
	t.Setenv("QMIGRATE_CACHE", filepath.Join(dir, "cache"))
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	monitors := map[string]*fake{"a": monitor("running", "{}", a), "b": monitor("paused", "{}", b)} // b refuses: it was not started with -incoming
	f := monitors[side]
	f.cutting, f.cut, f.half = true, n, half
	for name, m := range maps.All(monitors) {
		stop, err := m.serve(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
	}
	words := []string{"qmigrate"}
	for _, w := range args {
		w = strings.Replace(w, "unix:a", "unix:"+a, 1)
		words = append(words, strings.Replace(w, "unix:b", "unix:"+b, 1))
	}
	if args[0] == "migrate" {
		words = append(words, "--out", filepath.Join(dir, "out"))
	}
	var stdout, stderr bytes.Buffer
	begin := time.Now()
	status := run(within.Context(t), words, nil, &stdout, &stderr)
	took := time.Since(begin)
	if !f.died() {
		return false
	}
	said := stderr.String()
	named := strings.Contains(said, "unix:"+filepath.Join(dir, side)) || strings.Contains(said, "source: ") || strings.Contains(said, "is not waiting for a migration")
	if status != 1 || strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "qmigrate: ") || strings.Contains(said, "internal error") || !named {
		t.Errorf("cut %d (half a line: %v): status %d, standard error:\n%s", n, half, status, said)
	}
	if took > patience/2 {
		t.Errorf("cut %d (half a line: %v): took %s", n, half, took)
	}
	if args[0] == "migrate" {
		if left, _ := filepath.Glob(filepath.Join(dir, "out", "*")); len(left) > 0 {
			t.Errorf("cut %d: left %q", n, left)
		}
	}
	return true
}
