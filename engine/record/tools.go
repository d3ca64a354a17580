package record

import (
	"fmt"
	"time"
)

// Tools is what the real tools of a guest did across the migration, and whether they are content.
type Tools struct {
	Program *Program     `json:"program,omitempty"` // the workload, where it is a program: sysbench, iperf3, stress-ng
	SSH     *SSHSession  `json:"ssh,omitempty"`
	Redis   *RedisWriter `json:"redis,omitempty"`
}

// Program is a program that ran in the guest from before the migration until after it.
type Program struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"` // of its Debian package
	Reports int    `json:"reports"`           // that it made: about one a second
	// the sum of its reports: sysbench's events, iperf3's bytes at the guest's end, stress-ng's bogo ops
	Events      float64       `json:"events"`
	Time        time.Duration `json:"time_ns"` // of its reports, on the guest's clock
	Retransmits *int64        `json:"retransmits,omitempty"`
	// iperf3: what its other end, on the observer, counted, by its summary's rate
	OtherEnd *int64 `json:"other_end_bytes,omitempty"`
	Error    string `json:"error,omitempty"` // why its own check failed; empty: it passed
}

// SSHSession is a session from the observer to the guest with a running command that prints a number a line.
type SSHSession struct {
	Server string `json:"server,omitempty"` // as it calls itself
	Lines  int64  `json:"lines"`            // received, each one more than the one before
	// that the command had printed, by its own count at the end, and were not received
	LinesLost int64          `json:"lines_lost"`
	Resets    int            `json:"resets"`               // connections that broke
	Longest   *time.Duration `json:"longest_ns,omitempty"` // between two lines, by the observer's clock
	Error     string         `json:"error,omitempty"`
}

// RedisWriter is what wrote to the guest's redis from the observer.
type RedisWriter struct {
	Version      string         `json:"version,omitempty"`
	Connections  int            `json:"connections"`
	Acknowledged int64          `json:"writes_acknowledged"`
	Lost         int64          `json:"writes_lost"`          // acknowledged, and not there when they were read back
	Wrong        int64          `json:"writes_wrong"`         // there with another content, twice, or never sent
	Resets       int            `json:"resets"`               // connections that broke, or gave no answer for a minute
	Longest      *time.Duration `json:"longest_ns,omitempty"` // from a write to its acknowledgement
	Error        string         `json:"error,omitempty"`
}

// Failures says what is wrong, a sentence each; none if all is well.
func (t *Tools) Failures() (all []string) {
	if t == nil {
		return nil
	}
	if p := t.Program; p != nil && p.Error != "" {
		all = append(all, fmt.Sprintf("%s failed its check: %s", p.Name, p.Error))
	}
	if s := t.SSH; s != nil && (s.Error != "" || s.Resets > 0 || s.LinesLost > 0 || s.Lines == 0) {
		all = append(all, fmt.Sprintf("the ssh session did not survive: %d lines received, %d lost, %d resets%s", s.Lines,
			s.LinesLost, s.Resets, because(s.Error)))
	}
	if r := t.Redis; r != nil && (r.Error != "" || r.Resets > 0 || r.Lost > 0 || r.Wrong > 0 || r.Acknowledged == 0) {
		all = append(all, fmt.Sprintf("redis: of %d acknowledged writes %d are lost, %d entries are wrong, %d resets%s",
			r.Acknowledged, r.Lost, r.Wrong, r.Resets, because(r.Error)))
	}
	return all
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

// ToolFailures says what is wrong with what had to survive: the tools, and the HTTP requests that were made beside
// them.
func (m *Migration) ToolFailures() []string {
	if m.Tools == nil {
		return nil
	}
	all := m.Tools.Failures()
	if w := m.Web; w != nil {
		failed, answered := 0, 0
		for _, p := range w.Phases {
			failed += p.Errors
			answered += p.Requests - p.Errors
		}
		if w.Resets > 0 || w.Wrong > 0 || w.Unanswered > 0 || failed > 0 || answered == 0 {
			all = append(all, fmt.Sprintf("web: of %d answered requests %d are wrong, %d failed, %d unanswered, %d resets",
				answered, w.Wrong, failed, w.Unanswered, w.Resets))
		}
	}
	return all
}
