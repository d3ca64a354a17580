package hostnet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"qmigrate/hostnet/host"
)

// Speed is what TCP does between two hosts.
type Speed struct {
	BytesPerSecond float64       // from the first to the second, by the receiver's clock
	RoundTrip      time.Duration // the least of some, of a byte and back
}

const (
	speedTrips = 20
	speedTime  = 300 * time.Millisecond
	speedLimit = 10 * time.Second // for a connection
)

// TrySpeed sends from one host to another for a third of a second, to an address of the other. A connection that does
// not come about is an error.
func TrySpeed(ctx context.Context, from, to host.Host, address netip.Addr) (s Speed, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return s, err
	}
	sent := make(chan error, 1)
	sending := false
	err = receiveTask().Run(ctx, to, receiveSpec{address, secret}, func(r received) error {
		if r.Address != "" {
			sending = true
			go func() {
				out, err := sendTask().Ask(ctx, from, sendSpec{r.Address, secret})
				s.RoundTrip = out.RoundTrip
				if err != nil {
					cancel(err)
				}
				sent <- err
			}()
			return nil
		}
		s.BytesPerSecond = r.BytesPerSecond
		return nil
	})
	if sending {
		if sendErr := <-sent; sendErr != nil {
			return Speed{}, fmt.Errorf("connect from %s to %s of %s: %w", from.Name(), address, to.Name(), sendErr)
		}
	}
	if err != nil {
		return Speed{}, fmt.Errorf("listen at %s of %s: %w", address, to.Name(), err)
	}
	return s, nil
}

type receiveSpec struct {
	Address netip.Addr
	Secret  []byte // of whom the connection has to come
}

type received struct {
	Address        string // where to connect to: the first answer
	BytesPerSecond float64
}

func receiveTask() host.Task[receiveSpec, received] {
	return host.Task[receiveSpec, received]{Name: "hostnet.receive",
		Work: func(ctx context.Context, at host.Host, s receiveSpec, give func(received) error) error {
			l, err := at.Listen(ctx, "tcp", netip.AddrPortFrom(s.Address, 0).String())
			if err != nil {
				return err
			}
			defer l.Close()
			stop := context.AfterFunc(ctx, func() { l.Close() })
			defer stop()
			if err := give(received{Address: l.Addr().String()}); err != nil {
				return err
			}
			for {
				nc, err := l.Accept()
				if err != nil {
					return errors.Join(ctx.Err(), err)
				}
				rate, err := s.receive(ctx, nc)
				nc.Close()
				if err == nil {
					return give(received{BytesPerSecond: rate})
				}
			}
		}}
}

// receive answers the first bytes one by one and counts the rest.
func (s receiveSpec) receive(ctx context.Context, nc net.Conn) (float64, error) {
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	_ = nc.SetDeadline(time.Now().Add(speedLimit))
	theirs := make([]byte, len(s.Secret))
	if _, err := io.ReadFull(nc, theirs); err != nil || string(theirs) != string(s.Secret) {
		return 0, errors.New("somebody else")
	}
	b := make([]byte, 256<<10)
	for range speedTrips {
		if _, err := io.ReadFull(nc, b[:1]); err != nil {
			return 0, err
		}
		if _, err := nc.Write(b[:1]); err != nil {
			return 0, err
		}
	}
	n, err := nc.Read(b)
	begin, total := time.Now(), 0
	for err == nil {
		n, err = nc.Read(b)
		total += n
	}
	if took := time.Since(begin).Seconds(); errors.Is(err, io.EOF) && took > 0 {
		return float64(total) / took, nil
	}
	return 0, fmt.Errorf("after %d bytes: %w", n, err)
}

type sendSpec struct {
	Address string
	Secret  []byte
}

func sendTask() host.Task[sendSpec, Speed] {
	return host.Task[sendSpec, Speed]{Name: "hostnet.send",
		Work: func(ctx context.Context, at host.Host, s sendSpec, give func(Speed) error) error {
			dial, cancel := context.WithTimeoutCause(ctx, speedLimit,
				fmt.Errorf("no answer within %s: does a firewall let TCP through there?", speedLimit))
			defer cancel()
			nc, err := at.Dial(dial, "tcp", s.Address)
			if err != nil {
				if dial.Err() != nil {
					return context.Cause(dial)
				}
				return err
			}
			defer nc.Close()
			stop := context.AfterFunc(ctx, func() { nc.Close() })
			defer stop()
			_ = nc.SetDeadline(time.Now().Add(speedLimit))
			if _, err := nc.Write(s.Secret); err != nil {
				return err
			}
			var out Speed
			b := make([]byte, 256<<10)
			for range speedTrips {
				begin := time.Now()
				if _, err := nc.Write(b[:1]); err != nil {
					return err
				}
				if _, err := io.ReadFull(nc, b[:1]); err != nil {
					return err
				}
				if took := time.Since(begin); out.RoundTrip == 0 || took < out.RoundTrip {
					out.RoundTrip = took
				}
			}
			for end := time.Now().Add(speedTime); time.Now().Before(end); {
				if _, err := nc.Write(b); err != nil {
					return err
				}
			}
			return give(out)
		}}
}
