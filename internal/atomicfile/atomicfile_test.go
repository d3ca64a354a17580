package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestOrder: content, then the disk, then the name, then the disk again; when the name changes, the content is whole.
func TestOrder(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	var order []string
	c := calls{
		sync: func(f *os.File) error {
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			what := "file"
			if info.IsDir() {
				what = "folder"
			}
			order = append(order, "sync "+what)
			return f.Sync()
		},
		rename: func(from, to string) error {
			if b, err := os.ReadFile(from); err != nil || string(b) != "new" || filepath.Dir(from) != filepath.Dir(to) {
				t.Errorf("%s, to be named %s, holds %q, %v", from, to, b, err)
			}
			order = append(order, "rename")
			return os.Rename(from, to)
		},
	}
	err := c.replace(name, 0o640, func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err })
	if want := []string{"sync file", "rename", "sync folder"}; err != nil || !slices.Equal(order, want) {
		t.Errorf("%v, %v; want %v", order, err, want)
	}
	holds(t, name, "new")
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v; want 0640", info.Mode(), err)
	}
}

// TestFailure: whatever fails, the former content stays, no temporary file does, and the error is one line that names
// the file.
func TestFailure(t *testing.T) {
	content := func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }
	sync := func(folder bool, err error) func(*os.File) error {
		return func(f *os.File) error {
			if info, _ := f.Stat(); info.IsDir() == folder {
				return &os.PathError{Op: "sync", Path: f.Name(), Err: err}
			}
			return f.Sync()
		}
	}
	for _, test := range []struct {
		name  string
		calls calls
		write func(io.Writer) error
		is    error
		left  string
	}{
		{"content", calls{(*os.File).Sync, os.Rename}, func(w io.Writer) error {
			return errors.Join(content(w), io.ErrUnexpectedEOF)
		}, io.ErrUnexpectedEOF, "old"},
		{"full disk", calls{(*os.File).Sync, os.Rename}, func(w io.Writer) error {
			return &os.PathError{Op: "write", Path: w.(*os.File).Name(), Err: syscall.ENOSPC}
		}, syscall.ENOSPC, "old"},
		{"file's sync", calls{sync(false, syscall.EIO), os.Rename}, content, syscall.EIO, "old"},
		{"rename", calls{(*os.File).Sync, func(from, to string) error {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EROFS}
		}}, content, syscall.EROFS, "old"},
		{"folder's sync", calls{sync(true, syscall.EIO), os.Rename}, content, syscall.EIO, "new"},
		{"folder that has no sync", calls{sync(true, syscall.EINVAL), os.Rename}, content, nil, "new"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "file")
			if err := Write(name, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := test.calls.replace(name, 0o600, test.write)
			if !errors.Is(err, test.is) || (err == nil) != (test.is == nil) {
				t.Errorf("%v; want %v", err, test.is)
			}
			if test.name != "content" && err != nil && (!strings.HasPrefix(err.Error(), name+": ") ||
				strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), ".new-")) {
				t.Errorf("%v; want one line that begins with the file", err)
			}
			holds(t, name, test.left)
		})
	}
}

// TestRefused: where no file can be, the error names the file that was wanted.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "none", "file")
	if err := Write(name, nil, 0o600); err == nil || err.Error() != name+": no such file or directory" {
		t.Error(err)
	}
	name = filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(name, "in"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(name, nil, 0o600); err == nil || err.Error() != name+": file exists" {
		t.Error(err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("left behind: %v, %v", all, err)
	}
}

func TestSync(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(SyncAll(dir), SyncFolder(dir)); err != nil {
		t.Error(err)
	}
	for _, sync := range []func(string) error{SyncAll, SyncFolder} {
		if err := sync(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}

func holds(t *testing.T, name, want string) {
	t.Helper()
	if b, err := os.ReadFile(name); err != nil || string(b) != want {
		t.Errorf("%q, %v; want %q", b, err, want)
	}
	if all, err := os.ReadDir(filepath.Dir(name)); err != nil || len(all) != 1 {
		t.Errorf("left behind: %v, %v", all, err)
	}
}
