package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// askCID asks this host's kernel for a vsock context number, as QEMU's vhost-vsock does, and gives it back. The error
// is EADDRINUSE if another QEMU has it; any other one says that the kernel cannot be asked.
func askCID(cid uint64) error {
	f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const setOwner, setGuestCID = 0xaf01, 0x4008af60 // linux/vhost.h: VHOST_SET_OWNER, VHOST_VSOCK_SET_GUEST_CID
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setOwner, 0); no != 0 {
		return os.NewSyscallError("ioctl", no)
	}
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setGuestCID, uintptr(unsafe.Pointer(&cid))); no != 0 {
		return os.NewSyscallError("ioctl", no)
	}
	return nil
}

// contextNumber is why a destination cannot have a vsock context number; "" if the kernel says that nobody has it. Its
// word is the only one: a number that is not asked for is taken to be the source's.
func (m *mover) contextNumber(text string, r Rule) string {
	cid, err := strconv.ParseUint(text, 0, 64)
	if err == nil && m.AskCID != nil {
		err = m.AskCID(cid)
		switch {
		case err == nil:
			return ""
		case errors.Is(err, unix.EADDRINUSE):
			return fmt.Sprintf("context number %d is in use on this host, as the kernel says, and %s", cid, outOfReach)
		}
	}
	return r.Has + ", which " + outOfReach
}
