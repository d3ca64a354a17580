package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// cacheVariable names the folder in which a helper keeps what was sent to its host.
const cacheVariable = "QMIGRATE_CACHE"

// cacheFolder is this user's on this host.
func cacheFolder() (string, error) {
	if dir := os.Getenv(cacheVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "qmigrate"), nil
}

// socketFolder is where this user has what runs on this host. For root that is in /run. For others it is in the folder
// for temporary files, and made at once: whoever else made it later would have what is in it. Where somebody else has
// that name, it is in the cache. Leave removes what was made, if nothing is in it.
func socketFolder() (name string, leave func()) {
	uid, leave := os.Geteuid(), func() {}
	if uid == 0 {
		return "/run/qmigrate", leave
	}
	name = fmt.Sprintf("/tmp/qmigrate-%d", uid)
	if err := os.Mkdir(name, 0o700); err == nil {
		return name, func() { _ = os.Remove(name) }
	}
	info, err := os.Lstat(name)
	if err == nil && info.IsDir() && info.Mode().Perm()&0o022 == 0 {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == uid {
			return name, leave
		}
	}
	if cache, err := cacheFolder(); err == nil {
		return filepath.Join(cache, "run"), leave
	}
	return name, leave
}

// selfContent is the SHA-256 of this program.
func selfContent() (string, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer f.Close()
	return contentOf(f)
}

func contentOf(r io.Reader) (string, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// fileIdentity tells a file from all others of a kernel, and most likely from those of another one.
type fileIdentity struct {
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"mod_time_ns"`
}

// identify is nil where it cannot be told.
func identify(info fs.FileInfo) *fileIdentity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return &fileIdentity{uint64(st.Dev), st.Ino, info.Size(), info.ModTime().UnixNano()}
}

// same tells whether this host has the very file of the caller's under the same name, as a container has one that is
// mounted in it.
func (c *call) same(context.Context) {
	info, err := os.Stat(c.Name)
	if err != nil || c.File == nil || !filepath.IsAbs(c.Name) {
		_ = c.answer(answer{}, nil)
		return
	}
	have := identify(info)
	_ = c.answer(answer{Ended: have != nil && *have == *c.File}, nil)
}

// cached is where a file with this content is in the cache, and whether it is there. key is its SHA-256, then a slash
// and its name.
func (s *server) cached(key string, size int64) (name string, have bool, err error) {
	content, base, ok := strings.Cut(key, "/")
	if !ok || len(content) != hex.EncodedLen(sha256.Size) || base != filepath.Base(base) {
		return "", false, fmt.Errorf("put %q: not a content and a name", key)
	}
	cache, err := cacheFolder()
	if err != nil {
		return "", false, err
	}
	dir := filepath.Join(cache, "files", content)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", false, err
	}
	name = filepath.Join(dir, base)
	info, err := os.Stat(name)
	if err == nil && info.Mode().IsRegular() && info.Size() == size {
		return name, true, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	return name, false, nil
}

// receive makes a file from a reader, whole or not at all; its folder's name is its content.
func receive(r io.Reader, name string, size int64, perm fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), r)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if want := filepath.Base(filepath.Dir(name)); err == nil && hex.EncodeToString(sum.Sum(nil)) != want {
		err = fmt.Errorf("receive %s: its content is not %s", name, want)
	}
	if err = errors.Join(err, f.Chmod(perm), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
