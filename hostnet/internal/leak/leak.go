// Package leak finds what the tests of a package that deals with processes and sockets leave behind. It is for
// TestMain, and imports nothing of ours.
package leak

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.uber.org/goleak"
)

// Find says what was left: goroutines, descriptors that Files did not have before, children of the main thread.
func Find(before map[string]string) error {
	errs := []error{goleak.Find()}
	runtime.GC() // os.Files of processes that were found and let go
	time.Sleep(10 * time.Millisecond)
	for fd, what := range Files() {
		if before[fd] == "" {
			errs = append(errs, fmt.Errorf("descriptor %s: %s", fd, what))
		}
	}
	if data, err := os.ReadFile("/proc/thread-self/children"); err == nil && len(data) > 0 {
		errs = append(errs, fmt.Errorf("children of the main thread: %s", data))
	}
	return errors.Join(errs...)
}

// Files are the open descriptors of this program, and what they are.
func Files() map[string]string {
	files := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		what, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		// The poller's and the one that lists this folder are nobody's leak.
		if err == nil && !strings.Contains(what, "anon_inode:[event") &&
			!strings.HasPrefix(what, fmt.Sprintf("/proc/%d/fd", os.Getpid())) {
			files[e.Name()] = what
		}
	}
	return files
}
