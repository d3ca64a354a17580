package host

import (
	"os"
	"os/signal"
	"syscall"
)

// Init is a container's first process: it takes the end of processes that have no other parent any more, so that none
// stays as a zombie, until it is told to end (SIGPWR, SIGTERM). The container ends with it.
func Init() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGPWR, syscall.SIGTERM)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && err != syscall.EINTR {
				break
			}
		}
	}
}
