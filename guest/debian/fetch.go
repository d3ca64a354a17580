package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"qmigrate/internal/atomicfile"
)

// emulator is the name of Debian's package.
const emulator = "qemu-system-x86"

// kernelPackage is the name of Debian's metapackage of a kernel; "" if what is something else.
func kernelPackage(what What) string {
	switch what {
	case Kernel:
		return "linux-image-cloud-amd64"
	case Generic:
		return "linux-image-amd64"
	}
	return ""
}

// recipe says where a thing comes from.
type recipe struct {
	series string   // of the emulator's version: "7.2"
	suites []string // source list
	target string   // apt's -t; "" none
	whole  bool     // with every library, and the dynamic linker: this system's C library is too old
}

func recipeFor(what What, codename string) recipe {
	r := recipe{suites: []string{"bookworm", "bookworm-security"}}
	switch {
	case what == QEMU72:
		r.series = "7.2"
	case what == QEMU100 && codename == "trixie":
		r = recipe{series: "10.0", suites: []string{"trixie", "trixie-security"}}
	case what == QEMU100:
		r.series, r.target = "10.0", "bookworm-backports"
		r.suites = append(r.suites, r.target)
	case what == QEMU111:
		r = recipe{series: "11.1", suites: []string{"trixie", "trixie-security", "trixie-backports"},
			target: "trixie-backports", whole: codename != "trixie"}
	}
	return r
}

// apt is apt with a source list, package lists and a cache of its own, in dir. It reads the system's configuration for
// the rest (proxies).
type apt struct {
	dir string
	say func(format string, args ...any)
}

// configure writes apt's files. Without ownStatus apt counts what this system has installed as there; with it, nothing.
func (a apt) configure(sources string, ownStatus bool) error {
	status := ""
	if ownStatus {
		status = fmt.Sprintf("Dir::State::status \"%s\";\n", filepath.Join(a.dir, "status"))
	}
	conf := fmt.Sprintf(`#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "%s";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "%s";
Dir::Cache "%s";
%sDebug::NoLocking "true";
APT::Update::Error-Mode "any";
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
`, filepath.Join(a.dir, "sources"), filepath.Join(a.dir, "lists"), filepath.Join(a.dir, "cache"), status)
	for _, d := range []string{"sources", "lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(a.dir, "apt.conf"), []byte(conf), 0o644),
		os.WriteFile(filepath.Join(a.dir, "status"), nil, 0o644),
		os.WriteFile(filepath.Join(a.dir, "sources", "qmigrate.sources"), []byte(sources), 0o644))
}

// run runs apt-get or apt-cache and returns its output; the error has apt's own error lines.
func (a apt) run(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, append([]string{"-c", filepath.Join(a.dir, "apt.conf")}, args...)...)
	cmd.Dir = filepath.Join(a.dir, "cache/archives")
	return output(cmd)
}

func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s is not installed: is this Debian?", cmd.Args[0])
	}
	if err != nil {
		var said []string
		for l := range strings.Lines(stderr.String() + stdout.String()) {
			if l = strings.TrimSpace(l); strings.HasPrefix(l, "E: ") || strings.HasPrefix(l, "dpkg-deb: error") ||
				strings.Contains(l, "Depends: ") {
				said = append(said, l)
			}
		}
		if len(said) == 0 {
			said = []string{strings.TrimSpace(stderr.String())}
		}
		return "", fmt.Errorf("%s: %w: %s", strings.Join(slices.DeleteFunc([]string{cmd.Args[0], firstWord(cmd.Args)},
			func(s string) bool { return s == "" }), " "),
			err, strings.Join(said[:min(len(said), 2)], "; "))
	}
	return stdout.String(), nil
}

// firstWord is the first argument that is a command: no option, no path.
func firstWord(args []string) string {
	for _, a := range args[1:] {
		if !strings.HasPrefix(a, "-") && !strings.Contains(a, "/") {
			return a
		}
	}
	return ""
}

// lists is apt with the package lists of the suites that as comes from, in tmp. Nothing counts as installed with
// ownStatus, or if as comes whole.
func (s Store) lists(ctx context.Context, what, as What, tmp string, ownStatus bool) (a apt, sys system, err error) {
	if sys, err = readSystem(s.Root); err != nil {
		return a, sys, err
	}
	r := recipeFor(as, sys.codename)
	a = apt{dir: filepath.Join(tmp, "apt"),
		say: func(f string, args ...any) { fmt.Fprintf(s.Log, "%s: %s\n", what, fmt.Sprintf(f, args...)) }}
	if err := a.configure(sys.sourcesFor(r.suites), ownStatus || r.whole); err != nil {
		return a, sys, err
	}
	a.say("reading the package lists of %s from %s", strings.Join(r.suites, ", "), sys.mirror.uris[0])
	if sys.security.uris == nil {
		a.say("apt's configuration names no security mirror: going without")
	}
	if _, err := a.run(ctx, "apt-get", "update", "-q"); err != nil {
		return a, sys, fmt.Errorf("%w (is the network up?)", err)
	}
	return a, sys, nil
}

// fetch downloads the packages of what into tmp and unpacks them into root.
func (s Store) fetch(ctx context.Context, what What, tmp, root string) error {
	a, sys, err := s.lists(ctx, what, what, tmp, kernelPackage(what) != "")
	if err != nil {
		return err
	}
	r := recipeFor(what, sys.codename)
	if name := kernelPackage(what); name != "" {
		return a.kernel(ctx, name, root)
	}
	version, err := a.version(ctx, r.series)
	if err != nil {
		return err
	}
	err = a.emulator(ctx, r, version, root, nil)
	if err == nil || ctx.Err() != nil || r.whole {
		return err
	}
	// What is installed here is in the way, or not enough. Then nothing counts as installed but the C library, which this
	// system's must replace: it has to fit the dynamic linker.
	a.say("not with the libraries of this system (%v): fetching them all", err)
	if err := a.configure(sys.sourcesFor(r.suites), true); err != nil {
		return err
	}
	return a.emulator(ctx, r, version, root, []string{"libc6", "libc-bin"})
}

// version is the newest version of the emulator's package that is of the series: "1:10.0.2+ds-2+deb13u1~bpo12+1" for
// 10.0.
func (a apt) version(ctx context.Context, series string) (string, error) {
	out, err := a.run(ctx, "apt-cache", "madison", emulator)
	if err != nil {
		return "", err
	}
	var have []string
	for l := range strings.Lines(out) { // "qemu-system-x86 | 1:7.2+dfsg-7 | http://... bookworm/main amd64 Packages"
		f := strings.Split(l, "|")
		if len(f) < 3 {
			continue
		}
		v := strings.TrimSpace(f[1])
		_, upstream, _ := strings.Cut(v, ":")
		if rest, ok := strings.CutPrefix(upstream, series); ok && (rest == "" || rest[0] < '0' || rest[0] > '9') {
			return v, nil
		}
		have = append(have, v)
	}
	return "", fmt.Errorf("the package lists have no %s %s, but %q", emulator, series, have)
}

// emulator gets the emulator with what it depends on, but for the packages to skip, and tries it.
func (a apt) emulator(ctx context.Context, r recipe, version, root string, skip []string) error {
	args := []string{"install", "-q", "--download-only", "--no-install-recommends", "--allow-downgrades"}
	if r.target != "" {
		args = append(args, "-t", r.target)
	}
	a.say("fetching %s %s", emulator, version)
	if _, err := a.run(ctx, "apt-get", append(args, emulator+"="+version)...); err != nil {
		return err
	}
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	if err := a.unpack(ctx, root, skip); err != nil {
		return err
	}
	if err := errors.Join(coverModules(moduleDir(root)), writeWrapper(root, root)); err != nil {
		return err
	}
	for _, f := range []string{"usr/share/seabios/bios-256k.bin", "usr/share/qemu/linuxboot_dma.bin",
		"usr/share/qemu/kvmvapic.bin"} {
		if _, err := os.Stat(filepath.Join(root, f)); err != nil {
			return err
		}
	}
	return works(ctx, filepath.Join(root, Program), r.series)
}

// kernel gets the kernel that the metapackage names.
func (a apt) kernel(ctx context.Context, meta, root string) error {
	out, err := a.run(ctx, "apt-cache", "depends", meta)
	if err != nil {
		return err
	}
	_, rest, ok := strings.Cut(out, "Depends: ")
	name, _, _ := strings.Cut(rest, "\n")
	if name = strings.TrimSpace(name); !ok || !strings.HasPrefix(name, "linux-image-") {
		return fmt.Errorf("apt-cache depends %s: no kernel in %q", meta, out)
	}
	a.say("fetching %s", name)
	if _, err := a.run(ctx, "apt-get", "download", "-q", name); err != nil {
		return err
	}
	if err := a.unpack(ctx, root, nil); err != nil {
		return err
	}
	if m, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*")); len(m) != 1 {
		return fmt.Errorf("package %s has %d kernels, want 1", name, len(m))
	}
	return nil
}

// unpack unpacks every downloaded package into root, but for those to skip.
func (a apt) unpack(ctx context.Context, root string, skip []string) error {
	debs, _ := filepath.Glob(filepath.Join(a.dir, "cache/archives/*.deb"))
	if len(debs) == 0 {
		return errors.New("apt fetched no package: they count as installed here")
	}
	a.say("unpacking %d packages", len(debs))
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	for _, d := range debs {
		if name, _, _ := strings.Cut(filepath.Base(d), "_"); slices.Contains(skip, name) {
			continue
		}
		if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "-x", d, root)); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(d), err)
		}
	}
	return nil
}

// writeWrapper writes root/qemu-system-x86_64. It runs the emulator from the folder home with the libraries and data
// in there. It execs, so that the process is QEMU. Where the folder has a C library, it also has the dynamic linker
// that fits it, and the emulator is run by that one: then /proc/PID/exe names the linker (see SplitLoader), and
// QEMU's children keep the environment and the libraries of this system.
func writeWrapper(root, home string) error {
	script, err := wrapper(root, home)
	if err != nil {
		return err
	}
	// In one piece: somebody may be starting it.
	return atomicfile.Write(filepath.Join(root, Program), []byte(script), 0o755)
}

// Unpacked is the folder of a QEMU that Ensure unpacked, by the path of its program; "" if the program is another.
func Unpacked(program string) string {
	root := filepath.Dir(program)
	if _, err := os.Stat(filepath.Join(root, "usr/bin", Program)); err != nil || filepath.Base(program) != Program {
		return ""
	}
	return root
}

// Wrapper is the text of a script that runs the QEMU of an unpacked folder, root, from a copy of that folder elsewhere.
func Wrapper(root, copied string) (string, error) { return wrapper(root, copied) }

func wrapper(root, home string) (string, error) {
	q := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	var libs []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu", "lib/*-linux-gnu"} {
		m, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, d := range m {
			rel, err := filepath.Rel(root, d)
			if err != nil {
				return "", err
			}
			libs = append(libs, filepath.Join(home, rel))
		}
	}
	program := q(filepath.Join(home, "usr/bin", Program))
	script := "#!/bin/sh\n"
	if by, err := loaderIn(root, home); err != nil {
		return "", err
	} else if by != "" {
		program = q(by) + " --library-path " + q(strings.Join(libs, ":")) + " --argv0 " + program + " " + program
	} else {
		script += "LD_LIBRARY_PATH=" + q(strings.Join(libs, ":")) + "${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n" +
			"export LD_LIBRARY_PATH\n"
	}
	rel, err := filepath.Rel(root, moduleDir(root))
	if err != nil {
		return "", err
	}
	script += "QEMU_MODULE_DIR=" + q(filepath.Join(home, rel)) + "\nexport QEMU_MODULE_DIR\n"
	script += "exec " + program
	for _, d := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"} {
		script += " -L " + q(filepath.Join(home, d))
	}
	return script + ` "$@"` + "\n", nil
}

// loaderIn is the path in home of the dynamic linker that was unpacked into root, "" if none was.
func loaderIn(root, home string) (string, error) {
	m, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu", loader))
	old, _ := filepath.Glob(filepath.Join(root, "lib/*-linux-gnu", loader)) // before Debian 13
	if m = append(m, old...); len(m) == 0 {
		return "", nil
	}
	rel, err := filepath.Rel(root, m[0])
	return filepath.Join(home, rel), err
}

// IsLoader reports whether a program is glibc's dynamic linker, by its name.
func IsLoader(program string) bool {
	name := filepath.Base(program)
	return name == loader || name == "ld.so"
}

// loader is the file name of glibc's dynamic linker.
const loader = "ld-linux-x86-64.so.2"

// SplitLoader cuts a command line in two: a dynamic linker with its options, which runs the program that the rest
// begins with. Most command lines begin with the program; then the first part is empty. Source of the options:
// elf/rtld.c of glibc 2.41.
func SplitLoader(args []string) (by, rest []string) {
	if len(args) == 0 || !IsLoader(args[0]) {
		return nil, args
	}
	for i := 1; i < len(args); i++ {
		switch args[i] {
		case "--library-path", "--argv0", "--preload", "--audit", "--inhibit-rpath", "--glibc-hwcaps-prepend",
			"--glibc-hwcaps-mask":
			i++
		case "--inhibit-cache":
		default:
			if strings.HasPrefix(args[i], "--") { // no program is run: --list, --verify, --help
				return nil, args
			}
			return slices.Clone(args[:i]), args[i:]
		}
	}
	return nil, args
}

// works runs a QEMU with --version.
func works(ctx context.Context, path, series string) error {
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		return fmt.Errorf("try the unpacked %s: %w: %s", Program, err, line)
	}
	if !strings.Contains(line, "version "+series+".") {
		return fmt.Errorf("try the unpacked %s: want %s, it says %q", Program, series, line)
	}
	return nil
}
