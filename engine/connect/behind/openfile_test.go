package behind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/guest/guesttest"
)

// What a process has open is known by number, whatever its name has become.
func TestOpened(t *testing.T) {
	dir := guesttest.Dir(t)
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return name
	}
	one, image, gone, replaced := file("one", "x"), file("image", "QFI\xfb\x00\x00\x00\x03"), file("gone", ""),
		file("replaced", "")
	closed, link, hard := filepath.Join(dir, "closed"), filepath.Join(dir, "link"), filepath.Join(dir, "hard")
	old := file("old", "QFI\xfb\x00\x00\x00\x01")
	vdi := file("vdi", strings.Repeat("<", 64)+"\x7f\x10\xda\xbe")
	for _, err := range []error{os.Remove(gone), os.Rename(image, image+"2"), os.Rename(image+"2", image),
		os.WriteFile(closed, nil, 0o600),
		os.Symlink(one, link), os.Link(one, hard), os.WriteFile(replaced+"2", nil, 0o600), os.Rename(replaced+"2",
			replaced)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	swapped := file("swapped", "")
	if err := os.Rename(swapped, swapped+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(swapped, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	all := openFiles(os.Getpid(), []string{one, "one", image, gone, replaced, closed, link, hard, "/nowhere", old, vdi, swapped,
		"/dev/fdset/1"})
	id := all[one].ID
	for name, same := range map[string]bool{"one": true, link: true, hard: true, image: false} {
		if o, ok := all[name]; !ok || (o.ID == id) != same || o.ID == "" || o.Removed {
			t.Errorf("%s: %+v, the first is %s", name, o, id)
		}
	}
	for _, name := range []string{gone, replaced, swapped, closed} {
		if o, ok := all[name]; !ok || !o.Removed || o.Path != name {
			t.Errorf("%s: %+v, %v", name, o, ok)
		}
	}
	for _, name := range []string{"/nowhere", "/dev/fdset/1"} {
		if o, ok := all[name]; ok {
			t.Errorf("%s is not open, found %+v", name, o)
		}
	}
	for name, want := range map[string]string{one: "", image: "qcow2", old: "qcow", vdi: "vdi"} {
		if all[name].Content != want {
			t.Errorf("content of %s: %q, want %q", name, all[name].Content, want)
		}
	}
	if all[one].Block || !strings.HasSuffix(all[one].Path, "/one") {
		t.Errorf("%+v", all[one])
	}
}
