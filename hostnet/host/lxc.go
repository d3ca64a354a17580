package host

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
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
// liblxc:FOLDER/NAME with an absolute folder.
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
		return "", "", "", fmt.Errorf("host lxc:%s: write it as lxc:NAME, or lxc:liblxc/NAME, lxc:lxd/NAME, lxc:incus/NAME", rest)
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
	w := way{name: host, explain: func(said string, err error) error {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%w: %s is not installed", err, kind)
		}
		return fmt.Errorf("%s says %q: is the container running, and may you enter it?", kind, lastWords(said))
	}}
	switch kind {
	case LibLXC:
		w.words = []string{"lxc-attach"}
		if folder != "" {
			w.words = append(w.words, "-P", folder)
		}
		w.words = append(w.words, "-n", name, "--clear-env", "--set-var", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"--set-var", "HOME=/root", "--")
	case LXD:
		w.words = []string{"lxc", "exec", name, "-T", "--"}
	case Incus:
		w.words = []string{"incus", "exec", name, "-T", "--"}
	}
	return w, nil
}

// ownerOf finds out who knows a container of that name. Two that do are a question for the user.
func ownerOf(ctx context.Context, name string) (LXC, error) {
	var found, looked []LXC
	for kind, words := range map[LXC][]string{LibLXC: {"lxc-info", "-n", name, "-s", "-H"},
		LXD:   {"lxc", "list", "--format", "csv", "-c", "n", "^" + name + "$"},
		Incus: {"incus", "list", "--format", "csv", "-c", "n", "^" + name + "$"}} {
		if _, err := exec.LookPath(words[0]); err != nil {
			continue
		}
		looked = append(looked, kind)
		out, err := exec.CommandContext(ctx, words[0], words[1:]...).Output()
		if said := strings.TrimSpace(string(out)); err == nil && (kind == LibLXC && said != "" || said == name) {
			found = append(found, kind)
		}
	}
	switch {
	case len(looked) == 0:
		return "", errors.New("neither liblxc (lxc-attach), LXD (lxc) nor Incus (incus) is installed")
	case len(found) == 0:
		return "", fmt.Errorf("%v know no container of that name, or you may not ask", looked)
	case len(found) > 1:
		return "", fmt.Errorf("%v each have one: say which, as in lxc:%s/%s", found, found[0], name)
	}
	return found[0], nil
}
