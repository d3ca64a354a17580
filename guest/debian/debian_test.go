package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"qmigrate/guest/guesttest/within"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	bookwormSources = `# comment
Types: deb
# another
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.test/debian-security/
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBGPL
 -----END PGP PUBLIC KEY BLOCK-----
`
	osRelease = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n"
)

// machine is a root folder with apt's configuration.
func machine(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestReadSystem(t *testing.T) {
	for name, c := range map[string]struct {
		files                     map[string]string
		mirror, security, signed  string
		err                       string
		wantSources, wantNoSource string
	}{
		"deb822": {files: map[string]string{"etc/os-release": osRelease, "etc/apt/sources.list.d/debian.sources": bookwormSources},
			mirror: "http://mirror.test/debian", security: "http://mirror.test/debian-security/", signed: "/usr/share/keyrings/debian-archive-keyring.gpg",
			wantSources: " -----BEGIN PGP PUBLIC KEY BLOCK-----"},
		"one line": {files: map[string]string{"etc/os-release": osRelease,
			"etc/apt/sources.list": "# deb cdrom:[Debian]/ bookworm main\ndeb cdrom:[Debian]/ bookworm main\n" +
				"deb-src http://src.test/debian bookworm main\ndeb [ arch=amd64 signed-by=/k.gpg ] https://m.test/debian/ bookworm main non-free # here\n" +
				"deb http://s.test/debian-security bookworm-security main\n"},
			mirror: "https://m.test/debian/", security: "http://s.test/debian-security", signed: "/k.gpg", wantNoSource: "amd64"},
		"third parties": {files: map[string]string{"etc/os-release": osRelease,
			"etc/apt/sources.list.d/a.list":   "deb [trusted=yes] https://apt.other.test bookworm main\n",
			"etc/apt/sources.list.d/d.list":   "deb https://download.other.test/linux/debian bookworm stable\n",
			"etc/apt/sources.list.d/off.list": "#deb http://off.test/debian bookworm main\n",
			"etc/apt/sources.list.d/z.list":   "deb http://own.test/deb bookworm main\ndeb http://own.test/deb bookworm-updates main\n",
			"etc/apt/sources.list.d/y.sources": "Enabled: no\n" +
				bookwormSources[len("# comment\n"):strings.Index(bookwormSources, "\n\n")] + "\n",
			"etc/apt/sources.list.d/readme": "not a list\n"},
			mirror: "http://own.test/deb"},
		"not Debian":   {files: map[string]string{"etc/os-release": "ID=fedora\nPRETTY_NAME=\"Fedora Linux 41\"\n"}, err: "this is Fedora Linux 41, not Debian"},
		"nothing":      {err: "not Debian"},
		"no mirror":    {files: map[string]string{"etc/os-release": osRelease}, err: "names no Debian mirror"},
		"broken":       {files: map[string]string{"etc/os-release": osRelease, "etc/apt/sources.list.d/x.sources": "Types deb\n"}, err: "x.sources"},
		"broken lines": {files: map[string]string{"etc/os-release": osRelease, "etc/apt/sources.list": "deb [a=b http://m.test bookworm main\n"}, err: "no ]"},
	} {
		t.Run(name, func(t *testing.T) {
			sys, err := readSystem(machine(t, c.files))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v; want an error with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if sys.mirror.uris[0] != c.mirror || strings.Join(sys.security.uris, "") != c.security ||
				sys.mirror.options["signed-by"] != c.signed {
				t.Errorf("%+v", sys)
			}
			text := sys.sourcesFor([]string{"bookworm", "bookworm-security", "bookworm-backports"})
			back, err := parseDeb822([]byte(text))
			if want := 2 + len(sys.security.uris); err != nil || len(back) != want {
				t.Fatalf("%v %d in %s", err, len(back), text)
			}
			if !strings.Contains(text, c.wantSources) || c.wantNoSource != "" && strings.Contains(text, c.wantNoSource) ||
				!strings.Contains(text, "targets: Packages") {
				t.Error(text)
			}
		})
	}
}

func FuzzDeb822(f *testing.F) {
	f.Add([]byte(bookwormSources))
	f.Add([]byte("Enabled: no\nTypes: deb\n\n\nX:\n y\n z\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseDeb822(b)
		if err != nil {
			if all != nil {
				t.Errorf("%+v with %v", all, err)
			}
			return
		}
		var text []string
		for _, s := range all {
			text = append(text, s.deb822())
		}
		again, err := parseDeb822([]byte(strings.Join(text, "\n")))
		if err != nil || !slices.EqualFunc(all, again, same) {
			t.Errorf("of %q\ncame %+v,\nof %q\n%+v %v", b, all, text, again, err)
		}
	})
}

func FuzzList(f *testing.F) {
	f.Add([]byte("deb [ arch=amd64,i386 signed-by=/k ] http://m/debian bookworm main # x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseList(b)
		if err != nil && all != nil {
			t.Errorf("%+v with %v", all, err)
		}
		for _, s := range all {
			if len(s.types) != 1 || len(s.uris) != 1 || len(s.suites) != 1 {
				t.Errorf("%+v", s)
			}
		}
	})
}

func same(a, b source) bool {
	return slices.Equal(a.types, b.types) && slices.Equal(a.uris, b.uris) && slices.Equal(a.suites, b.suites) &&
		slices.Equal(a.components, b.components) &&
		maps.Equal(a.options, b.options) && a.disabled == b.disabled
}

// fakeApt puts an apt and a dpkg-deb into $PATH that need no network. A package is a file that names itself; unpacking
// it makes what Ensure looks for. log collects what was run.
func fakeApt(t *testing.T, broken string) (log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	write := func(name, script string) {
		script = "#!/bin/sh\nbroken='" + broken + "'\necho " + name + " \"$@\" >> " + log + "\n" + script
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("apt-get", `shift 2
case $1 in
update) if [ "$broken" = network ]; then echo 'E: Failed to fetch http://mirror.test' >&2; exit 100; fi ;;
install)
	if [ "$broken" = depends ] && ! grep -q Dir::State::status ../../apt.conf; then
		echo 'E: Unable to correct problems, you have held broken packages.' >&2; exit 100
	fi
	for p in qemu-system-x86 libc6 libfdt1; do echo $p > ${p}_1_amd64.deb; done
	for a; do case $a in qemu-system-x86=*) echo ${a#*=} > version;; esac; done ;;
download) [ "$broken" = slow ] && sleep 0.3; echo $3 > $3_1_amd64.deb ;;
esac`)
	write("apt-cache", `shift 2
case $1 in
madison) cat <<E
qemu-system-x86 | 1:11.1.3+ds-1~bpo13+1 | http://mirror.test/debian trixie-backports/main amd64 Packages
qemu-system-x86 | 1:10.0.2+ds-2~bpo12+1 | http://mirror.test/debian bookworm-backports/main amd64 Packages
qemu-system-x86 | 1:7.2+dfsg-7+deb12u18 | http://mirror.test/debian bookworm/main amd64 Packages
E
;;
depends) echo linux-image-cloud-amd64; echo '  Depends: linux-image-6.1.0-1-test'; echo '  Suggests: x' ;;
esac`)
	write("dpkg-deb", `cd "$3"; p=$(cat "$2")
[ "$broken" = disk ] && { echo 'dpkg-deb: error: No space left on device' >&2; exit 2; }
case $p in
libc6) if grep -q :11 "${2%/*}/version"; then
		mkdir -p usr/lib/x86_64-linux-gnu; ld=usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
		echo '#!/bin/sh' > $ld
		echo '[ "$1 $3" = "--library-path --argv0" ] && libs=$2 argv0=$4 && shift 4 && "$@" && echo by $argv0 $libs' >> $ld
		chmod +x $ld
	else
		mkdir -p lib/x86_64-linux-gnu; : > lib/x86_64-linux-gnu/libc.so.6
	fi ;;
libfdt1) mkdir -p usr/lib/x86_64-linux-gnu; : > usr/lib/x86_64-linux-gnu/libfdt.so.1 ;;
qemu*) mkdir -p usr/bin usr/share/seabios usr/share/qemu
	: > usr/share/seabios/bios-256k.bin; : > usr/share/qemu/linuxboot_dma.bin; : > usr/share/qemu/kvmvapic.bin
	v=$(cut -d: -f2 "${2%/*}/version" | cut -d+ -f1).0; [ "$broken" = binary ] && v=1.0.0
	printf '#!/bin/sh\necho QEMU emulator version %s; echo "$LD_LIBRARY_PATH"; echo "$@"\n' $v > usr/bin/qemu-system-x86_64; chmod +x usr/bin/qemu-system-x86_64 ;;
linux*) mkdir -p boot lib/modules/6.1.0-1-test; : > boot/vmlinuz-6.1.0-1-test ;;
esac`)
	t.Setenv("PATH", dir+":"+tools(t))
	return log
}

// tools is a folder with what the scripts of these tests need of this system, and no QEMU that it may have.
func tools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"cat", "chmod", "cut", "grep", "mkdir", "sh", "sleep"} {
		p, err := exec.LookPath(name)
		if err == nil {
			err = os.Symlink(p, filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func store(t *testing.T, log io.Writer) Store {
	t.Helper()
	return Store{Dir: filepath.Join(t.TempDir(), "it's a cache"), Log: log,
		Root: machine(t, map[string]string{"etc/os-release": osRelease,
			"etc/apt/sources.list.d/debian.sources": bookwormSources})}
}

// clean checks that nothing but whole things and locks is in the cache.
func clean(t *testing.T, s Store, want ...string) {
	t.Helper()
	var have []string
	files, _ := os.ReadDir(s.Dir)
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".lock") {
			have = append(have, f.Name())
		}
	}
	if !slices.Equal(have, want) {
		t.Errorf("in the cache: %q, want %q", have, want)
	}
}

func TestEnsure(t *testing.T) {
	ran := fakeApt(t, "")
	var log strings.Builder
	s := store(t, &log)
	for _, what := range All() {
		p, err := s.Ensure(within.Context(t), what)
		if err != nil {
			t.Fatalf("%v; said: %s", err, log.String())
		}
		if again, err := s.Ensure(within.Context(t), what); err != nil || again != p {
			t.Errorf("%s %v, before %s", again, err, p)
		}
		if found, err := s.Find(what); err != nil || found != p {
			t.Errorf("%s %v, want %s", found, err, p)
		}
	}
	clean(t, s, "kernel", "qemu-10.0", "qemu-7.2")
	for _, l := range []string{"fetching qemu-system-x86 1:7.2+dfsg-7+deb12u18\n",
		"fetching qemu-system-x86 1:10.0.2+ds-2~bpo12+1\n", "fetching linux-image-6.1.0-1-test\n", "kernel: there already: "} {
		if !strings.Contains(log.String(), l) {
			t.Errorf("no %q in %s", l, log.String())
		}
	}
	commands, err := os.ReadFile(ran)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(commands), " update "); n != 3 {
		t.Errorf("%d updates in %s", n, commands)
	}
	// The wrapper works where it went, quotes and all, and execs.
	out, err := os.ReadFile(s.path(QEMU72))
	if err != nil || !strings.Contains(string(out),
		"\nexec '"+strings.ReplaceAll(s.Dir, "'", `'\''`)+"/qemu-7.2/usr/bin/") {
		t.Errorf("%s %v", out, err)
	}
	if err := works(within.Context(t), s.path(QEMU72), "7.2"); err != nil {
		t.Error(err)
	}
	// One that no longer runs is got again.
	if err := os.WriteFile(s.path(QEMU72), []byte("#!/bin/sh\nexit 127\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ensure(within.Context(t), QEMU72); err != nil || !strings.Contains(log.String(), "getting it again") {
		t.Errorf("%v; said: %s", err, log.String())
	}
}

// One that is newer than this system comes with its dynamic linker, and runs by it: the environment stays as it is.
func TestEnsureWhole(t *testing.T) {
	ran := fakeApt(t, "")
	var log strings.Builder
	s := store(t, &log)
	p, err := s.Ensure(within.Context(t), QEMU111)
	if err != nil || strings.Contains(log.String(), "fetching them all") {
		t.Fatalf("%v; said: %s", err, log.String())
	}
	again, err := s.Ensure(within.Context(t), QEMU111)
	if err != nil || again != p || !strings.Contains(log.String(), "qemu-11.1: there already") {
		t.Errorf("%s %v, before %s", again, err, p)
	}
	clean(t, s, "qemu-11.1")
	wantRan := " -t trixie-backports qemu-system-x86=1:11.1.3"
	if b, err := os.ReadFile(ran); err != nil || !strings.Contains(string(b), wantRan) {
		t.Errorf("%s %v", b, err)
	}
	t.Setenv("LD_LIBRARY_PATH", "/mine")
	out, err := exec.Command(p, "-S").Output()
	root := filepath.Dir(p)
	libs, program := root+"/usr/lib/x86_64-linux-gnu", root+"/usr/bin/"+Program
	want := "QEMU emulator version 11.1.3.0\n/mine\n-L " + root + "/usr/share/qemu -L " + root + "/usr/share/seabios" +
		" -L " + root + "/usr/lib/ipxe/qemu -S\nby " + program + " " + libs + "\n"
	if err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
	if b, err := os.ReadFile(p); err != nil || !strings.Contains(string(b), "\nexport QEMU_MODULE_DIR\nexec ") {
		t.Errorf("%s %v", b, err)
	}
}

func TestEnsureInstalled(t *testing.T) {
	fakeApt(t, "network") // is not asked
	dir := t.TempDir()
	bin := filepath.Join(dir, Program)
	if err := os.WriteFile(bin, []byte("#!/bin/sh\necho QEMU emulator version 10.0.2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if p, err := store(t, nil).Ensure(within.Context(t), QEMU100); err != nil || p != bin {
		t.Errorf("%s %v", p, err)
	}
	if p, err := store(t, nil).Ensure(within.Context(t), QEMU72); err == nil {
		t.Errorf("%s", p)
	}
}

func TestEnsureOwnLibraries(t *testing.T) {
	fakeApt(t, "depends")
	var log strings.Builder
	s := store(t, &log)
	p, err := s.Ensure(within.Context(t), QEMU72)
	if err != nil || !strings.Contains(log.String(), "fetching them all") {
		t.Fatalf("%v; said: %s", err, log.String())
	}
	root := filepath.Dir(p)
	if _, err := os.Stat(filepath.Join(root, "usr/lib/x86_64-linux-gnu/libfdt.so.1")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, "lib/x86_64-linux-gnu/libc.so.6")); err == nil {
		t.Error("another C library than the dynamic linker's")
	}
}

func TestEnsureFails(t *testing.T) {
	for broken, want := range map[string]string{"network": "Failed to fetch", "disk": "No space left",
		"binary": "want 7.2"} {
		t.Run(broken, func(t *testing.T) {
			fakeApt(t, broken)
			s := store(t, nil)
			p, err := s.Ensure(within.Context(t), QEMU72)
			var e *Error
			if p != "" || !errors.As(err, &e) || e.What != QEMU72 || !strings.Contains(err.Error(), want) ||
				!strings.Contains(err.Error(), "its path as qemu") {
				t.Errorf("%s %v; want an error with %q", p, err, want)
			}
			clean(t, s)
		})
	}
	t.Run("no apt", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		s := store(t, nil)
		if _, err := s.Ensure(within.Context(t), Kernel); err == nil || !strings.Contains(err.Error(), "apt-get is not installed") ||
			!strings.Contains(err.Error(), "kernel and modules") {
			t.Error(err)
		}
		clean(t, s)
	})
	t.Run("unknown", func(t *testing.T) {
		if _, err := store(t, nil).Ensure(within.Context(t), "qemu-1.0"); err == nil || !strings.Contains(err.Error(), "unknown") {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		fakeApt(t, "slow")
		s := store(t, nil)
		ctx, cancel := context.WithTimeout(within.Context(t), 150*time.Millisecond)
		defer cancel()
		if _, err := s.Ensure(ctx, Kernel); err == nil {
			t.Error("no error")
		}
		clean(t, s)
	})
}

// What a killed run left is neither taken nor kept; of many at once one fetches.
func TestEnsureAtOnce(t *testing.T) {
	ran := fakeApt(t, "slow")
	s := store(t, nil)
	half := filepath.Join(s.Dir, ".kernel.tmp123", "root", "boot")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if p, err := s.Ensure(within.Context(t), Kernel); err != nil || p != filepath.Join(s.Dir, "kernel") {
				t.Errorf("%s %v", p, err)
			}
		})
	}
	within.Wait(t, "what was fetched at once", &wg)
	clean(t, s, "kernel")
	if commands, err := os.ReadFile(ran); err != nil || strings.Count(string(commands), " update ") != 1 {
		t.Errorf("%v: %s", err, commands)
	}
}

func TestLockWaits(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(within.Context(t), name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(within.Context(t), 50*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, name); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	unlock()
	unlock, err = lock(within.Context(t), name)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestRecipes(t *testing.T) {
	for _, c := range []struct {
		what     What
		codename string
		want     recipe
	}{
		{QEMU72, "bookworm", recipe{series: "7.2", suites: []string{"bookworm", "bookworm-security"}}},
		{QEMU72, "trixie", recipe{series: "7.2", suites: []string{"bookworm", "bookworm-security"}}},
		{QEMU100, "bookworm", recipe{series: "10.0", suites: []string{"bookworm", "bookworm-security", "bookworm-backports"},
			target: "bookworm-backports"}},
		{QEMU100, "trixie", recipe{series: "10.0", suites: []string{"trixie", "trixie-security"}}},
		{QEMU111, "bookworm", recipe{series: "11.1", suites: []string{"trixie", "trixie-security", "trixie-backports"},
			target: "trixie-backports", whole: true}},
		{QEMU111, "trixie", recipe{series: "11.1", suites: []string{"trixie", "trixie-security", "trixie-backports"},
			target: "trixie-backports"}},
		{Kernel, "trixie", recipe{suites: []string{"bookworm", "bookworm-security"}}},
	} {
		if got := recipeFor(c.what, c.codename); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s on %s: %s", c.what, c.codename, fmt.Sprint(got))
		}
	}
}

func TestCacheDir(t *testing.T) {
	t.Setenv("QMIGRATE_CACHE", "/a/b")
	if d, err := CacheDir(); d != "/a/b" || err != nil {
		t.Error(d, err)
	}
	t.Setenv("QMIGRATE_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "/x")
	if d, err := CacheDir(); d != "/x/qmigrate" || err != nil {
		t.Error(d, err)
	}
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	if d, err := CacheDir(); err == nil || !strings.Contains(err.Error(), "QMIGRATE_CACHE") {
		t.Error(d, err)
	}
}
