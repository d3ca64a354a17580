package connect

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"qmigrate/internal/procfs"
)

// Machine says what this host is: its kernel's release and its processor.
func Machine() (kernel, cpu string) {
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if model := procfs.Value(b, "model name"); model != "" {
			cpu = fmt.Sprintf("%d x %s", runtime.NumCPU(), model)
		}
	}
	return kernel, cpu
}
