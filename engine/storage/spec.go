// Package storage says what a lab's guest keeps its disks on, and makes, reads and compares their images. It is files
// and arithmetic: it starts nothing.
package storage

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"qmigrate/engine/record/units"
	"qmigrate/internal/near"
)

// Kind is where the disks are.
type Kind string

// The kinds.
const (
	None   Kind = "none"   // no disks
	Shared Kind = "shared" // image files that both hosts see
	Mirror Kind = "mirror" // image files of each host's own: the migration copies them
	ISCSI  Kind = "iscsi"  // LUNs of a target, by QEMU's own initiator
	NFS    Kind = "nfs"    // image files on a server, by QEMU's own client; raw only: see docs/storage.md
)

// Kinds are all of them.
func Kinds() []Kind { return []Kind{None, Shared, Mirror, ISCSI, NFS} }

// How a mirror copies what the guest writes meanwhile.
const (
	Background    = "background"     // the guest does not wait: it may outrun the copy for ever
	WriteBlocking = "write-blocking" // a write is done when both sides have it
)

// Spec is a guest's storage. The zero value is none.
type Spec struct {
	Kind         Kind
	Disks        int     // default 1
	Size         int64   // of each, bytes; default 64 MiB
	Format       string  // raw (default) or qcow2; shared and mirror only
	Cache        string  // writeback (default) or none: past the host's page cache; shared and mirror only
	Area         int64   // of each disk, from its first byte on, that the guest writes to, bytes; default 8 MiB
	Rate         float64 // of the writer on each disk, writes a second, each of 4 KiB; default 100
	CopyMode     string  // mirror: background (default) or write-blocking
	MaxBandwidth int64   // mirror: of each disk's copy, bytes/s; 0 (default) is unlimited
	CHAP         bool    // iscsi: the target asks for a password; default on
}

const (
	defaultSize = 64 << 20
	defaultArea = 8 << 20
	defaultRate = 100
	maxDisks    = 8
)

// Parse reads KIND or KIND:k=v,...
func Parse(text string) (Spec, error) {
	kind, rest, more := strings.Cut(text, ":")
	s := Spec{Kind: Kind(kind), Disks: 1, Size: defaultSize, Format: "raw", Cache: "writeback", Area: defaultArea,
		Rate: defaultRate, CopyMode: Background, CHAP: true}
	if !slices.Contains(Kinds(), s.Kind) {
		return Spec{}, fmt.Errorf("storage %q: %s", kind, near.Hint(s.Kind, Kinds()))
	}
	if s.Kind == None {
		if more {
			return Spec{}, fmt.Errorf("storage none takes no parameters, found %q", rest)
		}
		return Spec{Kind: None}, nil
	}
	if more {
		seen := map[string]bool{}
		for word := range strings.SplitSeq(rest, ",") {
			name, value, ok := strings.Cut(word, "=")
			if !ok || value == "" {
				return Spec{}, fmt.Errorf("storage %s: %q is not NAME=VALUE", kind, word)
			}
			if seen[name] {
				return Spec{}, fmt.Errorf("storage %s: %s is given twice", kind, name)
			}
			seen[name] = true
			if err := s.set(name, value); err != nil {
				return Spec{}, fmt.Errorf("storage %s: %w", kind, err)
			}
		}
	}
	if s.Area > s.Size {
		return Spec{}, fmt.Errorf("storage %s: area %s is larger than the disk, %s", kind, units.FormatSize(s.Area),
			units.FormatSize(s.Size))
	}
	return s, nil
}

// parameters are those of a kind, in the order in which String prints them.
func (k Kind) parameters() []string {
	all := []string{"disks", "size"}
	switch k {
	case Shared, Mirror:
		all = append(all, "format", "cache")
	case ISCSI:
		all = append(all, "chap")
	}
	if k == Mirror {
		all = append(all, "copy-mode", "max-bandwidth")
	}
	return append(all, "area", "rate")
}

func (s *Spec) set(name, value string) (err error) {
	if have := s.Kind.parameters(); !slices.Contains(have, name) {
		return fmt.Errorf("no parameter %q: %s", name, near.Or(name, have, "it has "+strings.Join(have, ", ")))
	}
	choice := func(into *string, of ...string) error {
		if !slices.Contains(of, value) {
			return fmt.Errorf("%s %q: have %s", name, value, strings.Join(of, ", "))
		}
		*into = value
		return nil
	}
	switch name {
	case "disks":
		if s.Disks, err = strconv.Atoi(value); err != nil || s.Disks < 1 || s.Disks > maxDisks {
			return fmt.Errorf("disks %q: 1 to %d", value, maxDisks)
		}
	case "size", "area":
		n, err := units.Size(value)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if n < 1<<20 || n%(1<<20) != 0 || n > 1<<40 {
			return fmt.Errorf("%s %s: whole MiB, from 1MiB to 1TiB", name, value)
		}
		if name == "size" {
			s.Size = n
		} else {
			s.Area = n
		}
	case "rate":
		digits, ok := strings.CutSuffix(value, "/s")
		if s.Rate, err = strconv.ParseFloat(digits, 64); err != nil || !ok || !(s.Rate > 0 && s.Rate <= 1e5) {
			return fmt.Errorf("rate %q: writes a second with their unit, such as 100/s, at most 100000/s", value)
		}
	case "max-bandwidth":
		if s.MaxBandwidth, err = units.Rate(value); err != nil {
			return fmt.Errorf("max-bandwidth: %w", err)
		}
	case "format":
		return choice(&s.Format, "raw", "qcow2")
	case "cache":
		return choice(&s.Cache, "writeback", "none")
	case "copy-mode":
		return choice(&s.CopyMode, Background, WriteBlocking)
	case "chap":
		var word string
		err = choice(&word, "on", "off")
		s.CHAP = word == "on"
		return err
	}
	return nil
}

// String is the spec as Parse reads it, every parameter with its value and unit.
func (s Spec) String() string {
	if s.Kind == None || s.Kind == "" {
		return string(None)
	}
	onOff := map[bool]string{true: "on", false: "off"}
	values := map[string]string{
		"disks": strconv.Itoa(s.Disks), "size": exact(s.Size), "format": s.Format, "cache": s.Cache, "copy-mode": s.CopyMode,
		"max-bandwidth": strconv.FormatInt(s.MaxBandwidth, 10) + "B/s", "chap": onOff[s.CHAP],
		"area": exact(s.Area), "rate": strconv.FormatFloat(s.Rate, 'f', -1, 64) + "/s",
	}
	var words []string
	for _, name := range s.Kind.parameters() {
		words = append(words, name+"="+values[name])
	}
	return string(s.Kind) + ":" + strings.Join(words, ",")
}

// exact is a size in whole MiB.
func exact(bytes int64) string { return strconv.FormatInt(bytes>>20, 10) + "MiB" }

// Node is the name of the i-th disk's block node, and the serial by which the guest knows it.
func Node(i int) string { return "disk" + strconv.Itoa(i) }

// Nodes are the names of all of them.
func (s Spec) Nodes() (all []string) {
	for i := range s.Disks {
		all = append(all, Node(i))
	}
	return all
}
