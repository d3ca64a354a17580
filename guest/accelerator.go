package guest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/hostnet/host"
	"qmigrate/internal/atomicfile"
)

// readyLimit is how long a guest under KVM may take to its agent's "ready": one that KVM really runs takes about a
// second.
const readyLimit = 10 * time.Second

// findingAge is how long a finding about an accelerator is believed. What it rests on is in its key; this is for what
// is not, such as a busy machine.
const findingAge = 7 * 24 * time.Hour

// Accelerator is what runs a guest's instructions, and why that one.
type Accelerator struct {
	Name   string `json:"name"`   // kvm or tcg
	Reason string `json:"reason"` // for people: why not kvm, how it was found to work, or that it was asked for
	Cached bool   `json:"-"`      // found out by a former run
}

// AcceleratorError is a KVM that was asked for and does not run a guest.
type AcceleratorError struct{ Reason string }

func (e *AcceleratorError) Error() string {
	return "use kvm: " + e.Reason + "; try accelerator tcg"
}

// ProbeAccelerator settles want (auto, kvm or tcg; "" is auto) for guests like s on h. KVM counts only if a guest
// reports ready under it within ten seconds: under some nested hypervisors /dev/kvm opens, makes a VM, and the guest
// hangs for ever. The finding is kept in the cache folder, for this machine, kernel, QEMU, image and user. Where KVM
// does not serve, auto is tcg with the reason, and kvm is an *AcceleratorError.
func ProbeAccelerator(ctx context.Context, h host.Host, s Spec, want string) (Accelerator, error) {
	switch want {
	case "tcg":
		return Accelerator{Name: "tcg", Reason: "asked for"}, nil
	case "", "auto", "kvm":
	default:
		return Accelerator{}, fmt.Errorf("choose accelerator %q: want auto, kvm or tcg", want)
	}
	a, err := findAccelerator(ctx, h, s)
	if err != nil {
		return Accelerator{}, fmt.Errorf("probe accelerator: %w", err)
	}
	if want == "kvm" && a.Name != "kvm" {
		return Accelerator{}, &AcceleratorError{a.Reason}
	}
	return a, nil
}

func findAccelerator(ctx context.Context, h host.Host, s Spec) (Accelerator, error) {
	device, err := h.Stat("/dev/kvm")
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("the kernel has no KVM, or no virtualization to build it on")
		}
		return Accelerator{Name: "tcg", Reason: fmt.Sprintf("no /dev/kvm on %s: %v", h.Name(), err)}, nil
	}
	version, err := hostVersion(ctx, h, s.QEMU)
	if err != nil {
		return Accelerator{}, err
	}
	key := [][]byte{[]byte(version), []byte(device.Mode().String()), fmt.Append(nil, os.Geteuid())}
	for _, f := range []string{"/etc/machine-id", "/proc/sys/kernel/osrelease"} {
		b, _ := h.ReadFile(f) // a container may have no machine-id
		key = append(key, b)
	}
	for _, f := range []string{s.Image.Kernel, s.Image.Initrd} { // their names are hashes if guest/image made them
		size := int64(0)
		if i, err := h.Stat(f); err == nil {
			size = i.Size()
		}
		key = append(key, fmt.Append(nil, f, size))
	}
	digest := sha256.New()
	for _, k := range key {
		fmt.Fprintf(digest, "%d:%s", len(k), k)
	}
	file := ""
	if dir, err := CacheDir(); err == nil { // without a cache folder each run finds out anew
		file = filepath.Join(dir, "accelerator", hex.EncodeToString(digest.Sum(nil)[:8])+".json")
	}
	if a, ok := readFinding(file); ok {
		return a, nil
	}
	a, keep, err := tryKVM(ctx, h, s)
	if keep && file != "" {
		err = writeFinding(file, a)
	}
	return a, err
}

// tryKVM boots a guest like s under KVM. The error is only that of ctx or of the folder: all else is the finding. What
// was found at once is not to be kept: it costs nothing, and may have another cause.
func tryKVM(ctx context.Context, h host.Host, s Spec) (a Accelerator, keep bool, err error) {
	s.Name += "-probe"
	s.Dir = cmp.Or(s.Dir, path.Join(os.TempDir(), fmt.Sprintf("qmig-%d", os.Getpid()))) + "-probe"
	s.Accelerator, s.Memory, s.VCPUs, s.NIC.TAP = "kvm", 256<<20, 1, ""
	s.Incoming, s.Paused, s.KeepLogs = false, false, false
	if err := h.RemoveAll(s.Dir); err != nil { // of a run that was killed
		return Accelerator{}, false, err
	}
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	err = boot(limited, h, s)
	switch {
	case ctx.Err() != nil:
		return Accelerator{}, false, ctx.Err()
	case err == nil:
		return Accelerator{Name: "kvm", Reason: fmt.Sprintf("a guest was ready under KVM in %.1f s",
			time.Since(began).Seconds())}, true, nil
	case limited.Err() != nil:
		return Accelerator{Name: "tcg", Reason: fmt.Sprintf("KVM opens, but a guest under it was not ready within %v: "+
			"nested or restricted KVM", readyLimit)}, true, nil
	}
	return Accelerator{Name: "tcg", Reason: fmt.Sprintf("a guest under KVM did not run: %v", err)}, false, nil
}

// boot runs a guest until its agent is ready, and ends it.
func boot(ctx context.Context, h host.Host, s Spec) (err error) {
	vm, err := Start(ctx, h, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	nc, err := vm.Dial(ctx, AgentIO)
	if err != nil {
		return err
	}
	a := NewAgent(nc)
	defer a.Close()
	if _, err = a.Ready(ctx); err != nil && ctx.Err() == nil {
		text, _ := vm.Console()
		lines := strings.Split(strings.TrimSpace(text), "\n")
		err = fmt.Errorf("%w; the guest's last words: %q", err, lines[len(lines)-1])
	}
	return err
}

// hostVersion is Version on a host.
func hostVersion(ctx context.Context, h host.Host, qemu string) (string, error) {
	var out, said bytes.Buffer
	p, err := h.Start(ctx, host.Command{Args: []string{qemu, "--version"}, Stdout: &out, Stderr: &said})
	if err != nil {
		return "", err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return "", errors.Join(ctx.Err(), p.Kill(context.WithoutCancel(ctx)))
	}
	if err := p.Err(); err != nil {
		if text := strings.TrimSpace(said.String()); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return "", fmt.Errorf("ask %s for its version: %w", qemu, err)
	}
	return parseVersion(qemu, out.String())
}

func readFinding(file string) (Accelerator, bool) {
	i, err := os.Stat(file)
	if err != nil || time.Since(i.ModTime()) > findingAge {
		return Accelerator{}, false
	}
	b, err := os.ReadFile(file)
	a := Accelerator{Cached: true}
	if err != nil || json.Unmarshal(b, &a) != nil || a.Name != "kvm" && a.Name != "tcg" {
		return Accelerator{}, false
	}
	return a, true
}

func writeFinding(file string, a Accelerator) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("keep what was found: %w", err)
	}
	return atomicfile.WriteFunc(file, 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(a) })
}
