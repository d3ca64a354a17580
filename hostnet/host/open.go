package host

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	openLimit  = 30 * time.Second // for a helper to be there, and for each piece of it on its way
	askLimit   = 2 * time.Minute  // where a user may be asked for something
	greetLimit = 256 << 10        // bytes of a login's greeting
)

// way is how a command is run on a host: the words before it, in a program of ours, and how that tells its troubles.
type way struct {
	name  string   // the host, as users write it
	words []string // "ssh", "-T", "lab@10.0.0.1", "--"
	env   []string
	shell bool // the words after are one word for the host's shell, and not the words of a command
	// terminal is where the program may ask its user; nil: it may not. Only one program may have it at a time.
	terminal *os.File
	// explain makes one line of what the program said on its standard error before a helper was there, and how it ended.
	explain func(said string, err error) error
}

// bootstrap is run by the host's shell. It tells what the machine is, and receives the helper if that is not there. Its
// words are the helper's content, its size and the folder of the cache, which may be empty: then it is the first of
// some in which this user can write. A container's home may be read-only.
const bootstrap = `u=$(umask)
umask 077
say() { printf '\001qmigrate-bootstrap %s\n' "$*"; }
m=$(uname -m)
[ "$m" = x86_64 ] || { say machine "$m"; exit 0; }
case $3 in "~/"*) set -- "$1" "$2" "$HOME/${3#??}" ;; esac
# Where everybody may write, somebody else may have made the folder, and could put another program into it.
ours() { case $1 in /var/tmp/*) [ -O "$1" ] && ! [ -h "$1" ] ;; esac; }
d=
for c in "${3:-$QMIGRATE_CACHE}" "${XDG_CACHE_HOME:-$HOME/.cache}/qmigrate" /var/cache/qmigrate \
 "/var/tmp/qmigrate-$(id -u)"; do
 [ -n "$c" ] || continue
 d=$c/helper
 mkdir -p "$d" 2>/dev/null && [ -w "$d" ] && { [ "$c" = "$3" ] || { [ -O "$d" ] && ours "$c"; }; } && break
 [ "$c" != "${3:-$QMIGRATE_CACHE}" ] || { say folder "$d"; exit 0; }
 d=
done
[ -n "$d" ] || { say folder "$c"; exit 0; }
QMIGRATE_CACHE=$c
export QMIGRATE_CACHE
f=$d/$1
if ! [ -x "$f" ]; then
 t=$d/.new-$$
 say send
 head -c "$2" >"$t" 2>/dev/null && [ "$(wc -c <"$t")" -eq "$2" ] && chmod 700 "$t" && mv -f "$t" "$f" ||
  { rm -f "$t"; say space "$d" "$(df -Pk "$d" 2>/dev/null | tail -n 1)"; exit 0; }
fi
umask "$u"
say run "$f"
"$f" serve
s=$?
[ $s = 126 ] && say forbidden "$f"
exit $s
`

// dial opens a channel by a way. The program is the helper, and cache the folder on the host that it is kept in; "" is
// the user's.
func (w way) dial(ctx context.Context, program []byte, cache string) (_ *Far, err error) {
	sum := sha256.Sum256(program)
	content := hex.EncodeToString(sum[:])
	// `exec sh` would do, but for shells that are no sh.
	cmd := w.command([]string{"sh", "-c", bootstrap, "sh", content, strconv.Itoa(len(program)), cache})
	said := &tail{}
	cmd.Stderr = said
	cmd.WaitDelay = streamGrace
	c, err := startOn(cmd)
	if err != nil {
		return nil, fmt.Errorf("reach host %s: %w", w.name, w.explain("", err))
	}
	defer func() {
		if err != nil {
			c.end()
		}
	}()
	limit := openLimit
	if w.terminal != nil {
		limit = askLimit
	}
	var late atomic.Bool
	timer := time.AfterFunc(limit, func() { late.Store(true); c.Close() })
	defer timer.Stop()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	r := bufio.NewReaderSize(c.out, greetLimit)
	// Over a slow link the helper may be under way for longer than an answer.
	h, noise, err := w.greet(r, progress{c.in, func() { timer.Reset(limit) }}, program, content)
	w.takeBack()
	switch {
	case !stop() && ctx.Err() != nil:
		err = ctx.Err()
	case late.Load() && said.String() != "":
		err = fmt.Errorf("no answer within %s; so far it said %q", limit, lastWords(said.String()))
	case late.Load():
		err = fmt.Errorf("no answer within %s", limit)
	case errors.Is(err, errNoHelper):
		c.end() // what it says last is the reason
		err = w.explain(noise+"\n"+said.String(), c.Err())
	case errors.As(err, new(*startError)):
		c.end()
		err = fmt.Errorf("%w (%v): %s", err, c.Err(), lastWords(said.String()))
	}
	if err != nil {
		return nil, fmt.Errorf("reach host %s: %w", w.name, err)
	}
	session, err := yamux.Client(struct {
		io.Reader
		io.WriteCloser
	}{r, &joined{WriteCloser: struct {
		io.Writer
		io.Closer
	}{c.in, c}}}, sessionConfig())
	if err != nil {
		return nil, fmt.Errorf("reach host %s: %w", w.name, err)
	}
	said.begin()
	f := &Far{channel: &channel{name: w.name, hello: h, session: session, child: c, said: said.String,
		lists: map[uint64]*farListener{}}}
	go f.accept()
	return f, nil
}

// progress is a writer that tells of each piece that is written.
type progress struct {
	io.Writer
	written func()
}

func (p progress) Write(b []byte) (total int, err error) {
	for len(b) > 0 {
		n, err := p.Writer.Write(b[:min(len(b), 64<<10)])
		if total += n; err != nil {
			return total, err
		}
		b = b[n:]
		p.written()
	}
	return total, nil
}

// command is the program that runs a command on the host.
func (w way) command(line []string) *exec.Cmd {
	words := append([]string{}, w.words...)
	if w.shell {
		words = append(words, quoted(line))
	} else {
		words = append(words, line...)
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), w.env...)
	// A terminal's Ctrl-C is for us: what the host has made is removed through the channel first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if w.terminal != nil { // only who is in its foreground may ask there
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(w.terminal.Fd())
	}
	return cmd
}

// carrier is the program that carries a channel, and our ends of its standard streams.
type carrier struct {
	*child
	in, out *os.File
}

// startOn starts a program with its standard input and output connected to us.
func startOn(cmd *exec.Cmd) (c *carrier, err error) {
	var theirs [2]*os.File
	c = &carrier{child: &child{cmd: cmd, done: make(chan struct{})}}
	ours := c
	defer func() {
		for _, f := range theirs {
			if f != nil {
				f.Close()
			}
		}
		if err != nil {
			ours.Close()
		}
	}()
	if theirs[0], c.in, err = os.Pipe(); err != nil {
		return nil, err
	}
	if c.out, theirs[1], err = os.Pipe(); err != nil {
		return nil, err
	}
	cmd.Stdin, cmd.Stdout = theirs[0], theirs[1]
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if st, err := readStat(cmd.Process.Pid); err == nil {
		c.start = st.Start
	}
	go c.wait()
	return c, nil
}

// Close closes our ends.
func (c *carrier) Close() error {
	for _, f := range []*os.File{c.in, c.out} {
		if f != nil {
			f.Close() // once or twice
		}
	}
	return nil
}

// end closes our ends and waits for the program's end, which comes by force if not by itself.
func (c *carrier) end() {
	c.Close()
	for _, sig := range []os.Signal{nil, syscall.SIGTERM, syscall.SIGKILL} {
		if sig != nil {
			_ = c.Signal(sig)
		}
		select {
		case <-c.done:
			return
		case <-time.After(streamGrace):
		}
	}
}

var errNoHelper = errors.New("no helper")

// greet takes the host through the bootstrap to the helper's hello. noise is the last line that was said before.
func (w way) greet(r *bufio.Reader, in io.Writer, program []byte, content string) (h hello, noise string, err error) {
	const mark = "\x01qmigrate-bootstrap "
	helper := "" // its file, when it has been started
	for read := 0; ; {
		b, err := r.ReadSlice('\n')
		read += len(b)
		switch {
		case errors.Is(err, bufio.ErrBufferFull), read > greetLimit:
			return h, noise, fmt.Errorf("its login says more than %d KiB, and no helper starts: let it say nothing where nobody "+
				"looks (see .bashrc)", greetLimit>>10)
		case err != nil && helper != "":
			return h, noise, &startError{helper}
		case err != nil:
			return h, noise, errNoHelper
		}
		line := strings.TrimRight(string(b), "\r\n")
		if _, said, ok := strings.Cut(line, helloMark); ok {
			if err := json.Unmarshal([]byte(said), &h); err != nil {
				return h, noise, fmt.Errorf("its helper says what this program does not understand: %w", err)
			}
			found := ""
			switch {
			case h.Protocol != Protocol:
				found = fmt.Sprintf("version %d of the protocol, and this qmigrate has version %d", h.Protocol, Protocol)
			case h.Content != content:
				found = fmt.Sprintf("content %.12s, and this qmigrate's is %.12s", h.Content, content)
			default:
				return h, noise, nil
			}
			return h, noise, fmt.Errorf("its helper is another one: it has %s: remove it there, and the right one is sent: rm %s",
				found, helper)
		}
		_, said, ok := strings.Cut(line, mark)
		if !ok {
			if strings.TrimSpace(line) != "" {
				noise = line
			}
			continue
		}
		const another = "give another folder as `cache` in a hosts file, or as QMIGRATE_CACHE in that user's environment"
		what, rest, _ := strings.Cut(said, " ")
		switch what {
		case "send":
			_, _ = io.Copy(in, bytes.NewReader(program)) // the host says what went wrong
		case "run":
			helper = rest
		case "machine":
			return h, noise, &UnsupportedError{Feature: "a helper", Reason: "that machine is " + rest +
				", and the helper is a program for x86_64"}
		case "folder":
			return h, noise, fmt.Errorf("folder %s, for the helper, cannot be made there: %s", rest, another)
		case "space":
			folder, df, _ := strings.Cut(rest, " ")
			free := ""
			if f := strings.Fields(df); len(f) > 3 {
				free = ", " + f[3] + " KiB free"
			}
			return h, noise, fmt.Errorf("the helper (%d KiB) could not be written there: folder %s%s: make room, or %s",
				len(program)>>10, folder, free, another)
		case "forbidden":
			return h, noise, fmt.Errorf("the helper may not be run there: %s: its file system is mounted noexec, or a security "+
				"module forbids it: %s", rest, another)
		}
	}
}

// startError says that a helper was started and ended at once.
type startError struct{ file string }

func (e *startError) Error() string { return "its helper, " + e.file + ", ends at once" }

// quoted is a command as one word for a POSIX shell.
func quoted(words []string) string {
	all := make([]string, len(words))
	for i, w := range words {
		all[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(all, " ")
}

// tail keeps the end of what a program says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailBytes = 4 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if n := len(t.b) - tailBytes; n > 0 {
		t.b = t.b[n:]
	}
	return len(b), nil
}

// begin forgets what was said so far.
func (t *tail) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
