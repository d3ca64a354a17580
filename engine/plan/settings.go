package plan

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/policy"
	"qmigrate/engine/record"
	"qmigrate/engine/record/units"
	"qmigrate/engine/setting"
)

// Where the settings of a migration can be given.
const (
	trials     = setting.Demo | setting.Migrate | setting.Run
	commands   = setting.Demo | setting.Migrate
	everywhere = trials | setting.Save | setting.Restore
)

// modes are those that a plan can have. COLO is another run: colo.Protect.
func modes() []record.Mode {
	return []record.Mode{record.PreCopyMode, record.StopAndCopyMode, record.PostCopyMode, record.HybridMode}
}

// Settings are those of a plan, in the order in which they are applied.
func Settings() []setting.Setting[Plan] {
	return slices.Concat(passSettings(), encryptionSettings(), limitSettings(), mirrorSettings(), addressSettings())
}

// passSettings say how the guest is moved.
func passSettings() []setting.Setting[Plan] {
	return []setting.Setting[Plan]{
		{Name: "mode", Shape: "MODE", Default: string(record.PreCopyMode), Example: "pre-copy", Where: trials,
			Help: "how the guest is moved: pre-copy (copy while it runs), stop-and-copy (stop it first), post-copy (run it " +
				"on the destination at once, its memory follows) or hybrid (pre-copy passes, then post-copy)",
			Apply: setting.Choice(func(p *Plan) *record.Mode { return &p.Mode }, modes()...)},
		{Name: "switch-after", Shape: "N|TIME", Absent: "one pass", Example: "2", Where: trials,
			Help: "hybrid: switch to post-copy after N passes, or so long after the start",
			Apply: func(p *Plan, text string) (err error) {
				p.SwitchAfter, err = switchAfter(text)
				return err
			}},
		{Name: "policy", Shape: "NAME[:k=v,...]", Default: "none", Example: "switchover", Where: trials,
			Help: "what to do about a pre-copy that does not converge: " + strings.Join(policy.Names(), ", "),
			Apply: func(p *Plan, text string) (err error) {
				p.Policy, err = policy.Parse(text)
				return err
			}},
		{Name: "recover-limit", Shape: "TIME", Default: "1m", Example: "30s", Where: commands,
			Help: "how long a post-copy that lost its link tries to go on (the guest is not lost after it), and how long " +
				"a QEMU may be silent in a migration before it is taken to hang",
			Apply: setting.Duration(func(p *Plan) *time.Duration { return &p.RecoverLimit })},
		{Name: "max-bandwidth", Shape: "RATE", Default: "128MiB/s", Own: map[setting.Place]string{setting.Save: "0B/s"},
			Example: "32MiB/s", Where: trials | setting.Save,
			Help: "what the migration may send; 0B/s is unlimited, and a background save always is",
			Apply: func(p *Plan, text string) (err error) {
				if p.MaxBandwidth, err = units.Rate(text); p.MaxBandwidth == 0 {
					p.MaxBandwidth = -1 // the plan's word for unlimited
				}
				return err
			}},
		{Name: "downtime-limit", Shape: "TIME", Default: "300ms", Example: "300ms", Where: trials,
			Help: "QEMU stops the guest when it expects to need no longer than this",
			Apply: func(p *Plan, text string) (err error) {
				if p.DowntimeLimit, err = units.Duration(text); err != nil {
					return err
				}
				return p.checkDowntimeLimit()
			}},
		{Name: "capability", Shape: "NAME=on|off", Example: "multifd=on,return-path=on", Where: everywhere, List: true,
			Help: "migration capabilities of QEMU, with commas between them, set on each QEMU that takes part",
			Apply: func(p *Plan, text string) error {
				p.Capabilities = map[string]bool{}
				return setting.Pairs(text, "NAME=on|off", func(name, value string) bool {
					p.Capabilities[name] = value == "on"
					return value == "on" || value == "off"
				})
			}},
		{Name: "parameter", Shape: "NAME=VALUE", Example: "multifd-channels=4", Where: everywhere, List: true,
			Help: "migration parameters of QEMU, in QEMU's own units, with commas between them, set on each QEMU that " +
				"takes part",
			Apply: func(p *Plan, text string) error {
				p.Parameters = map[string]string{}
				return setting.Pairs(text, "NAME=VALUE", func(name, value string) bool {
					p.Parameters[name] = value
					return true
				})
			}},
	}
}

// switchAfter reads N or TIME.
func switchAfter(text string) (s SwitchAfter, err error) {
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 {
			return s, setting.Wrong(text, "at least one pass; mode post-copy switches at once")
		}
		return SwitchAfter{Passes: n}, nil
	}
	if s.Time, err = units.Duration(text); err != nil || s.Time <= 0 {
		return SwitchAfter{}, setting.Wrong(text, "give a number of passes, such as 2, or a time with its unit, such as 5s")
	}
	return s, nil
}

// encryptionSettings say who may read what is sent. A kind comes first, because the others are of that kind.
func encryptionSettings() []setting.Setting[Plan] {
	const none = "none"
	return []setting.Setting[Plan]{
		{Name: "tls", Shape: "KIND", Default: none, Example: "x509", Where: trials,
			Help: "QEMU encrypts what it sends and both ends prove who they are, by certificates, x509, or by one key, psk. " +
				"Credentials are made for this migration unless their folders are given",
			Apply: func(p *Plan, text string) error {
				if text != none {
					p.TLS = &TLS{Kind: TLSKind(text)}
				}
				return setting.OneOf(text, none, string(PSK), string(X509))
			}},
		ofTLS("tls-dir-source", folder(func(t *TLS) *string { return &t.SourceDir }), setting.Setting[Plan]{
			Shape: "DIR", Example: "/etc/qemu/a", Help: "the source's credentials, as its QEMU sees them: ca-cert.pem, " +
				"client-cert.pem and client-key.pem, or keys.psk"}),
		ofTLS("tls-dir-destination", folder(func(t *TLS) *string { return &t.DestinationDir }), setting.Setting[Plan]{
			Shape: "DIR", Example: "/etc/qemu/b", Help: "the destination's: ca-cert.pem, server-cert.pem and " +
				"server-key.pem, or keys.psk"}),
		ofTLS("tls-hostname", setting.Text(func(t *TLS) *string { return &t.Hostname }), setting.Setting[Plan]{
			Shape: "NAME", Absent: "the host that the source connects to", Example: "host1",
			Help: "x509: the destination's certificate has to be good for this name"}),
		ofTLS("tls-username", setting.Text(func(t *TLS) *string { return &t.Username }), setting.Setting[Plan]{
			Shape: "NAME", Absent: DefaultUsername, Example: "alice", Help: "psk: the user whose key in keys.psk is used"}),
		ofTLS("tls-authz", setting.Text(func(t *TLS) *string { return &t.Authz }), setting.Setting[Plan]{
			Shape: "NAME", Example: "O=lab,CN=host1",
			Help: "x509: the only distinguished name that the destination lets in, as in O=lab,CN=host1"}),
		ofTLS("tls-no-verify", setting.Truth(func(t *TLS) *bool { return &t.NoVerify }), setting.Setting[Plan]{
			Example: "true", Help: "x509: encrypt, and ask neither end who it is"}),
		{Name: "channels", Shape: "FORM", Default: FormURI, Example: "uri", Where: trials,
			Help:  "form of the addresses in QEMU's commands: uri, or channels (QEMU 8.2 and newer)",
			Apply: setting.Choice(func(p *Plan) *string { return &p.Channels }, FormURI, FormChannels)},
		{Name: "tunnel", Shape: "KIND", Default: none, Example: "ssh", Where: trials,
			Help: "carry all of it through one connection of qmigrate's, tls or ssh, in which both ends prove who they are; " +
				"QEMU itself sends plain text to it",
			Apply: func(p *Plan, text string) error {
				if text == none {
					return nil
				}
				p.Tunnel = TunnelKind(text)
				if p.TLS != nil {
					return setting.Wrong(text, "tls encrypts all of it already: give one of them")
				}
				return setting.OneOf(text, none, string(TLSTunnel), string(SSHTunnel))
			}},
	}
}

// ofTLS completes a setting that means nothing without a kind of TLS.
func ofTLS(name string, apply func(*TLS, string) error, s setting.Setting[Plan]) setting.Setting[Plan] {
	s.Name, s.Where, s.Apply = name, commands, func(p *Plan, text string) error {
		if p.TLS == nil {
			return errors.New("it is for tls: set tls to x509 or psk too, or leave it out")
		}
		return apply(p.TLS, text)
	}
	return s
}

// folder makes a path absolute, because QEMU runs in another folder than this program.
func folder(at func(*TLS) *string) func(*TLS, string) error {
	return func(t *TLS, text string) (err error) {
		*at(t), err = filepath.Abs(text)
		return err
	}
}

// limitSettings say how long it may take and how closely it is watched.
func limitSettings() []setting.Setting[Plan] {
	return []setting.Setting[Plan]{
		{Name: "timeout", Shape: "TIME", Default: "0s", Example: "30s", Where: everywhere,
			Help:  "cancel a pre-copy that has not converged by then, or a save or restore that is not done; 0s: never",
			Apply: setting.Duration(func(p *Plan) *time.Duration { return &p.Timeout })},
		{Name: "timeout", Shape: "TIME", Default: "0s", Example: "30s", Where: setting.Watch,
			Help:  "how long to wait for a migration to begin; 0s: until one does",
			Apply: setting.Duration(func(p *Plan) *time.Duration { return &p.Timeout })},
		{Name: "sample-interval", Shape: "TIME", Default: "10ms", Example: "10ms", Where: trials | setting.Save | setting.Watch,
			Help: "how often query-migrate and query-status are asked; 0ms: never",
			Apply: func(p *Plan, text string) (err error) {
				if p.SampleInterval, err = units.Duration(text); p.SampleInterval == 0 {
					p.SampleInterval = -1 // the plan's word for no polling
				}
				return err
			}},
		{Name: "anatomy", Shape: "on|off", Example: "off", Where: trials,
			Absent: "on, as far as it can be had; of an experiment's trials by the events alone",
			Help: "take the downtime apart: what each part of both QEMUs and of the way between them cost, by trace events " +
				"that are switched on in both for the migration",
			Apply: setting.Choice(func(p *Plan) *string { return &p.Anatomy }, AnatomyOn, AnatomyOff)},
		{Name: "trace-log", Shape: "[SIDE=]FILE", Absent: "that of a QEMU which qmigrate has started",
			Example: "source=/var/log/a.log", Where: setting.Migrate, List: true,
			Help: "where these QEMUs write their trace lines, on their hosts: the FILE of -D, else standard error's; " +
				"SIDE is source or destination, without it both write there. QEMU needs -msg timestamp=on",
			Apply: func(p *Plan, text string) error { return p.TraceLogs.set(text) }},
		{Name: "allow-unsafe", Example: "true", Where: setting.Save,
			Help:  "also save in the background by an older QEMU, which loses the guest if the save fails half-way",
			Apply: setting.Truth(func(p *Plan) *bool { return &p.AllowUnsafe })},
	}
}

// set reads FILE, source=FILE and destination=FILE, with commas between them.
func (l *TraceLogs) set(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		side, file, named := strings.Cut(part, "=")
		into := []*string{&l.Source, &l.Destination}
		switch {
		case named && side == string(record.Source):
			into = into[:1]
		case named && side == string(record.Destination):
			into = into[1:]
		default: // a name may have a = in it
			file = part
		}
		if !filepath.IsAbs(file) {
			return setting.Wrong(part, "give a path from the root, as in /var/log/qemu.log, source=/var/log/a.log or "+
				"destination=/var/log/b.log")
		}
		for _, at := range into {
			if *at != "" && *at != file {
				return setting.Wrong(part, "a side has one log, and it is %s already", *at)
			}
			*at = file
		}
	}
	return nil
}

// mirrorSettings are those of a migration between hosts that share no storage.
func mirrorSettings() []setting.Setting[Plan] {
	return []setting.Setting[Plan]{
		{Name: "mirror", Shape: "NODE[,NODE...]", Example: "disk0", Where: setting.Migrate,
			Help: "copy these disks, block nodes of the same names and sizes on both sides, before the memory, from the " +
				"source's QEMU to the destination's",
			Apply: func(p *Plan, text string) error {
				p.Mirror.Nodes = strings.Split(text, ",")
				return nil
			}},
		ofMirror("mirror-copy-mode", setting.Choice(func(m *Mirror) *string { return &m.CopyMode }, copyBackground,
			copyWriteBlocking),
			setting.Setting[Plan]{Shape: "MODE", Absent: copyBackground, Example: copyWriteBlocking,
				Help: "background (the guest " +
					"does not wait, and may outrun the copy) or write-blocking (each of its writes waits for both sides)"}),
		ofMirror("mirror-bandwidth", setting.Rate(func(m *Mirror) *int64 { return &m.MaxBandwidth }), setting.Setting[Plan]{
			Shape: "RATE", Absent: "0B/s", Example: "32MiB/s", Help: "what the copy of each disk may send; 0B/s is unlimited"}),
		ofMirror("mirror-listen", setting.Text(func(m *Mirror) *string { return &m.Listen }), setting.Setting[Plan]{
			Shape: "ADDRESS", Absent: "the host of listen, a port from 10809 on", Example: "10.0.0.2",
			Help: "of the destination's NBD server: HOST, HOST:PORT or unix:PATH"}),
	}
}

// ofMirror completes a setting that means nothing without a mirror.
func ofMirror(name string, apply func(*Mirror, string) error, s setting.Setting[Plan]) setting.Setting[Plan] {
	s.Name, s.Where, s.Apply = name, setting.Migrate, func(p *Plan, text string) error {
		if len(p.Mirror.Nodes) == 0 {
			return errors.New("it is for mirror: name the disks by mirror too, or leave it out")
		}
		return apply(&p.Mirror, text)
	}
	return s
}

// addressSettings say where the two sides meet.
func addressSettings() []setting.Setting[Plan] {
	return []setting.Setting[Plan]{
		{Name: "listen", Shape: "URI", Absent: "tcp:127.0.0.1:0, a port of its choice; with launch into another network " +
			"namespace a socket " +
			"in the new folder", Example: "tcp:10.0.0.2:4444", Where: setting.Migrate,
			Help:  "where the destination listens, as QEMU's migrate-incoming takes it",
			Apply: setting.Text(func(p *Plan) *string { return &p.Listen })},
		{Name: "connect", Shape: "URI", Absent: "where the destination listens", Example: "tcp:10.0.0.2:4444",
			Where: setting.Migrate, Help: "where the source connects to",
			Apply: setting.Text(func(p *Plan) *string { return &p.Connect })},
	}
}

// checkDowntimeLimit refuses what QEMU does not take.
func (p Plan) checkDowntimeLimit() error {
	if d := p.DowntimeLimit; d < time.Millisecond || d > maxDowntimeLimit || d%time.Millisecond != 0 {
		return setting.Errorf("downtime-limit", fmt.Sprint(d), "QEMU takes whole milliseconds from 1ms to 2000s")
	}
	return nil
}
