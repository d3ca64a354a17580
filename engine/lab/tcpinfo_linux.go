package lab

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tcpCounts are what TCP_INFO counts on a connection.
type tcpCounts struct {
	retransmits int64 // segments sent again
	acked       int64 // bytes that the other end has acknowledged
}

// countsOf is nil where the connection is not a socket of ours.
func countsOf(conn net.Conn) *tcpCounts {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var counts *tcpCounts
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			counts = &tcpCounts{int64(info.Total_retrans), int64(info.Bytes_acked)}
		}
	})
	if err != nil {
		return nil
	}
	return counts
}

// retransmitsOf is the count of segments sent again.
func retransmitsOf(conn net.Conn) *int64 {
	if c := countsOf(conn); c != nil {
		return &c.retransmits
	}
	return nil
}
