package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"qmigrate/engine/experiment"
	"qmigrate/engine/lab"
	"qmigrate/guest/guesttest/within"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
)

// pidsFile names a file to which every qmigrate that a test starts adds its process number, so that what it made can be told.
const pidsFile = "QMIGRATE_TEST_PIDS"

func TestMain(m *testing.M) {
	hostnet.Main()
	keepToOurselves()
	testscript.Main(checked{m}, map[string]func(){"qmigrate": func() {
		if f, err := os.OpenFile(os.Getenv(pidsFile), os.O_APPEND|os.O_WRONLY, 0); err == nil {
			fmt.Fprintln(f, os.Getpid())
			f.Close()
		}
		main()
	}})
}

// checked runs the tests and reports what they leave behind: processes, namespaces, folders of labs, goroutines, files.
type checked struct{ *testing.M }

func (m checked) Run() (status int) {
	dir, err := os.MkdirTemp("", "qmt") // short, for the paths of unix sockets are
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Setenv("TMPDIR", dir)
	}
	pids := filepath.Join(dir, "pids")
	if err == nil {
		err = os.WriteFile(pids, nil, 0o666)
	}
	if err == nil {
		err = os.Setenv(pidsFile, pids)
	}
	if err == nil { // other experiments of this host are none of the tests'
		err = os.Setenv(experiment.SlotVariable, filepath.Join(dir, "slot"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if status = m.M.Run(); status != 0 {
		return status
	}
	left := leftovers(dir, pids)
	if err := goleak.Find(); err != nil {
		left = append(left, err.Error())
	}
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "left behind:", l)
		status = 1
	}
	return status
}

// leftovers says what is left of programs that ran with a TMPDIR in dir and, where it has a name with their number, in this system.
func leftovers(dir, pids string) (left []string) {
	for _, pid := range processesOf(dir) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d: %s", pid, bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
	}
	owners, err := hostnet.Owners(context.Background())
	if err != nil {
		left = append(left, err.Error())
	}
	folders, _ := os.ReadDir(lab.Folder())
	for _, f := range folders {
		owners = append(owners, f.Name())
	}
	mine := map[string]bool{labOfTests(): true}
	b, _ := os.ReadFile(pids)
	for line := range strings.Lines(string(b)) {
		mine["demo-"+strings.TrimSpace(line)] = true
		mine["run-"+strings.TrimSpace(line)] = true
	}
	for _, owner := range owners {
		if mine[owner] {
			left = append(left, "lab "+owner)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		left = append(left, err.Error())
	}
	for _, f := range files {
		name := filepath.Join(dir, f.Name())
		if name == pids || f.Name() == "slot" || strings.HasPrefix(f.Name(), "go-test-script") && os.Remove(name) == nil {
			continue // testscript's folder is only empty when -run left stories out
		}
		left = append(left, name)
	}
	return left
}

// processesOf are the processes, but for this one, that run with a TMPDIR in dir.
func processesOf(dir string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range all {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if b, err := os.ReadFile(name); err == nil && pid != os.Getpid() && bytes.Contains(b, []byte("TMPDIR="+dir)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// labOfTests is the name of the standing lab that a test may make.
func labOfTests() string { return fmt.Sprintf("t%d", os.Getpid()) }

// TestLeftovers: the check at the end must see what is left.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	if left := leftovers(dir, pids); len(left) > 0 {
		t.Fatalf("left before anything was: %q", left)
	}
	child, err := host.Local().Start(within.Context(t),
		host.Command{Args: []string{"sleep", "100"}, Env: []string{"TMPDIR=" + dir}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The kernel shows a process's environment a moment after its exec has succeeded.
	for deadline := time.Now().Add(10 * time.Second); len(processesOf(dir)) == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if left := leftovers(dir, pids); len(left) != 2 || !strings.Contains(left[0], "sleep 100") || !strings.HasSuffix(left[1], "/x") {
		t.Errorf("a process and a file are left, and the check says %q", left)
	}
	if err := child.Kill(within.Context(t)); err != nil {
		t.Fatal(err)
	}
}
