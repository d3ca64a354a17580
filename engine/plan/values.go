package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/engine/setting"
	"qmigrate/internal/near"
	"qmigrate/qmp"
)

// HangLimit is how long a QEMU may be silent before it is taken to hang: a busy host must not be.
func (p Plan) HangLimit() time.Duration { return max(p.StallLimit, p.RecoverLimit) }

// Decides tells whether the plan has a policy that decides anything.
func (p Plan) Decides() bool { return p.Policy.Name != "" && p.Policy.Name != "none" }

// Plan is what to do; its zero value is a plain pre-copy with QEMU's defaults.
type Plan struct {
	Mode           record.Mode       // default pre-copy
	MaxBandwidth   int64             // bytes/s, set on both sides; 0: 128 MiB/s; negative: unlimited
	DowntimeLimit  time.Duration     // set on both sides; 0: 300 ms; at most 2,000 s
	Capabilities   map[string]bool   // by QEMU's names, set on both sides; every other one is switched off
	Parameters     map[string]string // by QEMU's names and in QEMU's units, set on both sides
	Listen         string            // the destination's migrate-incoming URI; default tcp:127.0.0.1:0
	Connect        string            // the source's migrate URI; default: where the destination says it listens
	Channels       string            // how the two are written in the commands: FormURI (default) or FormChannels
	AllowUnsafe    bool              // do also what is known to lose a guest when it fails
	SampleInterval time.Duration     // of query-migrate and query-status; 0: 10 ms; negative: no polling
	Timeout        time.Duration     // from `migrate` to the switch-over; 0: none
	Policy         policy.Spec       // what to do about a pre-copy that does not converge; zero: QEMU decides alone
	LinkRate       int64             // bytes/s of the link, for the policy; 0: not known
	Mirror         Mirror            // disks that the hosts do not share
	SwitchAfter    SwitchAfter       // hybrid: when post-copy begins; zero: after one pass
	// post-copy in which nothing was sent for so long has lost its link, and a destination that is silent so long while
	// disks are copied hangs; 0: 5 s
	StallLimit time.Duration
	// how long a post-copy that lost its link tries to go on, how long its switch may stand still, and how long a QEMU may
	// be silent before it is taken to hang, each at least; 0: 1 min
	RecoverLimit time.Duration
	// what carries the connections from Connect to Listen, which the caller has seen to; "": nothing does
	Tunnel TunnelKind
	// encryption by QEMU itself; nil: as both QEMUs have been told by somebody else, which is usually none
	TLS *TLS
	// whether the downtime is taken apart, which QEMU's trace events tell best; "": AnatomyOn, and nothing is said of what
	// cannot be had
	Anatomy string
	// the files, on their hosts, that the two QEMUs write their trace lines to; "": none is known but that of a QEMU which
	// qmigrate has started
	TraceLogs TraceLogs
}

// TraceLogs are the two QEMUs' trace logs.
type TraceLogs struct{ Source, Destination string }

// The values of Plan.Anatomy.
const (
	AnatomyOn  = "on"
	AnatomyOff = "off"
)

// Plan defaults, and QEMU's own limit on downtime-limit (migration/options.c, 7.2 to 11.1).
const (
	defaultMaxBandwidth   = 128 << 20
	defaultDowntimeLimit  = 300 * time.Millisecond
	maxDowntimeLimit      = 2000 * time.Second
	defaultSampleInterval = 10 * time.Millisecond
	defaultListen         = "tcp:127.0.0.1:0"
)

func (p Plan) WithDefaults() Plan {
	if p.Mode == "" {
		p.Mode = record.PreCopyMode
	}
	if p.MaxBandwidth == 0 {
		p.MaxBandwidth = defaultMaxBandwidth
	}
	p.MaxBandwidth = max(p.MaxBandwidth, 0) // QEMU's own word for unlimited
	if p.DowntimeLimit == 0 {
		p.DowntimeLimit = defaultDowntimeLimit
	}
	if p.SampleInterval == 0 {
		p.SampleInterval = defaultSampleInterval
	}
	if p.Listen == "" {
		p.Listen = defaultListen
	}
	if p.StallLimit == 0 {
		p.StallLimit = defaultStallLimit
	}
	if p.RecoverLimit == 0 {
		p.RecoverLimit = defaultRecoverLimit
	}
	if p.Mode == record.HybridMode && p.SwitchAfter == (SwitchAfter{}) {
		p.SwitchAfter.Passes = 1
	}
	if p.Capabilities = maps.Clone(p.Capabilities); p.Capabilities == nil { // the caller's stays as it is
		p.Capabilities = map[string]bool{}
	}
	if len(p.Mirror.Nodes) > 0 {
		if p.Mirror.CopyMode == "" {
			p.Mirror.CopyMode = copyBackground
		}
		if _, set := p.Capabilities["pause-before-switchover"]; !set {
			p.Capabilities["pause-before-switchover"] = true
		}
	}
	if _, set := p.Capabilities["postcopy-ram"]; p.PostCopies() && !set {
		p.Capabilities["postcopy-ram"] = true
	}
	if p.Channels == "" {
		p.Channels = FormURI
	}
	return p
}

// Check refuses what needs no QEMU to be refused.
func (p Plan) Check() error {
	switch {
	case !slices.Contains(modes(), p.Mode):
		return setting.About(&UnsupportedError{fmt.Sprintf("mode %q", p.Mode), near.Hint(p.Mode, modes())}, "mode")
	case p.PostCopies() && !p.Capabilities["postcopy-ram"]:
		return setting.Errorf("capability", "postcopy-ram=off", "mode %s needs it: leave it out", p.Mode)
	case p.SwitchAfter != (SwitchAfter{}) && p.Mode != record.HybridMode:
		return setting.Errorf("switch-after", p.SwitchAfter.String(), "it is for mode %s, this one is %s", record.HybridMode,
			p.Mode)
	case p.Anatomy == AnatomyOff && p.TraceLogs != (TraceLogs{}):
		return setting.Errorf("trace-log", "", "it is for anatomy: leave anatomy off out, or trace-log")
	case p.Channels != FormURI && p.Channels != FormChannels:
		return setting.Errorf("channels", p.Channels, "%s", near.Hint(p.Channels, []string{FormURI, FormChannels}))
	}
	if err := cmp.Or(p.checkDowntimeLimit(), p.checkMirror()); err != nil {
		return err
	}
	for _, name := range []string{"x-colo", "background-snapshot", "mapped-ram"} {
		if p.Capabilities[name] {
			return setting.About(&UnsupportedError{"capability " + name, "it makes `migrate` something else than a move " +
				"of a running guest, which is what mode " + string(p.Mode) + " does"}, "capability")
		}
	}
	if on, set := p.Capabilities["events"]; set && !on {
		return setting.Errorf("capability", "events=off", "qmigrate times the stages by MIGRATION events and needs them")
	}
	for _, name := range []string{"max-bandwidth", "downtime-limit"} {
		if value, set := p.Parameters[name]; set {
			return setting.Errorf("parameter", name+"="+value, "it is a setting: give %s by itself, with its unit", name)
		}
	}
	if p.TLS != nil {
		return p.TLS.check(p)
	}
	return nil
}

// checkMirror refuses in the plan what needs no QEMU to be refused.
func (p Plan) checkMirror() error {
	if len(p.Mirror.Nodes) == 0 {
		return nil
	}
	seen := map[string]bool{}
	for _, node := range p.Mirror.Nodes {
		if node == "" || seen[node] {
			return setting.Errorf("mirror", strings.Join(p.Mirror.Nodes, ","), "each block node once, by its name")
		}
		seen[node] = true
	}
	switch p.Mirror.CopyMode {
	case copyBackground, copyWriteBlocking:
	default:
		return setting.Errorf("mirror-copy-mode", p.Mirror.CopyMode, "have %s, %s", copyBackground, copyWriteBlocking)
	}
	if !p.Capabilities["pause-before-switchover"] {
		return setting.Errorf("capability", "pause-before-switchover=off",
			"a mirror is ended in the pause that it makes, between the guest's stop and the destination's start")
	}
	if p.Tunnel != "" {
		return setting.Errorf("tunnel", string(p.Tunnel),
			"the disks of a mirror would travel beside the tunnel, in clear: use tls, which encrypts them too")
	}
	if p.Mirror.MaxBandwidth < 0 {
		return setting.Errorf("mirror-bandwidth", fmt.Sprint(p.Mirror.MaxBandwidth), "bytes/s must not be negative")
	}
	_, _, err := p.NbdAddress()
	return err
}

// NbdAddress is where the NBD server is to listen: a path, or a host and a port, "" for any.
func (p Plan) NbdAddress() (network, address string, err error) {
	listen := p.Mirror.Listen
	if listen == "" {
		kind, rest, _ := strings.Cut(p.Listen, ":")
		switch kind {
		case "tcp":
			host, _, err := net.SplitHostPort(rest)
			if err != nil {
				return "", "", setting.Errorf("listen", p.Listen, "%w", err)
			}
			return "tcp", net.JoinHostPort(host, ""), nil
		case "unix":
			return "unix", rest + ".nbd", nil
		}
		return "", "", setting.Errorf("mirror-listen", "", "the destination's NBD server needs its own address beside "+
			"listen %s: give it as HOST, HOST:PORT or unix:PATH", p.Listen)
	}
	if path, ok := strings.CutPrefix(listen, "unix:"); ok && path != "" {
		return "unix", path, nil
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		host, port = strings.Trim(listen, "[]"), ""
	}
	if n, err := strconv.ParseUint(port, 10, 16); port != "" && (err != nil || n == 0) {
		return "", "", setting.Errorf("mirror-listen", listen, "%q is no port (QEMU does not tell which one it took for 0)",
			port)
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

// Defaults of Plan.
const (
	defaultStallLimit   = 5 * time.Second
	defaultRecoverLimit = time.Minute
)

// SwitchAfter is when a hybrid migration goes over to post-copy: when so many passes have ended, or so long after
// `migrate`, whichever comes first.
type SwitchAfter struct {
	Passes int
	Time   time.Duration
}

func (s SwitchAfter) String() string {
	switch {
	case s.Time == 0:
		return fmt.Sprint(s.Passes)
	case s.Passes == 0:
		return s.Time.String()
	}
	return fmt.Sprintf("%d,%s", s.Passes, s.Time)
}

// StopsFirst tells whether this mode stops the guest before it is copied.
func (p Plan) StopsFirst() bool { return p.Mode == record.StopAndCopyMode }

// AtOnce is the SwitchAfter of a post-copy that begins as soon as `migrate` is under way.
var AtOnce = SwitchAfter{}

// Splits is when this mode goes over to post-copy; nil: never, unless a policy decides it.
func (p Plan) Splits() *SwitchAfter {
	switch p.Mode {
	case record.PostCopyMode:
		return &AtOnce
	case record.HybridMode:
		return &p.SwitchAfter
	}
	return nil
}

// PostCopies tells whether this mode goes over to post-copy.
func (p Plan) PostCopies() bool { return p.Splits() != nil }

// target is the URI that the source will connect to, as far as it is known before the destination listens.
func (p Plan) target() string {
	if p.Connect != "" {
		return p.Connect
	}
	return p.Listen
}

// Hosts are the names or addresses by which the source will know the destination: one, or none, as with a unix socket.
func (p Plan) Hosts() []string {
	if host := p.Host(); host != "" {
		return []string{host}
	}
	return nil
}

func (p Plan) Host() string {
	rest, ok := strings.CutPrefix(p.WithDefaults().target(), "tcp:")
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		return ""
	}
	return host
}

// The forms of an address in `migrate` and `migrate-incoming`. Both say the same; the second is QEMU 8.2's, and newer
// things will come in it alone.
const (
	FormURI      = "uri"
	FormChannels = "channels"
)

// CheckAddresses refuses addresses that cannot be two ends of one stream.
func (p Plan) CheckAddresses() error {
	for name, uri := range map[string]string{"listen": p.Listen, "connect": p.Connect} {
		if uri == "" {
			continue
		}
		a, err := qmp.ParseAddress(uri)
		if err != nil {
			return setting.Errorf(name, "", "%w", err)
		}
		if a.Kind == "file" {
			return setting.Errorf(name, uri, "a file is no migration: use `qmigrate save` and `qmigrate restore`")
		}
	}
	kind, _, _ := strings.Cut(p.Listen, ":")
	switch {
	case p.Channels == FormChannels && strings.Contains(p.Listen+p.Connect, ",") && kind == "tcp":
		return setting.Errorf("channels", FormChannels, "an address with options after a comma is for %s", FormURI)
	case HandsOver(p.Listen) && p.Connect != "" && p.Connect != p.Listen:
		return setting.Errorf("connect", p.Connect, "both sides get the descriptor of listen %s: leave connect out", p.Listen)
	case (kind == "exec" || kind == "fd" && !HandsOver(p.Listen)) && p.Connect == "":
		return setting.Errorf("listen", p.Listen, "it needs connect too: the source has to reach what the destination reads")
	}
	return nil
}
