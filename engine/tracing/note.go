package tracing

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"qmigrate/engine/endpoint"
	"qmigrate/internal/atomicfile"
	"qmigrate/internal/procfs"
	"qmigrate/qmp"
)

// Notes is a folder of this user's with a note for each QEMU whose trace events qmigrate has switched on. It is made
// when needed. "" keeps none: then what a killed qmigrate has switched on stays so.
type Notes string

// note is what is written down before the switch.
type note struct {
	QEMU string   `json:"qemu"`     // as Who has it
	Off  []string `json:"off"`      // the events that were off
	By   process  `json:"qmigrate"` // who switched them on
}

// process is a qmigrate of this machine.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

func us() process {
	s, _ := procfs.Process(os.Getpid()).Stat(os.ReadFile) // 0 where /proc does not tell
	return process{os.Getpid(), s.Start}
}

// lives tells whether another qmigrate than this one is still at it.
func (p process) lives() bool {
	s, err := procfs.Process(p.PID).Stat(os.ReadFile)
	return err == nil && s.Start == p.Start && p != us()
}

// Who is the QEMU behind an endpoint: its process, where that is known, else its address.
func Who(ep *endpoint.Endpoint) string {
	if p, ok := ep.Process.(endpoint.Identified); ok {
		if id := p.Identity(); id != "" {
			return id
		}
	}
	return ep.Name
}

func (n Notes) file(who string) string {
	sum := sha256.Sum256([]byte(who))
	return filepath.Join(string(n), hex.EncodeToString(sum[:12])+".json")
}

// read reads the note of a QEMU; nil if there is none. One that is damaged is none, and is removed.
func (n Notes) read(who string) (*note, error) {
	if n == "" {
		return nil, nil
	}
	b, err := os.ReadFile(n.file(who))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	var x note
	if json.Unmarshal(b, &x) != nil || x.QEMU != who {
		return nil, n.remove(who)
	}
	return &x, nil
}

func (n Notes) write(x note) error {
	if n == "" {
		return nil
	}
	if err := os.MkdirAll(string(n), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	return atomicfile.Write(n.file(x.QEMU), append(b, '\n'), 0o600)
}

func (n Notes) remove(who string) error {
	if n == "" {
		return nil
	}
	if err := os.Remove(n.file(who)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// answerLimit is how long a QEMU may take over some of these commands: some milliseconds are usual, seconds come of a
// machine that is overloaded.
const answerLimit = 5 * time.Second

// Restore switches off what a qmigrate that has died had switched on in this QEMU. It does nothing where there is no
// note, or where another qmigrate is at it. The note stays as long as it has not succeeded.
func (n Notes) Restore(ctx context.Context, c *qmp.Conn, who string) error {
	x, err := n.read(who)
	if err != nil || x == nil || x.By.lives() || x.By == us() {
		return err
	}
	if err := off(ctx, c, x.Off); err != nil {
		return fmt.Errorf("switch trace events off that an interrupted qmigrate had switched on: %w", err)
	}
	return n.remove(who)
}

// off switches events off; one that QEMU does not know is off.
func off(ctx context.Context, c *qmp.Conn, events []string) error {
	return forEach(ctx, events, func(ctx context.Context, i int) error {
		if err := c.SetTraceEvent(ctx, events[i], false); err != nil && !qmp.IsRefusal(err) {
			return err
		}
		return nil
	})
}
