package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The defaults of Boot.
const (
	DefaultBeatInterval = 5 * time.Millisecond
	DefaultEchoPort     = 7
)

// Boot is what the agent is told on the kernel's command line. The zero value is a guest without a network address.
type Boot struct {
	IP           netip.Prefix   // qmigrate.ip=10.77.0.101/24: eth0's address; IPv4
	Gateway      netip.Addr     // qmigrate.gw=10.77.0.1
	Beat         netip.AddrPort // qmigrate.beat=10.77.0.1:7777: where beats go by UDP
	BeatInterval time.Duration  // qmigrate.beat_interval=5ms; 0: 5 ms; negative, written "off": no beats
	Echo         uint16         // qmigrate.echo=7: the TCP echo server's port; 0: 7
	// qmigrate.root=root: serial of the disk that becomes the root, read-only below a file system in RAM; empty: the
	// initramfs stays
	Root string
}

// Words returns the words for the kernel's command line, without those that have their default.
func (b Boot) Words() []string {
	var w []string
	if b.IP.IsValid() {
		w = append(w, "qmigrate.ip="+b.IP.String())
	}
	if b.Gateway.IsValid() {
		w = append(w, "qmigrate.gw="+b.Gateway.String())
	}
	if b.Beat.IsValid() {
		w = append(w, "qmigrate.beat="+b.Beat.String())
	}
	switch {
	case b.BeatInterval < 0:
		w = append(w, "qmigrate.beat_interval=off")
	case b.BeatInterval > 0:
		w = append(w, "qmigrate.beat_interval="+b.BeatInterval.String())
	}
	if b.Echo != 0 {
		w = append(w, "qmigrate.echo="+strconv.Itoa(int(b.Echo)))
	}
	if b.Root != "" {
		w = append(w, "qmigrate.root="+b.Root)
	}
	return w
}

// ParseBoot finds the agent's words on a kernel command line and fills in the defaults. A word that cannot be read
// keeps its default and is told in the error, which joins all of them: the rest is good.
func ParseBoot(cmdline string) (Boot, error) {
	b := Boot{BeatInterval: DefaultBeatInterval, Echo: DefaultEchoPort}
	var errs []error
	for _, word := range strings.Fields(cmdline) {
		name, value, ok := strings.Cut(word, "=")
		if !ok || !strings.HasPrefix(name, "qmigrate.") {
			continue
		}
		var err error
		switch name {
		case "qmigrate.ip":
			b.IP, err = netip.ParsePrefix(value)
			if err == nil && !b.IP.Addr().Is4() {
				b.IP, err = netip.Prefix{}, errors.New("not an IPv4 address")
			}
		case "qmigrate.gw":
			b.Gateway, err = netip.ParseAddr(value)
			if err == nil && !b.Gateway.Is4() {
				b.Gateway, err = netip.Addr{}, errors.New("not an IPv4 address")
			}
		case "qmigrate.beat":
			b.Beat, err = netip.ParseAddrPort(value)
			if err == nil && !b.Beat.Addr().Is4() {
				b.Beat, err = netip.AddrPort{}, errors.New("not an IPv4 address")
			}
		case "qmigrate.beat_interval":
			var d time.Duration
			if value == "off" {
				b.BeatInterval = -1
			} else if d, err = time.ParseDuration(value); err == nil && d <= 0 {
				err = errors.New(`not positive ("off" means none)`)
			} else if err == nil {
				b.BeatInterval = d
			}
		case "qmigrate.echo":
			var n uint64
			if n, err = strconv.ParseUint(value, 10, 16); err == nil && n == 0 {
				err = errors.New("no port 0")
			} else if err == nil {
				b.Echo = uint16(n)
			}
		case "qmigrate.root":
			b.Root = value
		default:
			err = errors.New("no such word: there are qmigrate.ip, .gw, .beat, .beat_interval, .echo, .root")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read %s: %w", word, err))
		}
	}
	return b, errors.Join(errs...)
}
