package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Guest is the root of the guest with real tools: a folder with Squashfs, the disk that guests boot from, Files, the
// same unpacked, and Packages.
const Guest What = "debian-guest"

// What is in the folder of Guest.
const (
	// read-only by its nature: any number of QEMUs may have it open, on both sides of a migration
	Squashfs = "root.squashfs"
	Files    = "files"    // for programs that run on the host, by Program
	Packages = "packages" // one a line: NAME_VERSION_ARCHITECTURE
)

// guestPackages are what the guest is made from, with all that they depend on. Nothing of this system is used, so that
// the same is made everywhere.
func guestPackages() []string {
	return []string{
		"sysbench", "iperf3", "stress-ng", "redis-server", "openssh-server", // the tools
		// what a Debian has without being asked
		"base-files", "base-passwd", "bash", "dash", "coreutils", "procps", "iproute2",
		"squashfs-tools", // which makes the image, here
	}
}

// guestFormat is part of the folder's name, as the list of packages is: raise it when the same packages make another
// image.
const guestFormat = "1"

// left out of the image: nobody reads them in there.
func leftOut() []string {
	return []string{"doc", "doc-base", "man", "info", "locale", "lintian", "bug", "common-licenses", "X11", "perl"}
}

// guestFiles are what the packages' scripts would have made; they are not run, for that takes root and a chroot.
func guestFiles() map[string]string {
	return map[string]string{
		"etc/shadow":        "root:*:19700:0:99999:7:::\n",
		"etc/hostname":      "guest\n",
		"etc/hosts":         "127.0.0.1 localhost guest\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
		"etc/ssh/sshd_config": "HostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/authorized_keys\nPidFile " +
			"none\nPasswordAuthentication no\nUsePAM no\nUseDNS no\nStrictModes no\nPrintMotd no\n",
	}
}

// folder is the name of a thing's folder in the cache.
func (what What) folder() string {
	if what != Guest {
		return string(what)
	}
	h := sha256.New()
	fmt.Fprintln(h, guestFormat, guestPackages(), leftOut(), guestFiles())
	return string(what) + "-" + hex.EncodeToString(h.Sum(nil)[:4])
}

// Run is the command line that runs a program of the unpacked Debian in files, with its own libraries and its own
// dynamic linker: it needs nothing of the system that it runs on.
func Run(files, program string, args ...string) []string {
	libraries := filepath.Join(files, "usr/lib/x86_64-linux-gnu") + ":" + filepath.Join(files, "lib/x86_64-linux-gnu")
	return append([]string{filepath.Join(files, "lib64/ld-linux-x86-64.so.2"), "--library-path", libraries,
		filepath.Join(files, program)}, args...)
}

// ensureGuest makes the folder of Guest; tmp is a folder to work in.
func (s Store) ensureGuest(ctx context.Context, tmp, folder string) error {
	a, _, err := s.lists(ctx, Guest, Kernel, tmp, true)
	if err != nil {
		return err
	}
	a.say("fetching %s and what they need", strings.Join(guestPackages(), ", "))
	args := append([]string{"install", "-q", "--download-only", "--no-install-recommends"}, guestPackages()...)
	if _, err := a.run(ctx, "apt-get", args...); err != nil {
		return err
	}
	files := filepath.Join(folder, Files)
	if err := a.unpack(ctx, files, nil); err != nil {
		return err
	}
	if err := furnish(files); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(a.dir, "cache/archives/*.deb"))
	var list strings.Builder
	for _, d := range debs {
		fmt.Fprintln(&list, strings.TrimSuffix(filepath.Base(d), ".deb"))
	}
	if err := os.WriteFile(filepath.Join(folder, Packages), []byte(list.String()), 0o644); err != nil {
		return err
	}
	a.say("making %s", Squashfs)
	return squash(ctx, files, filepath.Join(folder, Squashfs))
}

// furnish does for an unpacked Debian what its packages' scripts would have done, as far as the tools need it.
func furnish(files string) error {
	var errs []error
	for _, name := range leftOut() {
		errs = append(errs, os.RemoveAll(filepath.Join(files, "usr/share", name)))
	}
	for _, name := range []string{"passwd", "group"} {
		b, err := os.ReadFile(filepath.Join(files, "usr/share/base-passwd", name+".master"))
		text := string(b)
		if name == "passwd" { // sshd gives up its privileges to a user of its own
			text += "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"
		}
		errs = append(errs, err, os.WriteFile(filepath.Join(files, "etc", name), []byte(text), 0o644))
	}
	for _, dir := range []string{"dev", "proc", "sys", "run/sshd", "tmp", "root", "etc/ssh"} {
		errs = append(errs, os.MkdirAll(filepath.Join(files, dir), 0o755))
	}
	for name, text := range guestFiles() {
		errs = append(errs, os.MkdirAll(filepath.Dir(filepath.Join(files, name)), 0o755),
			os.WriteFile(filepath.Join(files, name), []byte(text), 0o644))
	}
	return errors.Join(errs...)
}

// squash makes an image of a folder, by the folder's own mksquashfs. It is not compressed: under TCG the guest would
// pay for that at each first read. All of it belongs to root, whoever unpacked it, and the same files make the same
// image.
func squash(ctx context.Context, files, image string) error {
	line := Run(files, "usr/bin/mksquashfs", files, image, "-all-root", "-noI", "-noD", "-noF", "-noX", "-noappend",
		"-mkfs-time", "0", "-all-time", "0", "-quiet", "-no-progress")
	if out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("make %s: %w: %s", filepath.Base(image), err, strings.TrimSpace(string(out)))
	}
	return nil
}
