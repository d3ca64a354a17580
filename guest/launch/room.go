package launch

import (
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Memory is what a guest needs of its host, in bytes.
type Memory struct {
	Ordinary int64
	Huge     map[int64]int64 // by the size of a huge page
}

// room reads /proc and /sys in root.
func room(root fs.FS, need Memory, limits Limits, cgroup string) error {
	read := func(name string) map[string]int64 {
		b, err := fs.ReadFile(root, name)
		if err != nil {
			return nil
		}
		return numbers(string(b))
	}
	for _, size := range slices.Sorted(maps.Keys(need.Huge)) {
		dir := fmt.Sprintf("sys/kernel/mm/hugepages/hugepages-%dkB/", size>>10)
		pages := read(dir + "free_hugepages")[""] - read(dir + "resv_hugepages")[""]
		if want := (need.Huge[size] + size - 1) / size; pages < want {
			return fmt.Errorf("%d huge pages of %d KiB are free, and a second guest needs %d: reserve more in /%snr_hugepages",
				max(pages, 0), size>>10, want, dir)
		}
	}
	all := need.Ordinary
	for _, n := range need.Huge {
		all += n
	}
	if limits.Space != nil && *limits.Space < all {
		return fmt.Errorf("our processes may have %s of address space, and a second guest needs %s: raise `ulimit -v`",
			mebibytes(*limits.Space), mebibytes(all))
	}
	const kibi = 1 << 10
	if m := read("proc/meminfo"); m != nil {
		if have := (m["MemAvailable"] + m["SwapFree"]) * kibi; have < need.Ordinary {
			return fmt.Errorf("%s of memory and swap are free, and a second guest needs %s: make room, "+
				"or move it to another machine", mebibytes(have), mebibytes(need.Ordinary))
		}
	}
	for line := range strings.Lines(cgroup) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		base, limit, used := "sys/fs/cgroup", "memory.max", "memory.current"
		if f[1] != "" { // version 1
			if !slices.Contains(strings.Split(f[1], ","), "memory") {
				continue
			}
			base, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
		}
		for dir := path.Join(base, f[2]); strings.HasPrefix(dir, base); dir = path.Dir(dir) {
			b, err := fs.ReadFile(root, path.Join(dir, limit))
			if err != nil {
				continue
			}
			most, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			if err != nil || most > math.MaxInt64/2 { // "max", or version 1's for none
				continue
			}
			cache := read(path.Join(dir, "memory.stat"))
			have := most - read(path.Join(dir, used))[""] + cache["inactive_file"] + cache["active_file"]
			if have < need.Ordinary {
				return fmt.Errorf("the control group /%s has room for %s more, and a second guest needs %s: raise %s, "+
					"or run qmigrate in another group", dir, mebibytes(max(have, 0)), mebibytes(need.Ordinary), limit)
			}
		}
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// numbers reads lines NAME NUMBER and NAME: NUMBER kB; a number alone has the name "".
func numbers(s string) map[string]int64 {
	all := map[string]int64{}
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		name, at := "", 0
		if len(f) > 1 {
			name, at = strings.TrimSuffix(f[0], ":"), 1
		}
		if len(f) > at {
			if n, err := strconv.ParseInt(f[at], 10, 64); err == nil {
				all[name] = n
			}
		}
	}
	return all
}

// Less says which of the source's limits are higher than ours, with which the destination is started: those of the
// process that starts it.
func (p *Process) Less(ours Limits) (doubts []string) {
	for _, l := range []struct {
		what         string
		theirs, ours *int64
	}{{"open files", p.Limits.Files, ours.Files}, {"bytes of locked memory", p.Limits.Locked, ours.Locked}} {
		if l.ours != nil && (l.theirs == nil || *l.theirs > *l.ours) {
			theirs := "any number of"
			if l.theirs != nil {
				theirs = strconv.FormatInt(*l.theirs, 10)
			}
			doubts = append(doubts, fmt.Sprintf("the source may have %s %s, the destination %d: "+
				"raise qmigrate's own limit with `ulimit`", theirs, l.what, *l.ours))
		}
	}
	return doubts
}
