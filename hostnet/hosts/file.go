// Package hosts reads a hosts file, in which a user writes which hosts there are, and makes the network of a lab on
// them. A host of the file belongs to its administrator: its devices and bridges are used and never changed. What is
// made there, a TAP or an overlay, is named qmig* and goes with the lab.
//
// It imports hostnet, which makes what is made, and hostnet/host, which reaches the hosts; labs and the commands may
// import it.
package hosts

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"qmigrate/hostnet/host"
	"qmigrate/internal/near"
)

// File is a hosts file.
type File struct {
	Name  string `toml:"-"` // of the file
	Hosts []Host `toml:"host"`
	Pairs []Pair `toml:"pair"`
}

// Host is a host as the file has it.
type Host struct {
	Name string `toml:"name"` // how records and messages call it
	At   string `toml:"at"`   // where it is found: see host.CheckName
	// LinkAddress is where the migration stream goes; "" is the address by which the host was reached.
	LinkAddress string   `toml:"link_address"`
	Bridge      string   `toml:"bridge"`  // what the guest's TAP joins; ""; Overlay, or TAPs that are ports of some bridge
	Overlay     bool     `toml:"overlay"` // a VXLAN between the link addresses in place of a bridge; needs root
	TAPs        []string `toml:"tap"`     // made by the administrator; none: root makes one
	QEMU        string   `toml:"qemu"`    // a path there; "": see guest.FindQEMUOn
	Cache       string   `toml:"cache"`   // folder for what is sent there; "" is its user's
}

// Pair is two hosts between which a guest migrates.
type Pair struct {
	Source      string `toml:"source"`
	Destination string `toml:"destination"`
	Observer    string `toml:"observer"` // where pings run; "" is this machine
	// GuestAddress is the guest's, with the length of its subnet's prefix; "" is 10.77.0.101/24, as on the lab's own
	// network. The observer needs an address there, too.
	GuestAddress string `toml:"guest_address"`
}

// Error is what is wrong with a hosts file, and where.
type Error struct {
	File string
	Line int // from 1
	Text string
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text) }

// IsFile tells whether a word names a hosts file and not a kind of hosts.
func IsFile(word string) bool { return strings.HasSuffix(word, ".toml") || strings.Contains(word, "/") }

// Read reads a hosts file.
func Read(name string) (*File, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	return Parse(name, text)
}

// Parse reads the text of a hosts file. An error is a *Error: nothing that can be known wrong from the words alone gets
// further.
func Parse(name string, text []byte) (*File, error) {
	f := &File{Name: name}
	d := toml.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(f); err != nil {
		return nil, decodeError(name, err)
	}
	w, err := whereabouts(text)
	if err != nil {
		return nil, &Error{name, 1, err.Error()}
	}
	if err := f.check(func(table string, i int, key, format string, args ...any) error {
		return &Error{name, w.line(table, i, key), fmt.Sprintf(format, args...)}
	}); err != nil {
		return nil, err
	}
	return f, nil
}

// decodeError makes one line of what go-toml says.
func decodeError(name string, err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		first := unknown.Errors[0]
		line, _ := first.Position()
		key := first.Key()
		have := []string{"host", "pair"}
		table := "a hosts file"
		if len(key) > 1 {
			have, table = keys(key[0]), "a "+key[0]
		}
		return &Error{name, line, fmt.Sprintf("%s has no %s: %s", table, key[len(key)-1], near.Hint(key[len(key)-1], have))}
	}
	e := &Error{name, 1, strings.TrimPrefix(err.Error(), "toml: ")}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		e.Line, _ = at.Position()
	}
	return e
}

// keys are those of a table.
func keys(table string) []string {
	if table == "pair" {
		return []string{"source", "destination", "observer", "guest_address"}
	}
	return []string{"name", "at", "link_address", "bridge", "overlay", "tap", "qemu", "cache"}
}

// places are the lines of a file's tables and of their keys.
type places map[string]int

func place(table string, i int, key string) string { return fmt.Sprint(table, i, ".", key) }

// line is that of a key, else of its table.
func (p places) line(table string, i int, key string) int {
	if line, ok := p[place(table, i, key)]; ok {
		return line
	}
	return max(1, p[place(table, i, "")])
}

func whereabouts(text []byte) (places, error) {
	p, seen, table := places{}, map[string]int{}, ""
	var parser unstable.Parser
	parser.Reset(text)
	for parser.NextExpression() {
		e := parser.Expression()
		key := e.Key()
		if !key.Next() {
			continue
		}
		word, line := string(key.Node().Data), parser.Shape(key.Node().Raw).Start.Line
		switch e.Kind {
		case unstable.ArrayTable:
			table = word
			seen[table]++
			p[place(table, seen[table]-1, "")] = line
		case unstable.KeyValue:
			p[place(table, seen[table]-1, word)] = line
		}
	}
	return p, parser.Error()
}

// check says what is wrong with the values.
func (f *File) check(wrong func(table string, i int, key, format string, args ...any) error) error {
	if len(f.Hosts) == 0 {
		return wrong("host", 0, "", "no hosts: begin one with [[host]], a name and at")
	}
	names := map[string]bool{}
	for i, h := range f.Hosts {
		bad := func(key, format string, args ...any) error { return wrong("host", i, key, format, args...) }
		switch {
		case !isName(h.Name):
			return bad("name", "host name %q: use letters, digits, -, _ and ., and no more than 32", h.Name)
		case names[h.Name]:
			return bad("name", "there is a host %s already", h.Name)
		case h.At == "":
			return bad("at", "host %s: at is missing: where it is, written %s", h.Name, host.Kinds)
		}
		names[h.Name] = true
		if err := host.CheckName(h.At); err != nil {
			return bad("at", "host %s: %v", h.Name, err)
		}
		if h.LinkAddress != "" {
			if _, err := netip.ParseAddr(h.LinkAddress); err != nil {
				return bad("link_address", "host %s: link_address %q: use an address such as 10.1.0.1", h.Name, h.LinkAddress)
			}
		}
		for key, name := range map[string]string{"bridge": h.Bridge, "tap": slices.Max(append(h.TAPs, ""))} {
			if strings.ContainsAny(name, "/ \t\n:%") || len(name) > 15 {
				return bad(key, "host %s: %s %q: a device's name has up to 15 bytes, and no / : %% or blank", h.Name, key, name)
			}
		}
		switch {
		case slices.Contains(h.TAPs, ""):
			return bad("tap", "host %s: a tap without a name", h.Name)
		case h.Overlay && h.Bridge != "":
			return bad("overlay", "host %s: overlay and bridge: choose one: the overlay has a bridge of its own", h.Name)
		case h.Overlay && len(h.TAPs) > 0:
			return bad("overlay", "host %s: overlay and tap: choose one: the overlay's TAP is made with it", h.Name)
		case h.QEMU != "" && !path.IsAbs(h.QEMU):
			return bad("qemu", "host %s: qemu %q: give a whole path, such as /usr/bin/qemu-system-x86_64", h.Name, h.QEMU)
		case h.Cache != "" && !path.IsAbs(h.Cache) && !strings.HasPrefix(h.Cache, "~/"):
			return bad("cache", "host %s: cache %q: give a whole path, or one that begins with ~/", h.Name, h.Cache)
		case h.Cache != "" && !strings.HasPrefix(h.At, "ssh:") && !strings.HasPrefix(h.At, "lxc:"):
			return bad("cache", "host %s: nothing is sent to %s, so it needs no cache", h.Name, h.At)
		}
		for _, other := range f.Hosts[:i] {
			if other.At == h.At && other.Cache != h.Cache {
				return bad("cache", "hosts %s and %s are both %s: give them one cache", other.Name, h.Name, h.At)
			}
		}
	}
	for i, p := range f.Pairs {
		if err := f.checkPair(p, func(key, format string, args ...any) error {
			return wrong("pair", i, key, format, args...)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) checkPair(p Pair, bad func(key, format string, args ...any) error) error {
	var ends []*Host
	for _, end := range []struct{ key, name string }{{"source", p.Source}, {"destination", p.Destination},
		{"observer", p.Observer}} {
		h := f.Host(end.name)
		switch {
		case end.name == "" && end.key != "observer":
			return bad(end.key, "a pair without %s: name one of the hosts", end.key)
		case h == nil && end.name != "":
			return bad(end.key, "%s %q: no such host: %s", end.key, end.name, near.Hint(end.name, f.names()))
		}
		ends = append(ends, h)
	}
	source, destination, observer := ends[0], ends[1], ends[2]
	if source == destination {
		return bad("destination", "source and destination are both %s", source.Name)
	}
	if source.Overlay != destination.Overlay || observer != nil && observer.Overlay != source.Overlay {
		return bad("source", "overlay = true has to be of all hosts of a pair, its observer too, or of none: they are on one "+
			"network")
	}
	if source.Overlay && source.At == destination.At {
		return bad("destination", "%s and %s are one machine, which needs no overlay between them: name a bridge", source.Name,
			destination.Name)
	}
	for _, h := range []*Host{source, destination} {
		if !h.Overlay && h.Bridge == "" && len(h.TAPs) == 0 {
			return bad("source", "host %s has neither bridge nor tap: name the bridge that the guest joins, or a TAP that is "+
				"a port of it; or overlay = true", h.Name)
		}
	}
	if p.GuestAddress == "" {
		return nil
	}
	guest, err := netip.ParsePrefix(p.GuestAddress)
	if err != nil || !guest.Addr().Is4() || guest.Bits() > 30 || guest.Addr() == guest.Masked().Addr() {
		return bad("guest_address", "guest_address %q: use an IPv4 address with the length of its prefix, such as 10.1.0.101/24",
			p.GuestAddress)
	}
	return nil
}

func isName(s string) bool {
	return s != "" && len(s) <= 32 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	})
}

func (f *File) names() (all []string) {
	for _, h := range f.Hosts {
		all = append(all, h.Name)
	}
	return all
}

// Host is the host of that name; nil if there is none.
func (f *File) Host(name string) *Host {
	i := slices.IndexFunc(f.Hosts, func(h Host) bool { return h.Name == name })
	if i < 0 {
		return nil
	}
	return &f.Hosts[i]
}

// Pair is the first pair, or the one that is named as SOURCE:DESTINATION.
func (f *File) Pair(name string) (Pair, error) {
	if len(f.Pairs) == 0 {
		return Pair{}, &Error{f.Name, 1, "no pairs: add [[pair]] with source and destination"}
	}
	var have []string
	for _, p := range f.Pairs {
		word := p.Source + ":" + p.Destination
		if name == "" || name == word {
			return p, nil
		}
		have = append(have, word)
	}
	return Pair{}, fmt.Errorf("pair %s of %s: %s", name, f.Name, near.Hint(name, have))
}

// In has a pool of hosts keep what is sent to them where the file says.
func (f *File) In(pool *host.Pool) {
	for _, h := range f.Hosts {
		pool.KeepIn(h.At, h.Cache)
	}
}
