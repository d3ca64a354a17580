package on

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// TCPCounts are what TCP_INFO counts on a connection.
type TCPCounts struct {
	Retransmits int64 `json:"retransmits"` // segments sent again
	Acked       int64 `json:"acked"`       // bytes that the other end has acknowledged
}

// CountsOf is nil where the connection is not a socket of ours.
func CountsOf(conn net.Conn) *TCPCounts {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var counts *TCPCounts
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			counts = &TCPCounts{int64(info.Total_retrans), int64(info.Bytes_acked)}
		}
	})
	if err != nil {
		return nil
	}
	return counts
}
