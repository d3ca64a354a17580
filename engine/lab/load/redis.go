package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"qmigrate/engine/lab/observe"
	"qmigrate/engine/record"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// redisConn is one connection to a redis. No client library: they connect again and send again by themselves, and what
// is asked here is whether they would have had to.
type redisConn struct {
	nc net.Conn
	r  *bufio.Reader
}

// redisError is an answer of redis's that says no.
type redisError string

func (e redisError) Error() string { return "redis: " + string(e) }

// answerLimit is how long an answer may take: TCP's repetitions across a stop are shorter.
const answerLimit = time.Minute

// do sends a command and reads its answer: an int64, a string, or a list of such. Protocol: RESP2,
// redis.io/docs/reference/protocol-spec.
func (c *redisConn) do(args ...string) (any, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if err := c.nc.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return nil, err
	}
	if _, err := c.nc.Write(b.Bytes()); err != nil {
		return nil, err
	}
	return c.answer()
}

var errAnswer = errors.New("redis gave an answer that is none")

func (c *redisConn) answer() (any, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return nil, errAnswer
	}
	n, numberErr := strconv.ParseInt(line[1:], 10, 64)
	switch line[0] {
	case '+':
		return line[1:], nil
	case '-':
		return nil, redisError(line[1:])
	case ':':
		return n, numberErr
	case '$':
		if numberErr != nil || n < 0 || n > 1<<20 {
			return nil, errAnswer
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(c.r, b); err != nil {
			return nil, err
		}
		return string(b[:n]), nil
	case '*':
		if numberErr != nil || n < 0 || n > 1<<20 {
			return nil, errAnswer
		}
		list := make([]any, n)
		for i := range list {
			if list[i], err = c.answer(); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	return nil, errAnswer
}

func (c *redisConn) number(args ...string) (int64, error) {
	v, err := c.do(args...)
	n, ok := v.(int64)
	if err == nil && !ok {
		err = errAnswer
	}
	return n, err
}

// redisWriter appends numbered values to a list for each of its connections, one at a time: a list's length is how many
// it has, and what stands at a place is known, so that a lost, a doubled and a changed write are each seen.
type redisWriter struct {
	dial  func(context.Context) (*redisConn, error)
	size  int
	rate  float64 // of one connection; 0: as fast as it goes
	tally *observe.Tally
	stop  context.CancelFunc
	all   sync.WaitGroup

	mu      sync.Mutex
	result  record.RedisWriter
	acked   [redisConnections]int64
	conns   [redisConnections]*redisConn
	closed  bool
	err     error
	from    time.Time // of the span that is not in the tally yet
	pending int64
}

// redisConnections is how many write at once.
const redisConnections = 4

// tallied is how much time one entry of the tally spans.
const tallied = 100 * time.Millisecond

func startRedis(ctx context.Context, from host.Host, to netip.Addr, rate float64, size int,
	tally *observe.Tally) (*redisWriter, error) {
	address := netip.AddrPortFrom(to, wire.RedisPort).String()
	w := &redisWriter{size: size, rate: rate / redisConnections, tally: tally}
	w.dial = func(ctx context.Context) (*redisConn, error) {
		nc, err := from.Dial(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return &redisConn{nc, bufio.NewReader(nc)}, nil
	}
	w.result.Connections = redisConnections
	var conns []*redisConn
	for i := range redisConnections {
		c, err := w.dial(ctx)
		if err == nil {
			conns = append(conns, c)
			_, err = c.number("DEL", list(i)) // of a former migration of this guest
		}
		if err != nil {
			for _, c := range conns {
				c.nc.Close()
			}
			return nil, fmt.Errorf("connect to the guest's redis: %w", err)
		}
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop, w.from = stop, time.Now()
	for i, c := range conns {
		w.conns[i] = c
		w.all.Go(func() { w.write(run, i, c) })
	}
	return w, nil
}

// use makes a connection the i-th writer's; false if all is to end.
func (w *redisWriter) use(i int, c *redisConn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[i] = c
	return !w.closed
}

func list(i int) string { return "qmigrate:" + strconv.Itoa(i) }

// value is what stands at a place of a list.
func value(list int, n int64, size int) string {
	head := fmt.Sprintf("%d/%d/", list, n)
	b := make([]byte, max(size, len(head)))
	x := uint64(n)<<8 ^ uint64(list)
	for i := copy(b, head); i < len(b); i++ {
		x = x*6364136223846793005 + 1442695040888963407 // Knuth's MMIX constants
		b[i] = 'a' + byte(x>>59)%26
	}
	return string(b)
}

// write is one connection's work until ctx ends. After a connection that broke it goes on with a new one: a write that
// was not acknowledged may be there or not.
func (w *redisWriter) write(ctx context.Context, i int, c *redisConn) {
	var next time.Time
	for n := int64(0); ; {
		if w.rate > 0 {
			if next = next.Add(time.Duration(1e9 / w.rate)); time.Until(next) < -time.Second {
				next = time.Now() // what could not be written in a stop is not made up for
			}
			select {
			case <-time.After(time.Until(next)):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			c.nc.Close()
			return
		}
		asked := time.Now()
		length, err := c.number("RPUSH", list(i), value(i, n, w.size))
		if err == nil {
			w.note(i, n, length, time.Now(), asked)
			n++
			continue
		}
		c.nc.Close()
		var refused redisError
		if errors.As(err, &refused) { // it is there, and says no
			w.fail(err)
			return
		}
		if c, n, err = w.again(ctx, i, n, err); err != nil {
			w.fail(err)
			return
		}
	}
}

// note takes an acknowledgement. Its length says how many values the list had.
func (w *redisWriter) note(i int, n, length int64, now, asked time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked[i] = n + 1
	w.result.Acknowledged++
	if length != n+1 && w.err == nil {
		w.err = fmt.Errorf("list %d has %d values after write %d", i, length, n+1)
	}
	if w.result.Longest == nil || now.Sub(asked) > *w.result.Longest {
		w.result.Longest = record.Of(now.Sub(asked))
	}
	if w.pending++; now.Sub(w.from) >= tallied {
		w.tally.Add(w.from, now, float64(w.pending))
		w.from, w.pending = now, 0
	}
}

func (w *redisWriter) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
}

// again connects anew after a reset, and finds out where the list is: n is the first write that is not in it.
func (w *redisWriter) again(ctx context.Context, i int, n int64, why error) (*redisConn, int64, error) {
	w.mu.Lock()
	w.result.Resets++
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastLimit)
	defer cancel()
	for {
		c, err := w.dial(ctx)
		if err == nil {
			var length int64
			if length, err = c.number("LLEN", list(i)); err == nil {
				if length < n {
					w.mu.Lock()
					w.result.Lost += n - length
					w.mu.Unlock()
				}
				if w.use(i, c) {
					return c, length, nil
				}
				err = net.ErrClosed
			}
			c.nc.Close()
			if errors.Is(err, net.ErrClosed) {
				return nil, n, err
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, n, fmt.Errorf("connect again after %w: %w", why, err)
		}
	}
}

// readAtOnce is how many values one question asks for.
const readAtOnce = 500

// finish stops writing, reads everything back, and says what was found.
func (w *redisWriter) finish(ctx context.Context) *record.RedisWriter {
	w.stop()
	w.all.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, acked := range w.acked {
		if err := w.check(ctx, i, acked); err != nil {
			w.err = errors.Join(w.err, fmt.Errorf("read list %d back: %w", i, err))
		}
	}
	if w.err != nil {
		w.result.Error = w.err.Error()
	}
	return &w.result
}

// check compares a list with what was written to it.
func (w *redisWriter) check(ctx context.Context, i int, acked int64) error {
	ctx, cancel := context.WithTimeout(ctx, lastLimit)
	defer cancel()
	c, err := w.dial(ctx)
	if err != nil {
		return err
	}
	defer c.nc.Close()
	if w.result.Version == "" {
		if v, err := c.do("INFO", "server"); err == nil {
			_, rest, _ := strings.Cut(fmt.Sprint(v), "redis_version:")
			w.result.Version, _, _ = strings.Cut(rest, "\r\n")
		}
	}
	length, err := c.number("LLEN", list(i))
	if err != nil {
		return err
	}
	w.result.Lost += max(acked-length, 0)
	if w.result.Resets == 0 { // without one, every write was acknowledged
		w.result.Wrong += max(length-acked, 0)
	}
	for n := int64(0); n < length; {
		v, err := c.do("LRANGE", list(i), fmt.Sprint(n), fmt.Sprint(n+readAtOnce-1))
		if err != nil {
			return err
		}
		values, ok := v.([]any)
		if !ok || len(values) == 0 {
			return errAnswer
		}
		for _, v := range values {
			if v != value(i, n, w.size) {
				w.result.Wrong++
			}
			n++
		}
	}
	return nil
}

// close ends the writers without reading back.
func (w *redisWriter) close() {
	if w == nil {
		return
	}
	w.stop()
	w.mu.Lock()
	w.closed = true
	for _, c := range w.conns {
		c.nc.Close()
	}
	w.mu.Unlock()
	w.all.Wait()
}
