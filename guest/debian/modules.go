package debian

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// moduleNames are the modules that Debian builds of QEMU 7.2 to 11.1 may look for. Source: the names in the programs,
// and the packages qemu-system-common, -gui, -modules-opengl, -modules-spice and qemu-block-extra.
func moduleNames() []string {
	return []string{
		"accel-qtest", "accel-qtest-x86_64", "accel-tcg-i386", "accel-tcg-x86_64",
		"audio-alsa", "audio-dbus", "audio-jack", "audio-oss", "audio-pa", "audio-pipewire", "audio-sdl", "audio-sndio",
		"audio-spice",
		"block-blkio", "block-curl", "block-dmg-bz2", "block-dmg-lzfse", "block-gluster", "block-iscsi",
		"block-nfs", "block-rbd", "block-ssh",
		"chardev-baum", "chardev-spice",
		"hw-display-qxl", "hw-display-virtio-gpu", "hw-display-virtio-gpu-gl", "hw-display-virtio-gpu-pci",
		"hw-display-virtio-gpu-pci-gl", "hw-display-virtio-gpu-pci-rutabaga", "hw-display-virtio-gpu-rutabaga",
		"hw-display-virtio-vga", "hw-display-virtio-vga-gl", "hw-display-virtio-vga-rutabaga", "hw-s390x-virtio-gpu-ccw",
		"hw-uefi-vars", "hw-usb-host", "hw-usb-redirect", "hw-usb-smartcard",
		"ui-curses", "ui-dbus", "ui-egl-headless", "ui-gtk", "ui-opengl", "ui-sdl", "ui-spice-app", "ui-spice-core",
	}
}

// moduleDir is the folder of the modules of a QEMU that is unpacked in root, there or not.
func moduleDir(root string) string {
	if m, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu/qemu")); len(m) == 1 {
		return m[0]
	}
	return filepath.Join(root, "usr/lib/x86_64-linux-gnu/qemu")
}

// coverModules puts an empty file in the place of each module that an unpacked QEMU has not. Without it QEMU goes on
// to look in this system's folder. There it may find the module of another build, refuse it, and abort at the next
// one (util/module.c: dso_init_list is not empty). An empty file is refused too, but harms nothing: "file too short".
func coverModules(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range moduleNames() {
		f, err := os.OpenFile(filepath.Join(dir, name+".so"), os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// OwnModules is the folder of the modules of a QEMU that Ensure unpacked, by the path of its program or of its wrapper
// script, for QEMU_MODULE_DIR; "" if the program is another, or its folder is not whole (see coverModules).
func OwnModules(program string) string {
	if p, err := filepath.EvalSymlinks(program); err == nil {
		program = p
	}
	for _, root := range []string{filepath.Dir(program), filepath.Join(filepath.Dir(program), "../..")} {
		dir := moduleDir(root)
		missing := func(name string) bool {
			_, err := os.Stat(filepath.Join(dir, name+".so"))
			return err != nil
		}
		if !slices.ContainsFunc(moduleNames(), missing) {
			return dir
		}
	}
	return ""
}
