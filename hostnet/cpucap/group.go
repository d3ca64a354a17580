package cpucap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"qmigrate/hostnet/internal/mark"
)

// removeLimit is how long a group may take to be removed.
const removeLimit = 10 * time.Second

func (c *Cap) write(file, value string) error { return c.host.WriteFile(file, []byte(value), 0o644) }

// typeOf is a v2 group's type; empty if the kernel has none to tell (before 4.14).
func (c *Cap) typeOf(group string) string {
	b, _ := c.host.ReadFile(path.Join(group, "cgroup.type"))
	return strings.TrimSpace(string(b))
}

// has looks for a word in one of the kernel's lists.
func (c *Cap) has(file, word string) bool {
	b, err := c.host.ReadFile(file)
	if err != nil {
		return false
	}
	for _, w := range strings.Fields(string(b)) {
		if w == word {
			return true
		}
	}
	return false
}

// make makes the group, without quota and threads.
func (c *Cap) make() error {
	c.home = c.tree.home
	if c.tree.kind == "v1" {
		c.base, c.group, c.outer = c.home, path.Join(c.home, c.spec.name()), ""
		return c.host.MkdirAll(c.group, 0o755)
	}
	return c.makeUnified()
}

// makeUnified makes the group of v2. There a thread may leave its process's group only for a threaded one below it. So
// the process gets a group, where the controller is on: in the nearest group above its own that has it for its children
// and lets us. Where none has, it is switched on, for the process's own group or one above it; a group with processes
// in it that is not the root then takes threads only, and the process stays. Source:
// Documentation/admin-guide/cgroup-v2.rst, "Threads".
func (c *Cap) makeUnified() error {
	reason := fmt.Errorf("the cgroup v2 hierarchy in %s has no cpu controller", c.tree.mount)
	for _, enable := range []bool{false, true} {
		for dir := c.home; ; dir = path.Dir(dir) {
			on := c.has(path.Join(dir, "cgroup.subtree_control"), "cpu")
			if !on && enable && c.has(path.Join(dir, "cgroup.controllers"), "cpu") {
				if err := c.write(path.Join(dir, "cgroup.subtree_control"), "+cpu"); err != nil {
					reason = err
				} else {
					on, c.enabled = true, dir
				}
			}
			if on {
				err := c.makeIn(dir)
				if err == nil {
					return nil
				}
				reason = err
				if err := c.remove(); err != nil {
					return errors.Join(reason, err)
				}
			}
			if dir == c.tree.mount || len(dir) <= len(c.tree.mount) {
				break
			}
		}
	}
	return reason
}

func (c *Cap) makeIn(dir string) error {
	own := path.Join(dir, c.spec.name())
	if err := c.host.MkdirAll(own, 0o755); err != nil {
		return err
	}
	c.base, c.group, c.outer = dir, own, ""
	switch kind := c.typeOf(own); kind {
	case "domain", "domain threaded":
		c.outer, c.group = own, path.Join(own, "vcpu")
		if err := c.write(path.Join(own, "cgroup.subtree_control"), "+cpu"); err != nil {
			return err
		}
		if err := c.host.MkdirAll(c.group, 0o755); err != nil {
			return err
		}
	case "domain invalid", "threaded": // dir takes threads only
	default:
		return fmt.Errorf("group %s is of the type %q: this kernel's cgroup v2 has no threads", own, kind)
	}
	if c.typeOf(c.group) != "threaded" {
		if err := c.write(path.Join(c.group, "cgroup.type"), "threaded"); err != nil {
			return err
		}
	}
	if c.outer == "" { // so that nobody can switch the controller off in dir while this one needs it
		return c.write(path.Join(own, "cgroup.subtree_control"), "+cpu")
	}
	return nil
}

// enter puts the threads into the group.
func (c *Cap) enter() error {
	if len(c.spec.Threads) == 0 {
		return nil
	}
	if c.outer != "" {
		if err := c.write(path.Join(c.outer, "cgroup.procs"), strconv.Itoa(c.spec.PID)); err != nil {
			return fmt.Errorf("put process %d into group %s: %w", c.spec.PID, c.outer, err)
		}
	}
	for _, id := range c.spec.Threads {
		if err := c.write(path.Join(c.group, c.threadsFile()), strconv.Itoa(id)); err != nil {
			return fmt.Errorf("put thread %d into group %s: %w", id, c.group, err)
		}
	}
	return nil
}

func (c *Cap) threadsFile() string {
	if c.tree.kind == "v1" {
		return "tasks"
	}
	return "cgroup.threads"
}

// leave puts the threads back. Those that have ended cannot be; if others cannot either, the group stays, and remove
// says so.
func (c *Cap) leave() {
	if len(c.spec.Threads) == 0 {
		return
	}
	if _, err := c.host.Stat(fmt.Sprintf("/proc/%d", c.spec.PID)); err != nil {
		return
	}
	if c.outer != "" {
		_ = c.write(path.Join(c.home, "cgroup.procs"), strconv.Itoa(c.spec.PID)) // all of its threads with it
		return
	}
	for _, id := range c.spec.Threads {
		_ = c.write(path.Join(c.home, c.threadsFile()), strconv.Itoa(id))
	}
}

// remove removes the groups, which takes a moment after the last of their threads has ended.
func (c *Cap) remove() error {
	if c.group == "" {
		return nil
	}
	var err error
	gone := func(group string) error {
		if _, err := c.host.Stat(group); group == "" || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return c.host.RemoveAll(group) // a group without groups goes in one piece, its files with it
	}
	for deadline := time.Now().Add(removeLimit); ; time.Sleep(2 * time.Millisecond) {
		if err = gone(c.group); err == nil {
			err = gone(c.outer)
		}
		if err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		if b, readErr := c.host.ReadFile(path.Join(c.group, c.threadsFile())); readErr == nil && len(b) > 0 {
			err = fmt.Errorf("threads are in it still: %s", strings.Join(strings.Fields(string(b)), " "))
		}
		return fmt.Errorf("remove CPU cap %s: %w", c.group, err)
	}
	if c.enabled != "" {
		_ = c.write(path.Join(c.enabled, "cgroup.subtree_control"), "-cpu") // refused while another cap needs it
	}
	c.group, c.outer, c.enabled = "", "", ""
	return nil
}

// removeCaps removes the groups of an owner, when the processes in them are dead.
func Remove(ctx context.Context, owner string) (removed []string, err error) {
	groups, err := capGroups(mark.Prefix + owner + "-")
	errs := []error{err}
	for _, g := range groups {
		if o, ok := mark.Owner(g); !ok || o != owner {
			continue
		}
		for {
			_ = os.Remove(path.Join(g, "vcpu")) // v2; if it cannot go, nor can g
			if err = os.Remove(g); err == nil || errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
		if err == nil {
			removed = append(removed, "CPU cap "+g)
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}
