package debian

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// source is one entry of apt's configuration (sources.list(5)), in either of its two formats.
type source struct {
	types, uris, suites, components []string
	// the rest, by lower-case name: "signed-by"; a value may have lines (an inline key)
	options  map[string]string
	disabled bool
}

// readSources reads every entry under root/etc/apt.
func readSources(root string) ([]source, error) {
	var all []source
	dir := filepath.Join(root, "etc/apt")
	files, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*"))
	for _, f := range append([]string{filepath.Join(dir, "sources.list")}, files...) {
		var parse func([]byte) ([]source, error)
		switch filepath.Ext(f) {
		case ".list":
			parse = parseList
		case ".sources":
			parse = parseDeb822
		default:
			continue
		}
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s, err := parse(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, s...)
	}
	return all, nil
}

// parseList parses the one-line format: deb [option=value ...] URI suite component...
func parseList(b []byte) ([]source, error) {
	var all []source
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		line, _, _ := strings.Cut(sc.Text(), "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if kind == "" {
			continue
		}
		s := source{types: []string{kind}, options: map[string]string{}}
		rest = strings.TrimSpace(rest)
		if inner, ok := strings.CutPrefix(rest, "["); ok {
			opts, after, ok := strings.Cut(inner, "]")
			if !ok {
				return nil, fmt.Errorf("no ] in %q", line)
			}
			for o := range strings.FieldsSeq(opts) {
				k, v, _ := strings.Cut(o, "=")
				s.options[strings.ToLower(k)] = strings.ReplaceAll(v, ",", " ")
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 2 {
			return nil, fmt.Errorf("want deb URI suite component... in %q", line)
		}
		s.uris, s.suites, s.components = f[:1], f[1:2], f[2:]
		all = append(all, s)
	}
	return all, nil
}

// parseDeb822 parses paragraphs of "Field: value" lines, in which a line that begins with a space goes on with the
// value of the one before.
func parseDeb822(b []byte) ([]source, error) {
	var all []source
	fields := map[string]string{}
	var last string
	end := func() {
		if len(fields) > 0 {
			all = append(all, newSource(fields))
		}
		fields, last = map[string]string{}, ""
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case line == "":
			end()
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if last == "" {
				return nil, fmt.Errorf("no field before %q", line)
			}
			fields[last] += "\n" + line
		default:
			k, v, ok := strings.Cut(line, ":")
			if k = strings.ToLower(strings.TrimSpace(k)); !ok || k == "" || strings.ContainsAny(k, " \t") {
				return nil, fmt.Errorf("want Field: value in %q", line)
			}
			last, fields[k] = k, strings.TrimSpace(v)
		}
	}
	end()
	return all, nil
}

func newSource(fields map[string]string) source {
	take := func(k string) []string {
		v := strings.Fields(fields[k])
		delete(fields, k)
		return v
	}
	s := source{types: take("types"), uris: take("uris"), suites: take("suites"), components: take("components")}
	switch strings.ToLower(strings.Join(take("enabled"), "")) {
	case "no", "false", "without", "off", "disable", "0":
		s.disabled = true
	}
	s.options = fields
	return s
}

// deb822 is the entry as a paragraph; parseDeb822 reads it back.
func (s source) deb822() string {
	var b strings.Builder
	field := func(k string, v ...string) { fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(v, " ")) }
	field("Types", s.types...)
	field("URIs", s.uris...)
	field("Suites", s.suites...)
	if len(s.components) > 0 {
		field("Components", s.components...)
	}
	for _, k := range slices.Sorted(maps.Keys(s.options)) {
		field(k, s.options[k])
	}
	if s.disabled {
		field("Enabled", "no")
	}
	return b.String()
}

// system is the Debian that we run on, as far as fetching needs it.
type system struct {
	codename         string // "bookworm"
	mirror, security source // where its packages come from; security has no uris if there is none
}

// readSystem finds the mirror and the key of the Debian under root.
func readSystem(root string) (system, error) {
	b, err := os.ReadFile(filepath.Join(root, "etc/os-release"))
	if err != nil {
		return system{}, fmt.Errorf("this is not Debian: %w", err)
	}
	release := map[string]string{}
	for l := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(l), "=")
		release[k] = strings.Trim(v, `"'`)
	}
	if release["ID"] != "debian" {
		return system{}, fmt.Errorf("this is %s, not Debian",
			cmp.Or(release["PRETTY_NAME"], release["ID"], "an unknown system"))
	}
	codename := release["VERSION_CODENAME"]
	all, err := readSources(root)
	if err != nil {
		return system{}, err
	}
	return pickMirrors(codename, all)
}

// pickMirrors tells Debian's own mirror from third parties that name their suites alike: it has component main, and the
// most signs of being Debian.
func pickMirrors(codename string, all []source) (system, error) {
	sys := system{codename: codename}
	best := 0
	for _, s := range all {
		if s.disabled || !slices.Contains(s.types, "deb") || !slices.Contains(s.components, "main") || len(s.uris) == 0 ||
			strings.HasPrefix(s.uris[0], "cdrom:") {
			continue
		}
		score := 0
		for _, suite := range s.suites {
			switch suite {
			case codename + "-security":
				if sys.security.uris == nil {
					sys.security = s
				}
			case codename, "stable", "oldstable", "testing", "unstable", "sid":
				score += 1
			case codename + "-updates", codename + "-backports":
				score += 2
			}
		}
		if score > 0 && path.Base(strings.TrimSuffix(s.uris[0], "/")) == "debian" {
			score += 4
		}
		if score > best {
			best, sys.mirror = score, s
		}
	}
	if best == 0 {
		return system{}, fmt.Errorf("apt's configuration names no Debian mirror for %q", codename)
	}
	return sys, nil
}

// sourcesFor is a source list for suites: the system's mirrors, with all their options (keys), and nothing but package
// lists.
func (sys system) sourcesFor(suites []string) string {
	var out []string
	for _, suite := range suites {
		s := sys.mirror
		if strings.HasSuffix(suite, "-security") {
			if s = sys.security; s.uris == nil {
				continue
			}
		}
		options := maps.Clone(s.options)
		maps.DeleteFunc(options, func(k, _ string) bool {
			return slices.Contains([]string{"arch", "architectures", "lang", "languages", "target", "targets", "pdiffs",
				"by-hash", "description", "x-repolib-name"}, k)
		})
		options["targets"] = "Packages"
		out = append(out, source{types: []string{"deb"}, uris: s.uris, suites: []string{suite}, components: []string{"main"},
			options: options}.deb822())
	}
	return strings.Join(out, "\n")
}
