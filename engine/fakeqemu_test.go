package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/fit"
)

// fakeQEMU answers the engine's commands on the real wire, for states that a real QEMU is hard to bring into. A
// command that it does not know is refused as QEMU refuses it, which the engine takes for an older QEMU. What a
// command needs of QEMU's state is as in the sources of its version (migration/migration.c).
type fakeQEMU struct {
	name    string
	version string // 7.2, 10.0 (default) or 11.1

	mu        sync.Mutex
	status    string // query-status
	migration string // query-migrate
	outgoing  bool   // query-migrate tells of a migration that it sent, with a section `ram`; default: it is called source
	moving    bool   // it sends: each answer to query-migrate has more bytes than the last
	sent      int64  // bytes
	remaining int64  // bytes
	deaf      bool   // commands are read and never answered
	away      bool   // it lives, and nobody gets a new connection
	conns     []net.Conn
	seen      []string
	died      chan struct{}
	nodes     []string                 // its block nodes' names
	jobs      []string                 // its block jobs
	on        map[string]func()        // what a command does beside being answered; called with the lock held
	refuse    map[string]func() string // why a command is refused (GenericError); "": it is not; called before on, like it
	says      map[string]string        // the answers to commands, as JSON, where they are not the usual ones
	slow      map[string]time.Duration // the answer, made at once, is sent so much later

	planning sync.Mutex
	planned  []planned // what later is to do, in its order
}

func newFake(t *testing.T, name, status, migration string) *fakeQEMU {
	q := &fakeQEMU{
		name: name, version: "10.0", status: status, migration: migration, outgoing: name == "source",
		sent: 1 << 20, remaining: 128 << 20, died: make(chan struct{}),
		on: map[string]func(){}, refuse: map[string]func() string{}, slow: map[string]time.Duration{},
	}
	q.on["stop"] = func() {
		if q.status == "running" {
			q.status = "paused"
			q.event(`"STOP"`)
		}
	}
	q.on["cont"] = func() {
		if q.status == "inmigrate" { // it will start by itself
			return
		}
		q.event(`"RESUME"`)
		q.status = "running"
	}
	q.on["quit"] = func() { q.status = "dead" }
	q.on["migrate-pause"] = func() { q.later(10*time.Millisecond, func() { q.migrating("postcopy-paused") }) }
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
	q.cut()
}

// cut closes the monitors of one that lives on; the lock is held.
func (q *fakeQEMU) cut() {
	for _, nc := range q.conns {
		nc.Close()
	}
	q.conns = nil
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

// switchOver is QEMU's own stop of a source's guest, and what the migration is then; the lock is held.
func (q *fakeQEMU) switchOver(migration string) {
	q.status = "finish-migrate"
	q.event(`"STOP"`)
	q.migrating(migration)
}

// failBack is a source whose migration has failed, and which runs the guest again by itself; the lock is held.
func (q *fakeQEMU) failBack() {
	q.migrating("failed")
	q.event(`"RESUME"`)
	q.status = "running"
}

// do is something that happens to it, unless it is dead.
func (q *fakeQEMU) do(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.status != "dead" {
		f()
	}
}

// later is do after a time. What is due first comes first, also on a busy machine, where timers overtake each other.
func (q *fakeQEMU) later(d time.Duration, f func()) {
	due := time.Now().Add(d)
	q.planning.Lock()
	i := slices.IndexFunc(q.planned, func(p planned) bool { return p.due.After(due) })
	if i < 0 {
		i = len(q.planned)
	}
	q.planned = slices.Insert(q.planned, i, planned{due, f})
	q.planning.Unlock()
	time.AfterFunc(d, func() {
		q.do(func() {
			q.planning.Lock()
			first := q.planned[0]
			q.planned = q.planned[1:]
			q.planning.Unlock()
			first.do()
		})
	})
}

type planned struct {
	due time.Time
	do  func()
}

func (q *fakeQEMU) runState() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.status
}

// got tells whether it was sent the command; a `migrate` with resume is a `resume`.
func (q *fakeQEMU) got(command string) bool { return q.count(command) > 0 }

// count is how often it was sent the command.
func (q *fakeQEMU) count(command string) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range q.seen {
		if c == command {
			n++
		}
	}
	return n
}

func (q *fakeQEMU) endpoint() *endpoint.Endpoint {
	dial := func(context.Context) (net.Conn, error) {
		ours, theirs, err := socketPair()
		if err != nil {
			return nil, err
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.status == "dead" || q.away {
			ours.Close()
			theirs.Close()
			return nil, &net.OpError{Op: "dial", Net: "unix", Err: refusedError}
		}
		q.conns = append(q.conns, theirs)
		go q.serve(theirs)
		return ours, nil
	}
	return &endpoint.Endpoint{Name: q.name, Control: dial, Events: dial, Process: fakeProcess{q}}
}

// fakeProcess is the process of a fake, which has one vCPU thread.
type fakeProcess struct{ *fakeQEMU }

func (p fakeProcess) Kill(context.Context) error          { p.end(); return nil }
func (p fakeProcess) Done() <-chan struct{}               { return p.died }
func (fakeProcess) HasThread(id int) bool                 { return id == 1 }
func (fakeProcess) MainThreadCPU() (time.Duration, error) { return 0, errors.New("a fake has none") }

func (q *fakeQEMU) serve(nc net.Conn) {
	defer nc.Close()
	v := map[string][3]int{"7.2": {7, 2, 22}, "10.0": {10, 0, 2}, "11.1": {11, 1, 3}}[q.version]
	fmt.Fprintf(nc, `{"QMP":{"version":{"qemu":{"major":%d,"minor":%d,"micro":%d},"package":""},"capabilities":["oob"]}}`+
		"\n",
		v[0], v[1], v[2])
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
		command := c.Execute + c.OOB
		if command == "migrate" && strings.Contains(string(c.Arguments), `"resume":true`) {
			command = "resume"
		}
		q.mu.Lock()
		if !slices.Contains(q.conns, nc) { // it was cut before the command was read
			q.mu.Unlock()
			return
		}
		q.seen = append(q.seen, command)
		if !q.deaf {
			reply := []byte(`{` + q.answer(command, string(c.Arguments)) + `,"id":` + string(c.ID) + "}\n")
			if d := q.slow[command]; d > 0 {
				q.later(d, func() { _, _ = nc.Write(reply) })
			} else {
				_, _ = nc.Write(reply)
			}
		}
		dead := q.status == "dead"
		q.mu.Unlock()
		if dead {
			q.end()
			return
		}
	}
}

// refusal is why QEMU refuses a command in the state that it is in; "": it does not.
func (q *fakeQEMU) refusal(command string) string {
	if f := q.refuse[command]; f != nil {
		if text := f(); text != "" {
			return text
		}
	}
	paused, alive := q.migration == "postcopy-paused", q.migration == "postcopy-active"
	switch command {
	case "cont":
		if q.status == "finish-migrate" {
			return "Migration is not finalized yet"
		}
	case "migrate_cancel":
		if strings.HasPrefix(q.migration, "postcopy-") && q.version != "7.2" {
			return "Postcopy migration in progress, cannot cancel."
		}
	case "migrate-pause": // 7.2's takes postcopy-active alone
		if !alive && !(q.migration == "postcopy-recover" && q.version != "7.2") {
			return "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
		}
	case "migrate-recover":
		if !paused {
			return "Migrate recover can only be run when postcopy is paused."
		}
	case "resume":
		if !paused {
			return "Cannot resume if there is no paused migration"
		}
	}
	return ""
}

func (q *fakeQEMU) answer(command, arguments string) string {
	if text := q.refusal(command); text != "" {
		return `"error":{"class":"GenericError","desc":` + strconv.Quote(text) + `}`
	}
	if command == "migrate" {
		q.outgoing = true
	}
	if f := q.on[command]; f != nil {
		f()
	}
	if value, ok := q.says[command]; ok {
		return `"return":` + value
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
		if q.moving {
			q.sent += 1 << 20
		}
		switch q.migration {
		case "none", "setup", "failed", "cancelled":
		default:
			if q.outgoing {
				ram = fmt.Sprintf(`,"ram":{"transferred":%d,"remaining":%d,"total":268435456,"duplicate":0,"normal":256,`+
					`"dirty-pages-rate":0,"mbps":8,"dirty-sync-count":2}`, q.sent, q.remaining)
			}
		}
		if q.migration == "completed" && q.outgoing {
			ram += `,"total-time":1000,"downtime":10`
		}
		return `"return":{"status":"` + q.migration + `"` + ram + `}`
	case "query-migrate-capabilities":
		var all []string
		for _, name := range []string{"events", "postcopy-ram", "return-path", "release-ram", "pause-before-switchover",
			"background-snapshot"} {
			all = append(all, `{"capability":"`+name+`","state":false}`)
		}
		return `"return":[` + strings.Join(all, ",") + `]`
	case "query-migrate-parameters":
		return `"return":{"max-bandwidth":1,"downtime-limit":300}`
	case "query-memory-size-summary":
		return `"return":{"base-memory":268435456}`
	case "query-named-block-nodes":
		const node = `{"node-name":%q,"ro":false,"drv":"raw","image":{"filename":"x","virtual-size":1048576}}`
		return `"return":[` + objects(node, q.nodes) + `]`
	case "query-block-jobs":
		return `"return":[` + objects(`{"device":%q,"type":"mirror","len":1,"offset":0}`, q.jobs) + `]`
	case "blockdev-del", "block-job-cancel":
		q.nodes = fit.Without(q.nodes, arguments, command == "blockdev-del")
		q.jobs = fit.Without(q.jobs, arguments, command == "block-job-cancel")
		return `"return":{}`
	case "query-chardev", "query-block-exports", "query-block", "query-qmp-schema":
		return `"return":[]`
	case "query-cpus-fast":
		return `"return":[{"cpu-index":0,"thread-id":1,"qom-path":"/cpu"}]`
	case "query-kvm":
		return `"return":{"enabled":false}`
	case "qom-get":
		if arguments == `{"path":"/machine","property":"type"}` {
			return `"return":"pc-q35-7.2-machine"`
		}
	case "qmp_capabilities", "migrate-set-capabilities", "migrate-set-parameters", "migrate-incoming", "migrate", "resume",
		"getfd", "migrate-start-postcopy", "migrate-pause", "migrate-recover", "migrate_cancel", "yank", "stop", "cont", "quit":
		return `"return":{}`
	}
	return `"error":{"class":"CommandNotFound","desc":"The command ` + command + ` has not been found"}`
}

// objects is a list of JSON objects, one of each name.
func objects(format string, names []string) string {
	var all []string
	for _, name := range names {
		all = append(all, fmt.Sprintf(format, name))
	}
	return strings.Join(all, ",")
}
