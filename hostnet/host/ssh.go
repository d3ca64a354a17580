package host

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
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
func (s SSH) command(t sshTarget, asks bool) []string {
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
	if !asks {
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

// terminal is where ssh can ask its user: our controlling terminal, while we are in its foreground. nil: nowhere.
func terminal() *os.File {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	if group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err != nil || group != unix.Getpgrp() {
		f.Close()
		return nil
	}
	return f
}

// takeBack brings us to the foreground of the terminal again.
func (w way) takeBack() {
	if w.terminal == nil {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Whoever is in the background is stopped for the try, unless it blocks the signal.
	var stop, old unix.Sigset_t
	stop.Val[0] = 1 << (unix.SIGTTOU - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &stop, &old) == nil {
		_ = unix.IoctlSetPointerInt(int(w.terminal.Fd()), unix.TIOCSPGRP, unix.Getpgrp())
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	}
}

func (s SSH) way(name string) (way, error) {
	t, err := parseSSH(name)
	if err != nil {
		return way{}, err
	}
	tty := terminal()
	return way{name: name, words: s.command(t, tty != nil), shell: true, terminal: tty,
		explain: func(said string, err error) error { return s.explain(t, said, err) }}, nil
}

// explain is one line of what ssh said and what to try.
func (s SSH) explain(t sshTarget, said string, err error) error {
	program := cmp.Or(s.Program, "ssh")
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: install OpenSSH's client, or name one with `ssh`", plain(err))
	}
	login := strings.TrimPrefix(t.user+"@"+t.host, "@")
	if t.port != "" {
		login = "-p " + t.port + " " + login
	}
	try := "`" + filepath.Base(program) + " " + login + "`"
	lines := strings.Split(strings.ReplaceAll(said, "\r", ""), "\n")
	having := func(part string) string {
		i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, part) })
		if i < 0 {
			return ""
		}
		return strings.TrimSpace(lines[i])
	}
	forget := having("ssh-keygen -")
	if forget == "" {
		forget = "ssh-keygen -R " + t.host
	}
	where := ""
	if having("UNKNOWN port 65535") != "" || having("stdio forwarding failed") != "" {
		where = "on the way there " // by a jump host, or a ProxyCommand: ssh knows no peer
	}
	for _, known := range []struct{ part, mend string }{
		{"REMOTE HOST IDENTIFICATION HAS CHANGED", "the host has another key than known_hosts says: is it another machine, " +
			"or was it set up anew? Then `" + forget + "`"},
		{"host key is known for", "log in once by hand, " + try + ", and compare the key"},
		{"Host key verification failed", "log in once by hand, " + try + ", and compare the key"},
		{"Permission denied", "it does not let you in: try " + try + "; a key has to be in its authorized_keys, " +
			"and in your agent if it has a passphrase"},
		{"Could not resolve hostname", "no such name: give an address, or a Host of your ssh_config"},
		{"Name or service not known", "the jump host knows no such name: give an address as HostName"},
		{"Temporary failure in name resolution", "the jump host knows no such name: give an address as HostName"},
		{"Connection refused", "no sshd listens there: is it another port? Write ssh://HOST:PORT"},
		{"No route to host", "is it on, and on that network?"},
		{"Network is unreachable", "no way leads to that network from here"},
		{"timed out", "is it on, and does a firewall let ssh through?"},
		{"Too many authentication failures", "give the key by an ssh-option, IdentitiesOnly=yes and IdentityFile=FILE"},
		{"Bad configuration option", "see your ssh_config, and ssh-option"},
		{"unsupported option", "see your ssh_config, and ssh-option"},
		{"not currently available", "that user may not log in: give another one, as in ssh://USER@HOST"},
		{"currently not available", "that user may not log in: give another one, as in ssh://USER@HOST"},
		{"not found", "its login shell finds no sh: has it a PATH?"},
		{"Connection closed by", "it ends the connection: try " + try},
		{"Connection reset by", "it ends the connection: try " + try},
	} {
		if line := having(known.part); line != "" {
			return fmt.Errorf("%sssh says %q: %s", where, strings.Trim(line, "@ "), known.mend)
		}
	}
	try = "`" + filepath.Base(program) + " " + login + " sh -c true`"
	if line := lastWords(said); line != "" {
		return fmt.Errorf("%sssh says %q: try %s, which must work", where, line, try)
	}
	if err = plain(err); err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("its login runs no sh and says nothing (%w): try %s, which must work", err, try)
}

// plain is how a program ended.
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
		if l = strings.TrimSpace(l); l != "" {
			return l
		}
	}
	return ""
}
