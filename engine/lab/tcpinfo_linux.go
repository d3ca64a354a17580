package lab

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// retransmitsOf is TCP_INFO's count of segments sent again on this connection; nil where the connection is not a socket of ours.
func retransmitsOf(conn net.Conn) *int64 {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var total *int64
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n := int64(info.Total_retrans)
			total = &n
		}
	})
	if err != nil {
		return nil
	}
	return total
}
