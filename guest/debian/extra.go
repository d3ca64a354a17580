package debian

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"qmigrate/internal/atomicfile"
)

// The things that storage on a network, and other hardware in the guest, need.
const (
	// QEMU's own iSCSI and NFS clients, which Debian packs apart from it; they lie with QEMU, which loads no other build's
	Block72  What = "block-7.2"
	Block100 What = "block-10.0"  //
	Block111 What = "block-11.1"  //
	Target   What = "tgt"         // an iSCSI target in user space
	Ganesha  What = "nfs-ganesha" // an NFS server in user space, with the port mapper

	// Debian 12's kernel for all machines: with e1000 and AHCI, which the one for virtual machines has not
	Generic What = "kernel-generic"
)

// blockPackage has QEMU's iSCSI and NFS clients.
const blockPackage = "qemu-block-extra"

// modules are the files of it that are used; the last one is moved into its place last.
func modules() []string { return []string{"block-nfs.so", "block-iscsi.so"} }

// bundles are the packages of what is unpacked into a folder of its own, and the program that shows that it is there.
func bundle(what What) (packages []string, program string) {
	switch what {
	case Target:
		return []string{"tgt"}, "usr/sbin/tgtd"
	case Ganesha:
		return []string{"nfs-ganesha", "nfs-ganesha-vfs", "rpcbind"}, "usr/bin/ganesha.nfsd"
	}
	return nil, ""
}

// emulatorOf is the emulator that block drivers are for; "" if what is something else.
func emulatorOf(what What) What {
	series, ok := strings.CutPrefix(string(what), "block-")
	if !ok {
		return ""
	}
	return What("qemu-" + series)
}

// driverLimit is for a QEMU that should end at once.
const driverLimit = 20 * time.Second

// ModuleDir is the folder of a QEMU's modules by the path of its program, or of our wrapper script; "" if there is
// none. Debian's 7.2 goes by where it is, its 10.0 and 11.1 by where they were to be installed; QEMU_MODULE_DIR,
// which the wrapper sets, comes before both.
func ModuleDir(program string) string {
	if p, err := filepath.EvalSymlinks(program); err == nil {
		program = p
	}
	root := filepath.Dir(program)
	if base := filepath.Base(root); base == "bin" {
		root = filepath.Dir(root)
		if filepath.Base(root) == "usr" {
			root = filepath.Dir(root)
		}
	}
	for _, pattern := range []string{"usr/lib/*-linux-gnu/qemu", "lib/*-linux-gnu/qemu", "lib64/qemu-kvm",
		"usr/lib64/qemu-kvm", "usr/lib64/qemu", "lib64/qemu", "lib/qemu", "usr/lib/qemu"} {
		m, _ := filepath.Glob(filepath.Join(root, pattern))
		if len(m) > 0 {
			return m[0]
		}
	}
	return ""
}

// Libraries is the value of LD_LIBRARY_PATH for the programs of an unpacked folder.
func Libraries(root string) string {
	var dirs []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu", "lib/*-linux-gnu", "usr/lib/ganesha"} {
		m, _ := filepath.Glob(filepath.Join(root, pattern))
		dirs = append(dirs, m...)
	}
	return strings.Join(dirs, ":")
}

// block is the path of the block drivers for an emulator, there or not.
func (s Store) block(what What) string {
	all := modules()
	return filepath.Join(moduleDir(filepath.Dir(s.path(emulatorOf(what)))), all[len(all)-1])
}

// systemBlock are the block drivers of this system's own emulator: it is its package manager's to add them.
func systemBlock(program string) (string, error) {
	all := modules()
	p := filepath.Join(ModuleDir(program), all[len(all)-1])
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("this system's own %s has no iSCSI and NFS clients: sudo apt install %s", program, blockPackage)
	}
	return p, nil
}

// ensureBlock adds the block drivers to the emulator in the cache; tmp is a folder to work in.
func (s Store) ensureBlock(ctx context.Context, what What, tmp string) error {
	program := s.path(emulatorOf(what))
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", program, err)
	}
	// QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)
	_, rest, ok := strings.Cut(string(out), "(Debian ")
	version, _, _ := strings.Cut(rest, ")")
	if !ok {
		return fmt.Errorf("%s is not Debian's: it says %q", program, strings.TrimSpace(string(out)))
	}
	a, _, err := s.lists(ctx, what, emulatorOf(what), tmp, false)
	if err != nil {
		return err
	}
	shown, err := a.run(ctx, "apt-cache", "show", blockPackage+"="+version)
	if err != nil {
		return fmt.Errorf("%w: its modules must be of the same build as QEMU: remove %s and try again, which gets the "+
			"newest of both", err, filepath.Dir(program))
	}
	names := []string{blockPackage + "=" + version}
	for line := range strings.Lines(shown) {
		if depends, ok := strings.CutPrefix(line, "Depends: "); ok {
			for d := range strings.SplitSeq(depends, ",") {
				if name := strings.Fields(d)[0]; strings.HasPrefix(name, "libiscsi") || strings.HasPrefix(name, "libnfs") {
					names = append(names, name)
				}
			}
			break
		}
	}
	a.say("fetching %s", strings.Join(names, ", "))
	if _, err := a.run(ctx, "apt-get", append([]string{"download", "-q"}, names...)...); err != nil {
		return err
	}
	root := filepath.Join(tmp, "root")
	if err := a.unpack(ctx, root, nil); err != nil {
		return err
	}
	// Libraries first, for the last module shows that all is there.
	var files []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu/libiscsi.so.*", "usr/lib/*-linux-gnu/libnfs.so.*"} {
		m, _ := filepath.Glob(filepath.Join(root, pattern))
		files = append(files, m...)
	}
	for _, name := range modules() {
		m, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu/qemu", name))
		if len(m) != 1 {
			return fmt.Errorf("package %s has no %s", blockPackage, name)
		}
		files = append(files, m[0])
	}
	if err := atomicfile.SyncAll(root); err != nil {
		return err
	}
	for _, f := range files {
		rel, err := filepath.Rel(root, f)
		if err != nil {
			return err
		}
		if err := os.Rename(f, filepath.Join(filepath.Dir(program), rel)); err != nil {
			return err
		}
	}
	// older ones do not say where the modules are
	if err := writeWrapper(filepath.Dir(program), filepath.Dir(program)); err != nil {
		return err
	}
	return errors.Join(HasDriver(ctx, program, "iscsi"), HasDriver(ctx, program, "nfs"))
}

// HasDriver tries whether a QEMU has the block driver iscsi or nfs, be it in a module: it then fails to reach port 1,
// or a path that nobody exports, on this machine. A missing parameter, the node's name too, would be told before the
// module is looked for.
func HasDriver(ctx context.Context, program, driver string) error {
	try := map[string]string{
		"iscsi": "driver=iscsi,transport=tcp,portal=127.0.0.1:1,target=none,lun=0,node-name=try",
		"nfs":   "driver=nfs,server.type=inet,server.host=127.0.0.1,path=/none/none,node-name=try",
	}[driver]
	ctx, cancel := context.WithTimeout(ctx, driverLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "-machine", "none", "-display", "none", "-nodefaults", "-blockdev",
		try).CombinedOutput()
	said := string(out)
	missing := slices.ContainsFunc([]string{"Unknown driver", "Unable to load", "failed to open module"},
		func(s string) bool { return strings.Contains(said, s) })
	if err == nil || ctx.Err() != nil || missing {
		return fmt.Errorf("%s has no block driver %s (it says %q): `make deps` gets it for the QEMUs that it unpacks, "+
			"and for the system's own `apt install %s`", program, driver, strings.TrimSpace(said), blockPackage)
	}
	return nil
}

// ensureBundle unpacks packages, with what they need that this system lacks, into root.
func (s Store) ensureBundle(ctx context.Context, what What, tmp, root string) error {
	packages, program := bundle(what)
	a, sys, err := s.lists(ctx, what, QEMU72, tmp, false)
	if err != nil {
		return err
	}
	if sys.codename == "trixie" { // the emulator's older series is not; these are
		if a, _, err = s.lists(ctx, what, QEMU100, tmp, false); err != nil {
			return err
		}
	}
	a.say("fetching %s", strings.Join(packages, ", "))
	// --reinstall: what is installed here is fetched all the same.
	if _, err := a.run(ctx, "apt-get", append([]string{"install", "-q", "--download-only", "--no-install-recommends",
		"--reinstall"}, packages...)...); err != nil {
		return err
	}
	if err := a.unpack(ctx, root, nil); err != nil {
		return err
	}
	// A library may be missing only when the program starts.
	cmd := exec.CommandContext(ctx, filepath.Join(root, program), "-h")
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+Libraries(root))
	if out, err := cmd.CombinedOutput(); err != nil && strings.Contains(string(out), "shared librar") {
		return fmt.Errorf("try the unpacked %s: %s", program, strings.TrimSpace(string(out)))
	}
	return nil
}

// extra gets one of the things in this file.
func (s Store) extra(ctx context.Context, what What) (string, error) {
	if emulator := emulatorOf(what); emulator != "" {
		if p := installed(ctx, emulator); p != "" {
			return systemBlock(p)
		}
		if _, err := s.Find(emulator); errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s comes first", emulator)
		}
	}
	return s.ensure(ctx, what)
}

// Extras are the things that only tests, `--qemu 11.1`, `--storage iscsi|nfs`, `--guest debian` and `--nic e1000`
// need; they come after All.
func Extras() []What {
	return []What{QEMU111, Block72, Block100, Block111, Target, Ganesha, Guest, Generic}
}

func isExtra(what What) bool { return slices.Contains(Extras(), what) }
