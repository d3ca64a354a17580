package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"qmigrate/engine"
)

// fakeQEMU answers the engine's commands on the real wire, for states that a real QEMU is hard to bring into. A command that it does
// not know is refused as QEMU refuses it, which the engine takes for an older QEMU.
type fakeQEMU struct {
	name string

	mu        sync.Mutex
	status    string // query-status
	migration string // query-migrate
	deaf      bool   // commands are read and never answered
	conns     []net.Conn
	seen      []string
	died      chan struct{}
	on        map[string]func() // what a command does beside being answered; called with the lock held
}

func newFake(t *testing.T, name, status, migration string) *fakeQEMU {
	q := &fakeQEMU{name: name, status: status, migration: migration, died: make(chan struct{}), on: map[string]func(){}}
	q.on["stop"] = func() {
		if q.status == "running" {
			q.status = "paused"
			q.event(`"STOP"`)
		}
	}
	q.on["cont"] = func() {
		q.event(`"RESUME"`)
		q.status = "running"
	}
	q.on["quit"] = func() { q.status = "dead" }
	t.Cleanup(q.end)
	return q
}

// end closes every monitor, as a QEMU's death does.
func (q *fakeQEMU) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.status = "dead"
	select {
	case <-q.died:
	default:
		close(q.died)
	}
	for _, nc := range q.conns {
		nc.Close()
	}
}

// event is sent on every monitor; the lock is held.
func (q *fakeQEMU) event(text string) {
	for _, nc := range q.conns {
		_, _ = nc.Write([]byte(`{"event":` + text + "}\n"))
	}
}

// migrating is a MIGRATION event and what query-migrate says from then on; the lock is held.
func (q *fakeQEMU) migrating(status string) {
	q.migration = status
	q.event(`"MIGRATION","data":{"status":"` + status + `"}`)
}

// do is something that happens to it.
func (q *fakeQEMU) do(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
}

func (q *fakeQEMU) runState() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.status
}

// got tells whether it was sent the command.
func (q *fakeQEMU) got(command string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Contains(q.seen, command)
}

func (q *fakeQEMU) endpoint() *engine.Endpoint {
	dial := func(context.Context) (net.Conn, error) {
		ours, theirs, err := socketPair()
		if err != nil {
			return nil, err
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.status == "dead" {
			ours.Close()
			theirs.Close()
			return nil, &net.OpError{Op: "dial", Net: "unix", Err: refusedError}
		}
		q.conns = append(q.conns, theirs)
		go q.serve(theirs)
		return ours, nil
	}
	return &engine.Endpoint{Name: q.name, Control: dial, Events: dial, Process: fakeProcess{q}}
}

// fakeProcess is the process of a fake, which has one vCPU thread.
type fakeProcess struct{ *fakeQEMU }

func (p fakeProcess) Kill(context.Context) error          { p.end(); return nil }
func (p fakeProcess) Done() <-chan struct{}               { return p.died }
func (fakeProcess) HasThread(id int) bool                 { return id == 1 }
func (fakeProcess) MainThreadCPU() (time.Duration, error) { return 0, errors.New("a fake has none") }

func (q *fakeQEMU) serve(nc net.Conn) {
	defer nc.Close()
	_, _ = nc.Write([]byte(`{"QMP":{"version":{"qemu":{"major":10,"minor":0,"micro":2},"package":""},"capabilities":["oob"]}}` + "\n"))
	for in := json.NewDecoder(nc); ; {
		var c struct {
			Execute   string          `json:"execute"`
			OOB       string          `json:"exec-oob"`
			Arguments json.RawMessage `json:"arguments"`
			ID        json.RawMessage `json:"id"`
		}
		if in.Decode(&c) != nil {
			return
		}
		q.mu.Lock()
		q.seen = append(q.seen, c.Execute+c.OOB)
		if !q.deaf {
			reply := q.answer(c.Execute+c.OOB, string(c.Arguments))
			_, _ = nc.Write([]byte(`{` + reply + `,"id":` + string(c.ID) + "}\n"))
		}
		dead := q.status == "dead"
		q.mu.Unlock()
		if dead {
			q.end()
			return
		}
	}
}

func (q *fakeQEMU) answer(command, arguments string) string {
	if f := q.on[command]; f != nil {
		f()
	}
	switch command {
	case "query-status":
		running := "false"
		if q.status == "running" {
			running = "true"
		}
		return `"return":{"status":"` + q.status + `","running":` + running + `}`
	case "query-migrate":
		ram := ""
		if q.migration == "active" {
			ram = `,"ram":{"transferred":1048576,"remaining":134217728,"total":268435456,"duplicate":0,"normal":256,"dirty-pages-rate":0,"mbps":8,"dirty-sync-count":2}`
		}
		return `"return":{"status":"` + q.migration + `"` + ram + `}`
	case "query-migrate-capabilities":
		return `"return":[{"capability":"events","state":false},{"capability":"postcopy-ram","state":false}]`
	case "query-migrate-parameters":
		return `"return":{"max-bandwidth":1,"downtime-limit":300}`
	case "query-memory-size-summary":
		return `"return":{"base-memory":268435456}`
	case "query-chardev", "query-block-jobs", "query-named-block-nodes":
		return `"return":[]`
	case "query-cpus-fast":
		return `"return":[{"cpu-index":0,"thread-id":1,"qom-path":"/cpu"}]`
	case "query-kvm":
		return `"return":{"enabled":false}`
	case "qom-get":
		if arguments == `{"path":"/machine","property":"type"}` {
			return `"return":"pc-q35-7.2-machine"`
		}
	case "qmp_capabilities", "migrate-set-capabilities", "migrate-set-parameters", "migrate-incoming", "migrate", "migrate-start-postcopy", "migrate_cancel", "yank", "stop", "cont", "quit":
		return `"return":{}`
	}
	return `"error":{"class":"CommandNotFound","desc":"The command ` + command + ` has not been found"}`
}
