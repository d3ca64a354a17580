package debian

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"qmigrate/guest/guesttest/within"
)

func TestCoverModules(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "qemu")
	kept := filepath.Join(dir, "ui-curses.so")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(kept, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := coverModules(dir); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != len(moduleNames()) {
		t.Errorf("%d files, want %d: %v", len(files), len(moduleNames()), err)
	}
	if b, err := os.ReadFile(kept); err != nil || string(b) != "x" {
		t.Errorf("a module that was there: %q %v", b, err)
	}
	covered := Store{Dir: t.TempDir()}
	dir = filepath.Dir(covered.path(Block100))
	wrapper := covered.path(QEMU100)
	program := filepath.Join(filepath.Dir(wrapper), "usr/bin", Program)
	if got := OwnModules(wrapper); got != "" {
		t.Errorf("own modules where there are none: %s", got)
	}
	if err := errors.Join(coverModules(dir), os.Symlink(program, filepath.Join(covered.Dir, "link"))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Dir(program), 0o755), os.WriteFile(program, nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{wrapper, program, filepath.Join(covered.Dir, "link")} {
		if got := OwnModules(p); got != dir {
			t.Errorf("own modules of %s in %q, want %s", p, got, dir)
		}
	}
	for _, p := range []string{"", Program, filepath.Join(dir, "x"), "/usr/bin/" + Program} {
		if got := OwnModules(p); got != "" {
			t.Errorf("own modules of %s in %s", p, got)
		}
	}
	if p, err := covered.Find(Block100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty file counts as %s: %s %v", Block100, p, err)
	}
}

// An unpacked QEMU loads all its modules, and none of another build's in the folders of a QEMU that this system has.
// Both folders are made in a mount namespace: the one compiled in, and the one in /run.
func TestForeignModules(t *testing.T) {
	if testing.Short() {
		t.Skip("-short, as in `make check`: the tests that start a QEMU are left to `make test`")
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: a mount namespace is needed")
	}
	opened := regexp.MustCompile(`(?:open|initialize) module: /(?:usr/lib|run|var/run)/`)
	answers := regexp.MustCompile(`(?m)^\{.*\n?`)
	all := map[What]string{} // programs
	for _, what := range []What{QEMU72, QEMU100, QEMU111} {
		if program, err := Find(what); err == nil {
			all[what] = program
		} else if os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" && installed(within.Context(t), what) == "" {
			t.Fatal(err)
		}
	}
	place := librariesWithQEMU(t)
	for _, what := range []What{QEMU72, QEMU100, QEMU111} {
		t.Run(string(what), func(t *testing.T) {
			t.Parallel()
			program, other := all[what], all[QEMU100]
			if what == QEMU100 {
				other = all[QEMU111]
				if all[QEMU72] != "" {
					other = all[QEMU72]
				}
			}
			if program == "" || other == "" {
				t.Skip("it needs two unpacked QEMUs, and `make deps` unpacks none that this system has installed")
			}
			out, err := exec.Command(program, "--version").Output()
			_, rest, _ := strings.Cut(string(out), "(")
			version, _, ok := strings.Cut(rest, ")")
			if err != nil || !ok {
				t.Fatalf("%s: %v", out, err)
			}
			// Source of the name of the folder in /run: util/module.c, module_load.
			inRun := "/run/qemu/" + regexp.MustCompile(`[^A-Za-z0-9+.~-]`).ReplaceAllString(version, "_")
			root := filepath.Dir(program)
			foreign := foreignModules(t, filepath.Join(root, "usr/bin", Program), moduleDir(filepath.Dir(other)))
			bare, fresh := realModules(t, moduleDir(root)), realModules(t, moduleDir(root))
			if err := coverModules(fresh); err != nil {
				t.Fatal(err)
			}
			for name, own := range map[string]string{"as unpacked": moduleDir(root), "without block drivers": fresh} {
				said, err := besideForeign(t, program, own, foreign, inRun, place)
				if err != nil || !strings.Contains(said, `"name": "usb-redir"`) || opened.MatchString(said) {
					t.Errorf("%s: %v: %s", name, err, answers.ReplaceAllString(said, ""))
				}
			}
			// With nothing in their place it falls into the trap. Otherwise there would be none.
			if said, err := besideForeign(t, program, bare, foreign, inRun, place); !opened.MatchString(said) {
				t.Errorf("a QEMU opened no foreign modules: %v: %s", err, answers.ReplaceAllString(said, ""))
			}
		})
	}
}

// foreignModules is a folder with the modules of another build, and more of them under every name in the program that
// may be a module's.
func foreignModules(t *testing.T, program, other string) string {
	t.Helper()
	dir := realModules(t, other)
	module, err := os.ReadFile(filepath.Join(other, "hw-usb-host.so"))
	if err != nil || len(module) == 0 {
		t.Fatalf("no module to try with: %d bytes, %v", len(module), err)
	}
	code, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\x00((?:accel|audio|block|chardev|hw|ui)-[a-z0-9_-]+)\x00`)
	for _, m := range names.FindAllSubmatch(code, -1) {
		if err := os.WriteFile(filepath.Join(dir, string(m[1])+".so"), module, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// realModules is a copy of a folder of modules, without the empty files and the block drivers.
func realModules(t *testing.T, from string) string {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(from, "*.so"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no modules in %s: %v", from, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && len(b) > 0 && !slices.Contains(modules(), filepath.Base(f)) {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(f)), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const systemLibraries = "/usr/lib/x86_64-linux-gnu"

// librariesWithQEMU is what can lie over this system's folder of libraries, which need not have a folder for QEMU. Its
// folder links is links to all that is in the system's, for which its folder orig stands; and to its folder foreign.
func librariesWithQEMU(t *testing.T) string {
	t.Helper()
	place := t.TempDir()
	for _, name := range []string{"orig", "links", "foreign"} {
		if err := os.Mkdir(filepath.Join(place, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	all, err := os.ReadDir(systemLibraries)
	if err != nil {
		t.Fatal(err)
	}
	links := map[string]string{"qemu": filepath.Join(place, "foreign")}
	for _, e := range all {
		if e.Name() != "qemu" {
			links[e.Name()] = filepath.Join(place, "orig", e.Name())
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(place, "links", name)); err != nil {
			t.Fatal(err)
		}
	}
	return place
}

// besideForeign asks an unpacked QEMU for all its types, with the folder own for its modules, where this system's QEMU
// has the modules in foreign. What it says, errors and answers, comes back.
func besideForeign(t *testing.T, program, own, foreign, inRun, place string) (said string, err error) {
	t.Helper()
	script := `set -e
own=$1 its=$2 foreign=$3 run=$4 place=$5 libs=$6
shift 6
mount --bind "$own" "$its"
mount --rbind "$libs" "$place/orig"
mount --bind "$foreign" "$place/foreign"
mount --bind "$place/links" "$libs"
mount -t tmpfs none /run
mkdir -p "$run"
mount --bind "$foreign" "$run"
exec "$@"`
	ctx, cancel := context.WithTimeout(within.Context(t), driverLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-c", script, "sh", own,
		moduleDir(filepath.Dir(program)), foreign, inRun, place, systemLibraries, program, "-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"qom-list-types"}{"execute":"quit"}`)
	b, err := cmd.CombinedOutput()
	return string(b), err
}

func TestSplitLoader(t *testing.T) {
	for line, want := range map[string]int{ // where the program is
		"":                        0,
		"/usr/bin/qemu --argv0 x": 0,
		"/a/ld-linux-x86-64.so.2": 0,
		"ld.so --list qemu":       0,
		"ld.so --argv0 x":         0,
		"ld.so qemu -S":           1,
		"ld.so --inhibit-cache q": 2,
		"/a/ld-linux-x86-64.so.2 --library-path /a:/b --argv0 x /bin/q -S": 5,
	} {
		args := strings.Fields(line)
		by, rest := SplitLoader(args)
		if len(by) != want || !slices.Equal(append(by, rest...), args) {
			t.Errorf("%q: %q, %q", line, by, rest)
		}
	}
}
