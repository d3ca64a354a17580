package behind

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"qmigrate/hostnet/host"
	"qmigrate/internal/procfs"
)

// Thread is a thread of a QEMU, by its number, and a process that counts threads as that QEMU does.
type Thread struct{ ID, Beside int }

// Threads finds the QEMU that has a thread, by its process's number on the host; 0 if there is none. The process beside
// it may be in a container, and count as that does.
func Threads() host.Task[Thread, int] {
	return one("behind.thread", func(_ context.Context, in Thread) (int, error) {
		counts := func(pid string) string {
			ns, _ := os.Readlink(filepath.Join("/proc", pid, "ns/pid"))
			return ns
		}
		theirs := counts(strconv.Itoa(in.Beside))
		if theirs == "" {
			return 0, nil
		}
		if theirs == counts("self") {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", in.ID))
			if err != nil {
				return 0, nil
			}
			pid, err := strconv.Atoi(procfs.Value(status, "Tgid"))
			if err != nil || !isQEMU(pid) {
				return 0, nil
			}
			return pid, nil
		}
		all, err := os.ReadDir("/proc")
		if err != nil {
			return 0, err
		}
		for _, e := range all {
			pid, err := strconv.Atoi(e.Name())
			if err == nil && counts(e.Name()) == theirs && isQEMU(pid) && hasThread(pid, in.ID) {
				return pid, nil
			}
		}
		return 0, nil
	})
}

// hasThread tells whether a process has a thread that has this number in the process's own namespace.
func hasThread(pid, id int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		b, _ := os.ReadFile(file)
		numbers := strings.Fields(procfs.Value(b, "NSpid")) // the innermost namespace's is the last
		if n := len(numbers); n > 0 && numbers[n-1] == strconv.Itoa(id) {
			return true
		}
	}
	return false
}
