package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// LXC is whose a container is: liblxc's, LXD's or Incus's.
type LXC string

// The kinds of containers, as users write them in lxc:KIND/NAME.
const (
	LibLXC LXC = "liblxc"
	LXD    LXC = "lxd"
	Incus  LXC = "incus"
)

// parseLXC reads NAME or KIND/NAME; the kind is "" where it is not said. A name in a folder of liblxc's own is
// liblxc/FOLDER/NAME with an absolute folder; without it, a container that runs is found in any.
func parseLXC(rest string) (kind LXC, folder, name string, err error) {
	name = rest
	for _, k := range []LXC{LibLXC, LXD, Incus} {
		if after, ok := strings.CutPrefix(rest, string(k)+"/"); ok {
			kind, name = k, after
		}
	}
	if kind == LibLXC {
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			folder, name = "/"+strings.Trim(name[:i], "/"), name[i+1:]
		}
	}
	if name == "" || strings.ContainsAny(name, "/ \t\n") || strings.HasPrefix(name, "-") {
		return "", "", "", fmt.Errorf("host lxc:%s: write it as lxc:NAME, or lxc:liblxc/NAME, lxc:lxd/NAME, lxc:incus/NAME",
			rest)
	}
	return kind, folder, name, nil
}

// lxcWay finds out whose a container is, and how a command is run in it.
func lxcWay(ctx context.Context, host, rest string) (way, error) {
	kind, folder, name, err := parseLXC(rest)
	if err != nil {
		return way{}, err
	}
	if kind == "" {
		if kind, err = ownerOf(ctx, name); err != nil {
			return way{}, fmt.Errorf("host lxc:%s: %w", name, err)
		}
	}
	w := way{name: host, explain: func(said string, err error) error { return explainLXC(kind, name, said, err) }}
	switch kind {
	case LibLXC:
		if folder == "" {
			folder = lxcPath(name)
		}
		w.words = []string{"lxc-attach"}
		if folder != "" {
			w.words = append(w.words, "-P", folder)
		}
		w.words = append(w.words, "-n", name, "--clear-env", "--set-var",
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "--set-var", "HOME=/root", "--")
	case LXD:
		w.words = []string{"lxc", "exec", name, "-T", "--"}
	case Incus:
		w.words = []string{"incus", "exec", name, "-T", "--"}
	}
	return w, nil
}

// lxcPath is the folder in which liblxc has a container of this user that runs, by the title of the process that
// watches over it; "" if none is seen. LXD's, which are liblxc's too, do not count: they are in a folder of its daemon.
func lxcPath(name string) (folder string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		info, err := os.Stat(line)
		if err != nil {
			continue
		}
		// Others may call their processes what they like.
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		b, _ := os.ReadFile(line)
		title, _, _ := strings.Cut(string(b), "\x00")
		title, monitor := strings.CutPrefix(title, "[lxc monitor] ")
		at, its := strings.CutSuffix(title, " "+name)
		if monitor && its && !strings.Contains(at, " ") && filepath.Base(at) != "containers" {
			return at
		}
	}
	return ""
}

// explainLXC is one line of what a manager of containers said and what to try.
func explainLXC(kind LXC, name, said string, err error) error {
	client := string(kind)
	if kind == LXD {
		client = "lxc"
	}
	if errors.Is(err, exec.ErrNotFound) {
		mend := "install the package " + client
		if kind == LibLXC {
			mend = "as root run `apt install lxc`"
		}
		return fmt.Errorf("%w: %s", err, mend)
	}
	known := []struct{ part, mend string }{
		{"Instance not found", "it has no container of that name: `" + client + " list` shows those that it has"},
		{"is not running", "start it: `" + client + " start " + name + "`"},
		{"Command not found", "the container has no sh"},
		{"socket: connect: permission denied", "this user may not use it: run as root, or as a member of its group"},
		{"socket: connect:", "its daemon does not run, or is another one than LXD_DIR or INCUS_DIR says"},
	}
	if kind == LibLXC {
		known = []struct{ part, mend string }{
			{"Failed to get init pid", "there is no such container, or it does not run: `lxc-ls --fancy` shows those that " +
				"there are, `lxc-start -n " + name + "` starts it"},
			{"Failed to exec", "the container has no sh"},
			{"Permission denied", "this user may not enter it: run as root, or as the user who started it"},
			{"Operation not permitted", "this user may not enter it: run as root, or as the user who started it"},
		}
	}
	line, mend := lxcWords(said), "is the container running, and may you enter it?"
	for _, k := range known {
		if strings.Contains(said, k.part) {
			mend = k.mend
			break
		}
	}
	if line == "" {
		return fmt.Errorf("%s says nothing and ends (%v): %s", kind, plain(err), mend)
	}
	return fmt.Errorf("%s says %q: %s", kind, line, mend)
}

// lxcWords is what a manager of containers said that tells most: the first error, without the place in its source.
func lxcWords(said string) string {
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if what, ok := strings.CutPrefix(line, "Error: "); ok {
			return what
		}
		if i := strings.LastIndex(line, " - "); i >= 0 && strings.HasPrefix(line, "lxc-") { // lxc-attach: NAME: FILE: FUNCTION: LINE
			return line[i+len(" - "):]
		}
	}
	return lastWords(said)
}

// ownerOf finds out who knows a container of that name. Two that do are a question for the user.
func ownerOf(ctx context.Context, name string) (LXC, error) {
	var found, looked []LXC
	var unable []string
	for _, m := range []struct {
		kind  LXC
		words []string
	}{{LibLXC, []string{"lxc-info", "-n", name, "-s", "-H"}},
		{LXD, []string{"lxc", "list", "--format", "csv", "-c", "n", "^" + name + "$"}},
		{Incus, []string{"incus", "list", "--format", "csv", "-c", "n", "^" + name + "$"}}} {
		if _, err := exec.LookPath(m.words[0]); err != nil {
			continue
		}
		looked = append(looked, m.kind)
		if m.kind == LibLXC && lxcPath(name) != "" {
			found = append(found, m.kind)
			continue
		}
		out, err := exec.CommandContext(ctx, m.words[0], m.words[1:]...).Output()
		said := strings.TrimSpace(string(out))
		switch exit := new(exec.ExitError); {
		case err == nil && (m.kind == LibLXC && said != "" || said == name):
			found = append(found, m.kind)
		case errors.As(err, &exit) && m.kind != LibLXC: // lxc-info says by that that there is none
			unable = append(unable, fmt.Sprintf("%s cannot be asked (%s)", m.kind, lxcWords(string(exit.Stderr))))
		}
	}
	switch {
	case len(looked) == 0:
		return "", errors.New("neither liblxc (lxc-attach), LXD (lxc) nor Incus (incus) is installed")
	case len(found) == 0 && len(unable) > 0:
		return "", fmt.Errorf("no container of that name was found, and %s", strings.Join(unable, ", "))
	case len(found) == 0:
		return "", fmt.Errorf("no container of that name: asked were %v", looked)
	case len(found) > 1:
		return "", fmt.Errorf("%v each have one: say which, as in lxc:%s/%s", found, found[0], name)
	}
	return found[0], nil
}
