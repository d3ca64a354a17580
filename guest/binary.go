package guest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"qmigrate/guest/debian"
)

// Binary is a QEMU system emulator for x86-64 on this machine.
type Binary struct {
	Path    string
	Version string // "10.0.2", as its --version says
}

// NoQEMUError says that there is no QEMU of the wanted version, and where was looked.
type NoQEMUError struct {
	Want   string   // "" any
	Looked []string // each with what was found there
	Have   []string // the versions that are unpacked: 10.0
}

func (e *NoQEMUError) Error() string {
	want := "QEMU"
	if e.Want != "" {
		want += " " + e.Want
	}
	have := ""
	if len(e.Have) > 0 {
		have = "; there are " + strings.Join(e.Have, ", ")
	}
	return fmt.Sprintf("find %s: none in %s%s; try `make deps`, or give a path as qemu", want,
		strings.Join(e.Looked, ", "), have)
}

// FindQEMU finds a QEMU without fetching anything. want is "10.0" (major.minor), a path, or "" for the newest. It
// looks at $QMIGRATE_QEMU_<MAJOR>_<MINOR>, then $PATH, then what debian.Ensure unpacked; the first of the wanted
// version is taken. The unpacked 11.1 is only taken if it is asked for, or if there is no other: so the demo is the
// same with it and without it. The error is a *NoQEMUError, or that of a binary which does not run.
func FindQEMU(ctx context.Context, want string) (Binary, error) {
	if strings.ContainsRune(want, '/') {
		v, err := Version(ctx, want)
		if err != nil {
			return Binary{}, fmt.Errorf("find QEMU: %w", err)
		}
		return Binary{want, v}, nil
	}
	if want != "" && !isSeries(want) {
		return Binary{}, fmt.Errorf("find QEMU %q: want a path with a slash, or a version such as 10.0", want)
	}
	var found []Binary
	var looked, unpacked []string
	look := func(where, path string, must bool) error {
		v, err := Version(ctx, path)
		if err != nil {
			if must {
				return fmt.Errorf("%s: %w", where, err)
			}
			looked = append(looked, fmt.Sprintf("%s (%v)", where, err))
			return nil
		}
		looked = append(looked, fmt.Sprintf("%s (%s)", where, v))
		if want == "" || Series(v) == want {
			found = append(found, Binary{path, v})
		} else if must {
			return fmt.Errorf("%s: %s is QEMU %s", where, path, v)
		}
		return nil
	}
	for _, kv := range os.Environ() {
		name, path, _ := strings.Cut(kv, "=")
		series, ok := strings.CutPrefix(name, "QMIGRATE_QEMU_")
		series = strings.Replace(series, "_", ".", 1)
		if !ok || path == "" || !isSeries(series) || want != "" && series != want {
			continue
		}
		if err := look("$"+name, path, want != ""); err != nil {
			return Binary{}, err
		}
	}
	if p, err := exec.LookPath(debian.Program); err == nil {
		if err := look("$PATH", p, false); err != nil {
			return Binary{}, err
		}
	} else {
		looked = append(looked, "$PATH")
	}
	for _, what := range []debian.What{debian.QEMU100, debian.QEMU72, debian.QEMU111} {
		if want == "" && what == debian.QEMU111 && len(found) > 0 {
			continue
		}
		p, err := debian.Find(what)
		if err != nil {
			continue
		}
		series := strings.TrimPrefix(string(what), "qemu-")
		unpacked = append(unpacked, series)
		if want == "" || series == want {
			if err := look(p, p, false); err != nil {
				return Binary{}, err
			}
		}
	}
	if len(found) == 0 {
		dir, _ := CacheDir()
		return Binary{}, &NoQEMUError{Want: want, Looked: append(looked, dir), Have: unpacked}
	}
	if want != "" {
		return found[0], nil
	}
	// The newest; of equals the one that was found first.
	return slices.MaxFunc(found, func(a, b Binary) int { return CompareVersions(a.Version, b.Version) }), nil
}

// isSeries reports whether s is two numbers with a dot, such as 10.0.
func isSeries(s string) bool {
	a, b, ok := strings.Cut(s, ".")
	_, err1 := strconv.ParseUint(a, 10, 16)
	_, err2 := strconv.ParseUint(b, 10, 16)
	return ok && err1 == nil && err2 == nil
}

// Version runs a QEMU with --version and returns "10.0.2".
func Version(ctx context.Context, qemu string) (string, error) {
	out, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if err != nil {
		var said string
		if e, ok := err.(*exec.ExitError); ok {
			said = ": " + strings.TrimSpace(string(e.Stderr))
		}
		return "", fmt.Errorf("ask %s for its version: %w%s", qemu, err, said)
	}
	return parseVersion(qemu, string(out))
}

// parseVersion reads "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)".
func parseVersion(qemu, out string) (string, error) {
	_, rest, ok := strings.Cut(out, "QEMU emulator version ")
	f := strings.FieldsFunc(rest, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if !ok || len(f) == 0 || !strings.HasPrefix(rest, f[0]) {
		line, _, _ := strings.Cut(out, "\n")
		return "", fmt.Errorf("ask %s for its version: not a QEMU: it says %q", qemu, line)
	}
	return f[0], nil
}

// Series is the first two numbers of a version: "10.0" of "10.0.2".
func Series(version string) string {
	p := strings.SplitN(version, ".", 3)
	if len(p) < 2 {
		return version
	}
	return p[0] + "." + p[1]
}

// CompareVersions orders dotted numbers: -1 if a is older than b.
func CompareVersions(a, b string) int {
	return slices.Compare(numbers(a), numbers(b))
}

func numbers(v string) (n []int) {
	for _, p := range strings.Split(v, ".") {
		i, _ := strconv.Atoi(p)
		n = append(n, i)
	}
	return n
}
