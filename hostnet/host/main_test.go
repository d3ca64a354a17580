package host

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"qmigrate/hostnet/internal/leak"
)

func TestMain(m *testing.M) {
	Main()
	serveTests()
	askTests()
	// Under -race every program sleeps for a second when it exits; the helpers are many.
	os.Setenv("GORACE", strings.TrimSpace("atexit_sleep_ms=0 "+os.Getenv("GORACE")))
	before := leak.Files()
	code := m.Run()
	if err := leak.Find(before); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "leaked:", err)
		code = 1
	}
	os.Exit(code)
}
