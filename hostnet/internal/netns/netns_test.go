package netns

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOwnThread: what a thread of its own becomes is never what /proc/self shows.
func TestOwnThread(t *testing.T) {
	for range 200 {
		err := OnOwnThread(func() error {
			if unix.Gettid() == os.Getpid() {
				return errors.New("on the main thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
