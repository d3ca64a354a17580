// Package procfs reads what the kernel says of processes in /proc. Source: proc(5).
package procfs

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Reader reads a file, as os.ReadFile does on this machine.
type Reader func(name string) ([]byte, error)

// Dir is the folder of a process or of a thread.
type Dir string

// Process is the folder of a process.
func Process(pid int) Dir { return Dir(fmt.Sprintf("/proc/%d", pid)) }

// Thread is the folder of one thread of a process.
func Thread(pid, id int) Dir { return Dir(fmt.Sprintf("/proc/%d/task/%d", pid, id)) }

// Stat is a part of the file stat.
type Stat struct {
	Name  string // of the program or the thread, 15 bytes at most: field 2
	State byte   // R, S, D, T, t, Z, X, I: field 3
	Start uint64 // clock ticks since boot: field 22
}

// Stat reads the file stat.
func (d Dir) Stat(read Reader) (Stat, error) {
	b, err := read(string(d) + "/stat")
	if err != nil {
		return Stat{}, err
	}
	return ParseStat(b)
}

// ParseStat reads the content of the file stat. The name is in parentheses and may hold anything, also parentheses and
// line ends; the other fields come after the last parenthesis.
func ParseStat(b []byte) (Stat, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return Stat{}, fmt.Errorf("read process state: no name in %q", b)
	}
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) < 20 || len(fields[0]) != 1 {
		return Stat{}, fmt.Errorf("read process state: want 52 fields, found %q", b)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Stat{}, fmt.Errorf("read process state: start time: %w", err)
	}
	return Stat{Name: string(b[open+1 : end]), State: fields[0][0], Start: start}, nil
}

// Schedule is the file schedstat. That of a process is its main thread's.
type Schedule struct {
	Ran   time.Duration // on a processor: field 1
	Turns uint64        // times that it got a processor: field 3
}

// Schedule reads the file schedstat.
func (d Dir) Schedule(read Reader) (Schedule, error) {
	b, err := read(string(d) + "/schedstat")
	if err != nil {
		return Schedule{}, err
	}
	s, err := ParseSchedule(b)
	if err != nil {
		return Schedule{}, fmt.Errorf("read %s/schedstat: %w", d, err)
	}
	return s, nil
}

// ParseSchedule reads the content of the file schedstat: two times in ns and a count.
func ParseSchedule(b []byte) (Schedule, error) {
	var n [3]uint64
	fields := strings.Fields(string(b))
	if len(fields) != len(n) {
		return Schedule{}, fmt.Errorf("want three numbers, found %q", b)
	}
	for i, f := range fields {
		var err error
		if n[i], err = strconv.ParseUint(f, 10, 63); err != nil {
			return Schedule{}, fmt.Errorf("want three numbers, found %q", b)
		}
	}
	return Schedule{Ran: time.Duration(n[0]), Turns: n[2]}, nil
}

// Value is what a file of lines such as "VmRSS:	    1234 kB" says of key: status, fdinfo, /proc/meminfo, /proc/cpuinfo.
// It is "" if there is no such line, and of several it is the first.
func Value(b []byte, key string) string {
	for line := range bytes.Lines(b) {
		if k, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(k)) == key {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// Bytes is Value in bytes: the files' kB are KiB. It is 0 if there is no such number.
func Bytes(b []byte, key string) int64 {
	n, err := strconv.ParseInt(strings.TrimSuffix(Value(b, key), " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

// SoftLimit is what the file limits says of a resource, such as "Max locked memory"; nil if it is not limited.
func SoftLimit(limits []byte, resource string) (*int64, error) {
	for line := range strings.Lines(string(limits)) {
		rest, ok := strings.CutPrefix(line, resource+" ")
		if !ok {
			continue
		}
		soft, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if soft == "unlimited" {
			return nil, nil
		}
		n, err := strconv.ParseInt(soft, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("limits: want a number or unlimited, found %q", line)
		}
		return &n, nil
	}
	return nil, fmt.Errorf("limits: no line %s", resource)
}

// Args are the words of the file cmdline or environ.
func Args(b []byte) []string {
	b = bytes.TrimSuffix(b, []byte{0})
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

// IDs is one line of the file uid_map: Count numbers from Inside on are those from Outside on of the namespace around.
type IDs struct{ Inside, Outside, Count uint32 }

// ParseIDs reads the content of the file uid_map.
func ParseIDs(b []byte) (all []IDs, err error) {
	for line := range strings.Lines(string(b)) {
		var x IDs
		if _, err := fmt.Sscan(line, &x.Inside, &x.Outside, &x.Count); err != nil {
			return nil, fmt.Errorf("want three numbers, found %q", line)
		}
		all = append(all, x)
	}
	return all, nil
}
