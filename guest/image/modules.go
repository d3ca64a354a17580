package image

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// maxModule is the largest decompressed module that is read, in bytes.
const maxModule = 64 << 20

// module is a kernel module, decompressed.
type module struct {
	name string // underscores only, as lsmod shows it
	data []byte
	info modinfo
}

// modinfo is what a module says about itself in its .modinfo section.
type modinfo struct {
	depends  []string // modules that must be loaded before
	vermagic string   // the kernel it is for: "6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions"
}

// moduleOrder reads the wanted modules and all that they depend on from a folder such as /lib/modules/VERSION, in an
// order in which they load. What the folder's modules.builtin names is left out. modules.dep is not used: an unpacked
// package has none.
func moduleOrder(dir string, wanted []string) ([]module, error) {
	files, builtin, err := indexModules(dir)
	if err != nil {
		return nil, err
	}
	var order []module
	state := map[string]int{} // 1 being visited, 2 done
	var visit func(name, by string) error
	visit = func(name, by string) error {
		name = moduleName(name)
		if state[name] == 2 || builtin[name] {
			return nil
		}
		if state[name] == 1 {
			return fmt.Errorf("module %s depends on itself", name)
		}
		file, ok := files[name]
		if !ok {
			return fmt.Errorf("module %s, needed by %s, is neither in %s nor in its modules.builtin", name, by, dir)
		}
		state[name] = 1
		data, err := readModule(file)
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, err)
		}
		info, err := readModinfo(data)
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, err)
		}
		for _, d := range info.depends {
			if err := visit(d, name); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, module{name, data, info})
		return nil
	}
	for _, w := range wanted {
		if err := visit(w, "the guest"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// indexModules maps module names to files, and names the built-in ones.
func indexModules(dir string) (files map[string]string, builtin map[string]bool, err error) {
	files, builtin = map[string]string{}, map[string]bool{}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	for l := range strings.Lines(string(list)) {
		builtin[moduleName(strings.TrimSpace(l))] = true
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(d.Name(), ".ko") {
			return err
		}
		name := moduleName(p)
		if other, ok := files[name]; ok {
			return fmt.Errorf("module %s is twice in %s (%s and %s): give the folder of one kernel", name, dir, other, p)
		}
		files[name] = p
		return nil
	})
	if err == nil && len(files) == 0 && len(builtin) == 0 {
		err = fmt.Errorf("no kernel modules in %s", dir)
	}
	return files, builtin, err
}

// moduleName is the name of a module's file as the kernel knows it: no folder, no suffix, underscores for hyphens.
func moduleName(file string) string {
	base, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := decompress(f, filepath.Ext(file))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("larger than %d MiB", maxModule>>20)
	}
	return b, err
}

// decompress reads a module by its file's suffix.
func decompress(r io.Reader, ext string) (io.Reader, error) {
	switch ext {
	case ".ko":
		return r, nil
	case ".xz":
		return xz.NewReader(r, 0)
	case ".gz":
		return gzip.NewReader(r)
	case ".zst":
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) // with 1 it has no goroutines that would need Close
	}
	return nil, fmt.Errorf("suffix %s: want .ko, .ko.xz, .ko.gz or .ko.zst", ext)
}

// readModinfo reads the .modinfo section of an ELF file: NUL-terminated "key=value" strings.
func readModinfo(data []byte) (modinfo, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return modinfo{}, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return modinfo{}, errors.New("no .modinfo section: not a kernel module")
	}
	b, err := s.Data()
	if err != nil {
		return modinfo{}, fmt.Errorf("section .modinfo: %w", err)
	}
	return parseModinfo(b), nil
}

func parseModinfo(b []byte) modinfo {
	var m modinfo
	for kv := range bytes.SplitSeq(b, []byte{0}) {
		switch k, v, _ := strings.Cut(string(kv), "="); k {
		case "depends":
			for d := range strings.SplitSeq(v, ",") {
				if d != "" && !slices.Contains(m.depends, d) {
					m.depends = append(m.depends, d)
				}
			}
		case "vermagic":
			m.vermagic = v
		}
	}
	return m
}
