package load

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"qmigrate/engine/lab/observe"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// sshKeys are those of one lab: the guest's sshd proves that it has the one, and lets in who has the other.
type sshKeys struct {
	host   ssh.PublicKey
	client ssh.Signer
}

// makeKeys makes both pairs and gives the guest its halves.
func makeKeys(ctx context.Context, a *guest.Agent) (k sshKeys, err error) {
	_, hostKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return k, err
	}
	_, clientKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return k, err
	}
	signer, err := ssh.NewSignerFromSigner(hostKey)
	if err != nil {
		return k, err
	}
	k.host = signer.PublicKey()
	if k.client, err = ssh.NewSignerFromSigner(clientKey); err != nil {
		return k, err
	}
	block, err := ssh.MarshalPrivateKey(hostKey, "")
	if err != nil {
		return k, err
	}
	for _, f := range []wire.PutFile{
		{Path: wire.SSHHostKey, Data: pem.EncodeToMemory(block), Mode: 0o600},
		{Path: wire.SSHAuthorizedKeys, Data: ssh.MarshalAuthorizedKey(k.client.PublicKey()), Mode: 0o600},
	} {
		if err := a.Call(ctx, wire.DoPutFile, f, nil); err != nil {
			return k, err
		}
	}
	return k, nil
}

// sshSession is one session with a running command. It has one connection: if that breaks, it is broken.
type sshSession struct {
	client  *ssh.Client
	session *ssh.Session
	stdin   io.WriteCloser
	tally   *observe.Tally
	all     sync.WaitGroup
	first   chan struct{} // closed with the first line

	mu      sync.Mutex
	server  string
	next    int64 // the number that the next line should have
	lost    int64
	last    time.Time
	longest time.Duration
	ended   bool // the command has said its last number, and it was right
	err     error
}

// counting prints a number a line, and waits as long in between; at the line "end" it says how many there were. It
// forks nothing: read is the shell's own. What of the line came before a time-out is kept.
const counting = `i=0; p=; while :; do echo $((i++)); read -t %.3f word; ` +
	`case $? in 0) echo "$p$word $i"; exit;; 1) exit 1;; *) p=$p$word;; esac; done`

const (
	sshLimit  = 30 * time.Second // for the guest to let us in, under TCG and beside others
	lastLimit = 20 * time.Second // for the last line to come, TCP's repetitions included
)

func startSSH(ctx context.Context, from host.Host, to netip.Addr, keys sshKeys, interval time.Duration,
	tally *observe.Tally) (_ *sshSession, err error) {
	fail := func(err error) error { return fmt.Errorf("start ssh session: %w", err) }
	address := netip.AddrPortFrom(to, wire.SSHPort).String()
	nc, err := from.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, fail(err)
	}
	s := &sshSession{tally: tally, first: make(chan struct{})}
	defer func() {
		if err != nil {
			nc.Close()
			s.all.Wait()
		}
	}()
	_ = nc.SetDeadline(time.Now().Add(sshLimit))
	conn, channels, requests, err := ssh.NewClientConn(nc, address, &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(keys.client)}, HostKeyCallback: ssh.FixedHostKey(keys.host),
	})
	if err != nil {
		return nil, fail(err)
	}
	s.client, s.server = ssh.NewClient(conn, channels, requests), string(conn.ServerVersion())
	if s.session, err = s.client.NewSession(); err != nil {
		return nil, fail(err)
	}
	out, err := s.session.StdoutPipe()
	if err != nil {
		return nil, fail(err)
	}
	if s.stdin, err = s.session.StdinPipe(); err != nil {
		return nil, fail(err)
	}
	if err := s.session.Start(fmt.Sprintf(counting, interval.Seconds())); err != nil {
		return nil, fail(err)
	}
	_ = nc.SetDeadline(time.Time{}) // from here on TCP says when it gives up
	s.all.Go(func() { s.receive(out) })
	select {
	case <-s.first:
	case <-time.After(sshLimit):
		return nil, fail(errors.New("the command prints nothing"))
	case <-ctx.Done():
		return nil, fail(context.Cause(ctx))
	}
	return s, nil
}

// receive takes the lines in.
func (s *sshSession) receive(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() && s.take(lines.Text(), time.Now()) {
	}
	err := lines.Err()
	if err == nil {
		err = s.session.Wait()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && !s.ended {
		if s.err = err; err == nil {
			s.err = errors.New("the command ended by itself")
		}
	}
}

// take takes one line; it is false after one that should not be.
func (s *sshSession) take(line string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	count, last := strings.CutPrefix(line, "end ")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < s.next {
		s.err = fmt.Errorf("line %q came where %d was due", line, s.next)
		return false
	}
	s.lost += n - s.next
	if s.next = n; last {
		s.ended = true
		return true
	}
	s.next++
	if s.last.IsZero() {
		close(s.first)
	} else {
		s.longest = max(s.longest, now.Sub(s.last))
		s.tally.Add(s.last, now, 1)
	}
	s.last = now
	return true
}

// finish asks the command to end, and returns what became of the session.
func (s *sshSession) finish() *record.SSHSession {
	_, err := io.WriteString(s.stdin, "end\n")
	done := make(chan struct{})
	go func() { s.all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(lastLimit):
		err = errors.Join(err, fmt.Errorf("no end after %v", lastLimit))
	}
	s.client.Close()
	<-done
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &record.SSHSession{Server: s.server, Lines: s.next - s.lost, LinesLost: s.lost, Longest: record.Of(s.longest)}
	if !s.ended {
		r.Resets = 1
		r.Error = fmt.Sprint(errors.Join(s.err, err))
	}
	return r
}

// close ends the session without asking.
func (s *sshSession) close() {
	if s != nil {
		s.client.Close()
		s.all.Wait()
	}
}
