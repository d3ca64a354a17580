package debian

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeGuest makes fakeApt's tools give what a guest is made from: the dynamic linker is a script that runs what it is
// to run as one.
func fakeGuest(t *testing.T, mksquashfs string) {
	t.Helper()
	dir, _, _ := strings.Cut(os.Getenv("PATH"), ":")
	for name, script := range map[string]string{
		"apt-get": "shift 2\n[ $1 = install ] && for p in base-passwd squashfs-tools; do echo $p > ${p}_1%3a2_amd64.deb; done\nexit 0\n",
		"dpkg-deb": `cd "$3"
mkdir -p lib64 etc usr/bin usr/share/base-passwd usr/share/doc/x usr/share/man
printf '#!/bin/sh\nshift 2\nexec sh "$@"\n' > lib64/ld-linux-x86-64.so.2; chmod +x lib64/ld-linux-x86-64.so.2
echo 'root:*:0:0:root:/root:/bin/bash' > usr/share/base-passwd/passwd.master; echo 'root:*:0:' > usr/share/base-passwd/group.master
cat > usr/bin/mksquashfs <<'END'
` + mksquashfs + `
END
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEnsureGuest(t *testing.T) {
	fakeApt(t, "")
	fakeGuest(t, `echo image of "$1" > "$2"`)
	s := store(t, nil)
	folder, err := s.Ensure(t.Context(), Guest)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		Packages:             "base-passwd_1%3a2_amd64\nsquashfs-tools_1%3a2_amd64\n",
		"files/etc/passwd":   "root:*:0:0:root:/root:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n",
		"files/etc/group":    "root:*:0:\n",
		"files/etc/hostname": "guest\n",
	} {
		if b, err := os.ReadFile(filepath.Join(folder, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v, want %q", name, b, err, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(folder, Squashfs)); err != nil || !strings.Contains(string(b), "/"+Files) {
		t.Errorf("%q %v", b, err)
	}
	for _, gone := range []string{"doc", "man"} {
		if _, err := os.Stat(filepath.Join(folder, Files, "usr/share", gone)); err == nil {
			t.Errorf("%s is in the image", gone)
		}
	}
	if again, err := s.Ensure(t.Context(), Guest); err != nil || again != folder || folder != filepath.Join(s.Dir, Guest.folder()) {
		t.Errorf("%s %v, before %s", again, err, folder)
	}
	clean(t, s, Guest.folder())
}

// One that cannot be made leaves nothing that could be taken for one.
func TestEnsureGuestFails(t *testing.T) {
	fakeApt(t, "")
	fakeGuest(t, `echo half > "$2"; echo no space >&2; exit 1`)
	s := store(t, nil)
	if folder, err := s.Ensure(t.Context(), Guest); err == nil || folder != "" || !strings.Contains(err.Error(), "make root.squashfs: exit status 1: no space") {
		t.Errorf("%s %v", folder, err)
	}
	clean(t, s)
	if p, err := s.Find(Guest); err == nil {
		t.Errorf("found %s", p)
	}
}
