package cpucap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// cgroups is one mounted hierarchy of control groups that may have the cpu controller, as one process sees it.
type cgroups struct {
	kind  string // v1 or v2
	mount string // folder of its root
	home  string // folder of the group that the process is in
}

// cpuTrees finds the hierarchies with the cpu controller, v1 first: where that one has the controller, v2 does not.
// Sources: cgroups(7), proc_pid_mountinfo(5).
func cpuTrees(read func(string) ([]byte, error), pid int) (all []cgroups, err error) {
	groups, err := read(fmt.Sprintf("/proc/%d/cgroup", pid)) // lines of number:controllers:path
	if err != nil {
		return nil, err
	}
	mounts, err := read("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var second []cgroups
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		t := cgroups{kind: "v1"}
		if f[1] == "" {
			t.kind = "v2"
		} else if !hasWord(f[1], "cpu") {
			continue
		}
		if t.mount, t.home = cgroupFolder(string(mounts), t.kind, f[2]); t.mount == "" {
			continue
		}
		if t.kind == "v1" {
			all = append(all, t)
		} else {
			second = append(second, t)
		}
	}
	return append(all, second...), nil
}

// cgroupFolder finds where a hierarchy with the cpu controller is mounted, and there the folder of a group.
func cgroupFolder(mountinfo, kind, group string) (mount, folder string) {
	for line := range strings.Lines(mountinfo) {
		m, ok := parseMount(line)
		if !ok || m.kind != kind {
			continue
		}
		rel := group
		if m.root != "/" { // a part of the hierarchy is mounted, as in a container
			if rel, ok = strings.CutPrefix(group, m.root); !ok || rel != "" && rel[0] != '/' {
				continue
			}
		}
		// /.. is another namespace's
		if folder := path.Join(m.point, rel); folder == m.point || strings.HasPrefix(folder, m.point+"/") {
			return m.point, folder
		}
	}
	return "", ""
}

// cgroupMount is a mounted hierarchy that has, or may have, the cpu controller.
type cgroupMount struct{ kind, root, point string }

// parseMount reads a line of mountinfo: id parent device ROOT POINT options [optional...] - TYPE source SUPER-OPTIONS.
func parseMount(line string) (m cgroupMount, ok bool) {
	head, tail, ok := strings.Cut(line, " - ")
	h, t := strings.Fields(head), strings.Fields(tail)
	if !ok || len(h) < 6 || len(t) < 3 {
		return m, false
	}
	m.root, m.point = unescape(h[3]), unescape(h[4])
	switch {
	case t[0] == "cgroup2":
		m.kind = "v2"
	case t[0] == "cgroup" && hasWord(t[2], "cpu"):
		m.kind = "v1"
	}
	return m, m.kind != ""
}

// unescape undoes what mountinfo writes for blanks and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// capGroups are the folders of all groups on this machine whose name begins so, in every mounted hierarchy with the cpu
// controller.
func capGroups(begin string) (all []string, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(mounts)) {
		m, ok := parseMount(line)
		if !ok || seen[m.point] {
			continue
		}
		seen[m.point] = true
		err := filepath.WalkDir(m.point, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil && name == m.point:
				return err
			case err != nil: // it went while we looked, or is nothing of ours
				return fs.SkipDir
			case !d.IsDir():
				return nil
			case strings.HasPrefix(d.Name(), begin):
				all = append(all, name)
				return fs.SkipDir
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return all, err
		}
	}
	return all, nil
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}
