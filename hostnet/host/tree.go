package host

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// treeItem is a folder, a regular file or a symbolic link of a tree.
type treeItem struct {
	name string // relative to the tree, with slashes
	mode fs.FileMode
	size int64
	link string
}

// treeItems lists a tree in the order of names, but for what skip names. What is neither folder, file nor link is an
// error.
func treeItems(dir string, skip func(name string) bool) (all []treeItem, err error) {
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if skip != nil && skip(name) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		item := treeItem{name: filepath.ToSlash(name), mode: info.Mode() & (fs.ModeType | fs.ModePerm)}
		switch {
		case info.Mode().IsRegular():
			item.size = info.Size()
		case info.Mode()&fs.ModeSymlink != 0:
			item.link, err = os.Readlink(p)
		case !info.IsDir():
			err = fmt.Errorf("%s is neither file, folder nor link", p)
		}
		all = append(all, item)
		return err
	})
	return all, err
}

// treeContent is the SHA-256 of all that makes a tree: names, modes, links and contents.
func treeContent(dir string, items []treeItem) (string, error) {
	sum := sha256.New()
	for _, i := range items {
		fmt.Fprintf(sum, "%q %o %d %q\n", i.name, i.mode, i.size, i.link)
		if !i.mode.IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, i.name))
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// writeTree writes a tree as one tar stream.
func writeTree(w io.Writer, dir string, items []treeItem) error {
	t := tar.NewWriter(w)
	for _, i := range items {
		h := &tar.Header{Name: i.name, Mode: int64(i.mode.Perm()), Size: i.size, Linkname: i.link, Typeflag: tar.TypeReg}
		switch {
		case i.mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, i.name+"/"
		case i.link != "":
			h.Typeflag = tar.TypeSymlink
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if !i.mode.IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, i.name))
		if err != nil {
			return err
		}
		_, err = io.CopyN(t, f, i.size)
		f.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", i.name, err)
		}
	}
	return t.Close()
}

// readTree makes a tree from a tar stream, in a folder that is there and empty. Nothing gets out of it.
func readTree(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	type folder struct {
		name string
		mode fs.FileMode
	}
	var folders []folder
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		mode := fs.FileMode(h.Mode).Perm()
		switch name := path.Clean(h.Name); h.Typeflag {
		case tar.TypeDir:
			if err = root.Mkdir(name, 0o700); err == nil {
				folders = append(folders, folder{name, mode})
			}
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, name)
		case tar.TypeReg:
			var f *os.File
			if f, err = root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
				_, err = io.Copy(f, t)
				err = errors.Join(err, f.Chmod(mode), f.Close())
			}
		default:
			err = fmt.Errorf("%s is neither file, folder nor link", name)
		}
		if err != nil {
			return err
		}
	}
	for _, f := range slices.Backward(folders) { // one may be read-only
		if err := root.Chmod(f.name, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// PutTree sees to it that the host has this folder of ours with all that is in it, in the user's cache there, and says
// where. It is sent once: trees of the same content are one. What skip names, relative to the folder, is left out; nil
// leaves nothing out.
func (f *Far) PutTree(ctx context.Context, dir string, skip func(name string) bool) (there string, err error) {
	items, err := treeItems(dir, skip)
	if err != nil {
		return "", err
	}
	content, err := treeContent(dir, items)
	if err != nil {
		return "", err
	}
	s, a, err := f.begin(ctx, request{Op: "tree", Name: content})
	if err != nil || a.Ended {
		return a.Name, err
	}
	defer s.close()
	a, err = s.send(ctx, func(to io.Writer) error {
		w := bufio.NewWriterSize(to, 256<<10)
		if err := writeTree(w, dir, items); err != nil {
			return err
		}
		return w.Flush()
	})
	return a.Name, err
}

// tree makes a folder of this user's cache from what follows, whole or not at all.
func (c *call) tree(context.Context) {
	name, have, err := cachedTree(c.Name)
	if c.answer(answer{Name: name, Ended: have}, err) != nil || err != nil || have {
		return
	}
	err = receiveTree(c.r, name)
	if err == nil {
		_, _ = io.Copy(io.Discard, c.r) // the end of the archive
	}
	_ = c.answer(answer{Name: name}, err)
}

// cachedTree is where a tree of this content is in the cache, and whether it is there.
func cachedTree(content string) (name string, have bool, err error) {
	if b, err := hex.DecodeString(content); err != nil || len(b) != sha256.Size {
		return "", false, fmt.Errorf("put tree %q: not a content", content)
	}
	cache, err := cacheFolder()
	if err != nil {
		return "", false, err
	}
	dir := filepath.Join(cache, "trees")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", false, err
	}
	name = filepath.Join(dir, content)
	switch info, err := os.Stat(name); {
	case err == nil && info.IsDir():
		return name, true, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", false, err
	}
	return name, false, nil
}

func receiveTree(r io.Reader, name string) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := readTree(r, dir); err != nil {
		return fmt.Errorf("receive a folder: %w", err)
	}
	items, err := treeItems(dir, nil)
	if err != nil {
		return err
	}
	if content, err := treeContent(dir, items); err != nil || content != filepath.Base(name) {
		return errors.Join(errors.New("receive a folder: another one came than was announced"), err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	err = os.Rename(dir, name)
	if _, have, _ := cachedTree(filepath.Base(name)); err != nil && have { // another channel was quicker
		return os.RemoveAll(dir)
	}
	return err
}
