package debian

import (
	"context"
	"errors"
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
	for _, name := range modules() { // it would count as there
		if slices.Contains(moduleNames(), strings.TrimSuffix(name, ".so")) {
			t.Errorf("%s is covered", name)
		}
	}
}

// An unpacked QEMU loads all its modules, and none of another build's that lies in one of its other folders, here the
// one in /run.
func TestForeignModules(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: a mount namespace is needed")
	}
	var poison []byte
	for _, what := range []What{QEMU72, QEMU100, QEMU111} {
		t.Run(string(what), func(t *testing.T) {
			program, err := Find(what)
			if err != nil {
				if os.Getenv("QMIGRATE_REQUIRE_QEMU") == "1" && installed(within.Context(t), what) == "" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			if poison == nil { // 7.2's for the later ones
				m, _ := filepath.Glob(filepath.Join(ModuleDir(program), "hw-usb-host.so"))
				if len(m) == 1 {
					poison, err = os.ReadFile(m[0])
				}
				if err != nil || len(poison) == 0 {
					t.Fatalf("no module to try with: %q %v", m, err)
				}
				return
			}
			out, err := exec.Command(program, "--version").Output()
			_, rest, _ := strings.Cut(string(out), "(")
			version, _, ok := strings.Cut(rest, ")")
			if err != nil || !ok {
				t.Fatalf("%s: %v", out, err)
			}
			code, err := os.ReadFile(filepath.Join(filepath.Dir(program), "usr/bin", Program))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			names := regexp.MustCompile(`\x00((?:accel|audio|block|chardev|hw|ui)-[a-z0-9-]+)\x00`)
			for _, m := range names.FindAllSubmatch(code, -1) {
				if err := os.WriteFile(filepath.Join(dir, string(m[1])+".so"), poison, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			// Source of the folder's name: util/module.c, module_load.
			folder := "/run/qemu/" + regexp.MustCompile(`[^A-Za-z0-9+.~-]`).ReplaceAllString(version, "_")
			script := `mount -t tmpfs none /run && mkdir -p "$1" && cp "$2"/* "$1" && shift 2 && exec "$@"`
			ctx, cancel := context.WithTimeout(within.Context(t), driverLimit)
			defer cancel()
			cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-c", script, "sh", folder, dir, program,
				"-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")
			cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"qom-list-types"}{"execute":"quit"}`)
			said, err := cmd.CombinedOutput()
			text := string(said)
			if err != nil || !strings.Contains(text, `"name": "usb-redir"`) || strings.Contains(text, "/run/qemu") {
				t.Errorf("%v: %s", err, regexp.MustCompile(`(?m)^\{.*\n?`).ReplaceAllString(text, ""))
			}
		})
	}
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
