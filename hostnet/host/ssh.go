package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// SSH is how the user's own OpenSSH is called.
type SSH struct {
	Program string   // "": ssh
	Options []string // as after -o: "Port=2222"
	Config  string   // file for -F; "": the user's
}

// sshTarget is a host written ssh://[USER@]HOST[:PORT].
type sshTarget struct{ user, host, port string }

func parseSSH(name string) (t sshTarget, err error) {
	u, err := url.Parse(name)
	switch {
	case err != nil, u.Scheme != "ssh", u.Hostname() == "", strings.Trim(u.Path, "/") != "", u.RawQuery != "",
		u.Fragment != "":
		return t, fmt.Errorf("host %q: write it as ssh://[USER@]HOST[:PORT]", name)
	}
	if _, has := u.User.Password(); has {
		return t, fmt.Errorf("host ssh://%s: a password has no place here: ssh asks for it, or use a key", u.Host)
	}
	t = sshTarget{u.User.Username(), u.Hostname(), u.Port()}
	if strings.HasPrefix(t.host, "-") || strings.HasPrefix(t.user, "-") {
		return t, fmt.Errorf("host %q: a name cannot begin with -", name)
	}
	return t, nil
}

// command is ssh's command line up to the host. What is asked for here is needed for a channel; all else is as the user
// has it configured.
func (s SSH) command(t sshTarget) []string {
	words := []string{cmp.Or(s.Program, "ssh"), "-T", "-x"}
	if s.Config != "" {
		words = append(words, "-F", s.Config)
	}
	for _, o := range s.Options {
		words = append(words, "-o", o)
	}
	// The first value of an option counts, so that the user's own come first.
	for _, o := range []string{"ClearAllForwardings=yes", "RemoteCommand=none", "EscapeChar=none",
		"ConnectTimeout=15"} {
		words = append(words, "-o", o)
	}
	if !terminal() {
		words = append(words, "-o", "BatchMode=yes")
	}
	if t.port != "" {
		words = append(words, "-p", t.port)
	}
	if t.user != "" {
		words = append(words, "-l", t.user)
	}
	return append(words, "--", t.host)
}

// terminal tells whether there is somebody whom ssh can ask: it opens /dev/tty for that.
func terminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

func (s SSH) way(name string) (way, error) {
	t, err := parseSSH(name)
	if err != nil {
		return way{}, err
	}
	return way{name: name, words: s.command(t), shell: true, explain: func(said string, err error) error {
		return explainSSH(t, said, err)
	}}, nil
}

// explainSSH is one line of what ssh said and what to try.
func explainSSH(t sshTarget, said string, err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: install OpenSSH's client, or name one with `ssh`", err)
	}
	line := lastWords(said)
	login := strings.TrimPrefix(t.user+"@"+t.host, "@")
	if t.port != "" {
		login = "-p " + t.port + " " + login
	}
	mend := "try `ssh " + login + " true`, which must work without a question"
	for _, known := range []struct{ part, mend string }{
		{"REMOTE HOST IDENTIFICATION HAS CHANGED", "the host has another key than known_hosts says: is it another machine, or " +
			"was it set up anew? Then `ssh-keygen -R " + t.host + "`"},
		{"Host key verification failed", "its key is not in known_hosts: log in once by hand, `ssh " + login + "`, and compare it"},
		{"Permission denied", "it does not let you in: try `ssh " + login + "`; a key has to be in its authorized_keys, " +
			"and in your agent if it has a passphrase"},
		{"Could not resolve hostname", "no such name: give an address, or a Host of your ssh_config"},
		{"Connection refused", "no sshd listens there: give the port, as in ssh://HOST:PORT"},
		{"No route to host", "that network cannot be reached from here"},
		{"timed out", "it does not answer: is it on, and does a firewall let port 22 through?"},
		{"Too many authentication failures", "give the key with `ssh-option` IdentitiesOnly=yes and IdentityFile=FILE"},
		{"Bad configuration option", "see `ssh-option` and your ssh_config"},
		{"not found", "its login shell runs no sh, or has no PATH"},
		{"account is currently not available", "that user may not log in: give another one"},
	} {
		if strings.Contains(said, known.part) {
			if known.part == "REMOTE HOST IDENTIFICATION HAS CHANGED" {
				line = "REMOTE HOST IDENTIFICATION HAS CHANGED"
			}
			mend = known.mend
			break
		}
	}
	if line == "" {
		return fmt.Errorf("ssh says nothing and ends (%v): %s", plain(err), mend)
	}
	return fmt.Errorf("ssh says %q: %s", line, mend)
}

// plain is an error without our own part of it.
func plain(err error) error {
	if e := new(exec.ExitError); errors.As(err, &e) {
		return e
	}
	return err
}

// lastWords is the last line of a text that says something.
func lastWords(said string) string {
	lines := strings.Split(strings.ReplaceAll(said, "\r", ""), "\n")
	for _, l := range slices.Backward(lines) {
		if l = strings.TrimSpace(l); l != "" && !strings.Contains(l, "@@@@") && !strings.HasPrefix(l, "Connection closed by") {
			return l
		}
	}
	return strings.TrimSpace(said)
}
