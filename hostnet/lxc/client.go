package lxc

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"qmigrate/hostnet/host"
	"qmigrate/hostnet/internal/mark"
)

const (
	busyLimit = 10 * time.Second // for a daemon to end what it does with a container before that can be removed
	ownerKey  = "qmigrate.owner" // property of our images
)

// daemon is LXD or Incus, which take the same words, by its command. It makes the containers and no network: theirs is
// the observer's link, as liblxc's is, and nothing of the daemon's networks, profiles or storage changes.
type daemon struct {
	manager host.LXC
	program string
	setUp   string // what makes the daemon usable
}

func client(m host.LXC) daemon {
	if m == host.Incus {
		return daemon{m, "incus", "incus admin init --minimal"}
	}
	return daemon{m, "lxc", "lxd init --minimal"}
}

// run runs the command and gives what it says.
func (d daemon) run(ctx context.Context, stdin []byte, words ...string) ([]byte, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, d.program, words...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = bytes.NewReader(stdin), &out, &said, time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		line := err.Error()
		for one := range strings.Lines(said.String()) {
			if what, ok := strings.CutPrefix(strings.TrimSpace(one), "Error: "); ok {
				line = what
				break
			}
		}
		return nil, fmt.Errorf("%s %s: %s", d.program, strings.Join(words[:min(2, len(words))], " "), line)
	}
	return out.Bytes(), nil
}

func (d daemon) ask(ctx context.Context, into any, words ...string) error {
	out, err := d.run(ctx, nil, words...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("%s %s: %w", d.program, words[0], err)
	}
	return nil
}

// check says why containers cannot be made by it.
func (d daemon) check(ctx context.Context) error {
	unable := func(reason, mend string) error {
		return &host.UnsupportedError{Feature: "containers by " + string(d.manager), Reason: reason, Mend: mend}
	}
	if _, err := exec.LookPath(d.program); err != nil {
		return unable(d.program+" is not installed", "")
	}
	if os.Geteuid() != 0 {
		return unable("not root: the observer is a network namespace", "run as root")
	}
	out, err := d.run(ctx, nil, "remote", "get-default")
	if err != nil {
		return unable(err.Error(), "")
	}
	if remote := strings.TrimSpace(string(out)); remote != "local" {
		return unable("its default remote is "+remote+", and not this machine", "run `"+d.program+" remote switch local`")
	}
	_, err = d.pool(ctx)
	return err
}

// pool is where the containers' root file systems are: the pool named default, else the first.
func (d daemon) pool(ctx context.Context) (string, error) {
	var pools []struct {
		Name string `json:"name"`
	}
	if err := d.ask(ctx, &pools, "query", "/1.0/storage-pools?recursion=1"); err != nil {
		return "", &host.UnsupportedError{Feature: "containers by " + string(d.manager), Reason: err.Error(),
			Mend: "is its daemon running, and may you use it?"}
	}
	for _, p := range pools {
		if p.Name == "default" {
			return p.Name, nil
		}
	}
	if len(pools) == 0 {
		return "", &host.UnsupportedError{Feature: "containers by " + string(d.manager), Reason: "it has no storage pool",
			Mend: "as root run `" + d.setUp + "`"}
	}
	return pools[0].Name, nil
}

// applyClient makes the containers by LXD or Incus.
func (s Spec) applyClient(ctx context.Context, n *Network) (err error) {
	d := client(s.Manager)
	found, err := d.names(ctx, s.Owner)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("container %s is there already", found[0])
	}
	pool, err := d.pool(ctx)
	if err != nil {
		return err
	}
	n.remove = func(ctx context.Context) error {
		_, err := d.remove(ctx, s.Owner)
		return err
	}
	if n.Network, err = s.Link(ctx); err != nil {
		return err
	}
	program, err := s.Pool.Program()
	if err != nil {
		return err
	}
	if err := d.importImage(ctx, s, program); err != nil {
		return err
	}
	return n.start(ctx, func(name string) (host.Process, error) { return d.start(ctx, s, name, pool) })
}

// image is the name of an owner's image.
func image(owner string) string { return mark.Prefix + owner }

// importImage gives the daemon an image of empty folders and the first process: all else the containers have from this
// machine.
func (d daemon) importImage(ctx context.Context, s Spec, program []byte) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	now := time.Now()
	put := func(h tar.Header, data []byte) error {
		h.ModTime, h.Size = now, int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	about, err := json.Marshal(map[string]any{"architecture": "x86_64", "creation_date": now.Unix(),
		"properties": map[string]string{"description": "qmigrate, lab " + s.Owner, ownerKey: s.Owner}})
	if err != nil {
		return err
	}
	errs := []error{put(tar.Header{Name: "metadata.yaml", Mode: 0o644}, about), // JSON is YAML
		put(tar.Header{Name: "rootfs/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)}
	for _, f := range ownFolders {
		errs = append(errs, put(tar.Header{Name: "rootfs/" + f.name + "/", Typeflag: tar.TypeDir, Mode: int64(f.mode)}, nil))
	}
	for _, name := range systemFolders {
		if target, err := os.Readlink(name); err == nil {
			errs = append(errs, put(tar.Header{Name: "rootfs" + name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, nil))
		} else if _, err := os.Stat(name); err == nil {
			errs = append(errs, put(tar.Header{Name: "rootfs" + name + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil))
		}
	}
	errs = append(errs, put(tar.Header{Name: "rootfs" + initProgram, Mode: 0o755}, program), w.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("make an image: %w", err)
	}
	file := filepath.Join(s.Dir, "image.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		return err
	}
	_, err = d.run(ctx, nil, "image", "import", file, "--alias", image(s.Owner))
	return errors.Join(err, os.Remove(file))
}

// instance is a container as the daemon takes it.
type instance struct {
	Config  map[string]string            `json:"config"`
	Devices map[string]map[string]string `json:"devices"`
}

// instance is a container of the spec.
func (s Spec) instance(pool string) instance {
	raw := []string{"lxc.init.cmd = " + initProgram + " init",
		"lxc.mount.auto = cgroup:rw:force", // for a limit on the vCPUs; an init of a distribution mounts it itself
		"lxc.mount.entry = none dev/shm tmpfs rw,nosuid,nodev,create=dir,mode=1777 0 0"}
	in := instance{Config: map[string]string{"raw.lxc": strings.Join(raw, "\n") + "\n", "user." + ownerKey: s.Owner},
		Devices: map[string]map[string]string{"root": {"type": "disk", "path": "/", "pool": pool}}}
	give := func(folder string) {
		name := fmt.Sprintf("folder%d", len(in.Devices))
		in.Devices[name] = map[string]string{"type": "disk", "source": folder, "path": folder, "readonly": "true"}
	}
	for _, folder := range systemFolders {
		if info, err := os.Lstat(folder); err == nil && info.IsDir() {
			give(folder)
		}
	}
	for _, folder := range s.ReadOnly {
		if _, err := os.Stat(folder); err == nil {
			give(folder)
		}
	}
	for device := range deviceNumbers() {
		in.Devices["dev-"+strings.ReplaceAll(device, "/", "-")] = map[string]string{"type": "unix-char",
			"path": "/dev/" + device, "mode": "0666"}
	}
	return in
}

// start makes and starts a container and gives its first process.
func (d daemon) start(ctx context.Context, s Spec, name, pool string) (host.Process, error) {
	about, err := json.Marshal(s.instance(pool))
	if err != nil {
		return nil, err
	}
	if _, err := d.run(ctx, about, "init", image(s.Owner), name, "--no-profiles"); err != nil {
		return nil, fmt.Errorf("make container %s: %w", name, err)
	}
	if _, err := d.run(ctx, nil, "start", name); err != nil {
		log, _ := d.run(ctx, nil, "info", "--show-log", name)
		if line := firstError(string(log), ""); line != "" {
			err = fmt.Errorf("%w: %s", err, line)
		}
		return nil, fmt.Errorf("start container %s: %w", name, err)
	}
	var state struct {
		PID int `json:"pid"`
	}
	if err := d.ask(ctx, &state, "query", "/1.0/instances/"+name+"/state"); err != nil {
		return nil, fmt.Errorf("look at container %s: %w", name, err)
	}
	if state.PID == 0 {
		return nil, fmt.Errorf("look at container %s: its first process has ended", name)
	}
	started, err := host.StartTime(state.PID)
	if err != nil {
		return nil, fmt.Errorf("look at container %s: %w", name, err)
	}
	return host.FindProcess(state.PID, started)
}

// names are an owner's containers.
func (d daemon) names(ctx context.Context, owner string) (names []string, err error) {
	out, err := d.run(ctx, nil, "list", "--format", "csv", "-c", "n")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(string(out)) {
		if o, ok := mark.Owner(name); ok && o == owner {
			names = append(names, name)
		}
	}
	return names, nil
}

// remove removes an owner's containers and image. What the daemon still does for a run that was killed is waited for,
// because it may make something.
func (d daemon) remove(ctx context.Context, owner string) (removed []string, err error) {
	for until := time.Now().Add(busyLimit); ; {
		r, err := d.removeFound(ctx, owner)
		removed = append(removed, r...)
		busy, askErr := d.busy(ctx, owner)
		if err = errors.Join(err, askErr); !busy && (err == nil || len(r) == 0) || time.Now().After(until) {
			return removed, err
		}
		select {
		case <-ctx.Done():
			return removed, errors.Join(err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// busy tells whether the daemon is at something that may be about an owner's containers or image.
func (d daemon) busy(ctx context.Context, owner string) (bool, error) {
	var all map[string][]struct { // by status
		Description string              `json:"description"`
		Resources   map[string][]string `json:"resources"`
		Class       string              `json:"class"`
	}
	if err := d.ask(ctx, &all, "query", "/1.0/operations?recursion=1"); err != nil {
		return false, err
	}
	for status, some := range all {
		for _, o := range some {
			if status != "running" && status != "pending" || o.Class != "task" {
				continue
			}
			if strings.Contains(strings.ToLower(o.Description), "image") {
				return true, nil // it has no name of ours yet
			}
			for _, names := range o.Resources {
				for _, name := range names {
					if who, ok := mark.Owner(name); ok && who == owner {
						return true, nil
					}
				}
			}
		}
	}
	return false, nil
}

// removeFound removes what there is now.
func (d daemon) removeFound(ctx context.Context, owner string) (removed []string, err error) {
	names, err := d.names(ctx, owner)
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { _, errs[i] = d.run(ctx, nil, "delete", "--force", name) })
	}
	all.Wait()
	for i, name := range names {
		if errs[i] == nil {
			removed = append(removed, "container "+name)
		}
	}
	var images []struct {
		Fingerprint string            `json:"fingerprint"`
		Properties  map[string]string `json:"properties"`
	}
	err = d.ask(ctx, &images, "image", "list", "--format", "json")
	for _, one := range images {
		if one.Properties[ownerKey] != owner {
			continue
		}
		_, e := d.run(ctx, nil, "image", "delete", one.Fingerprint)
		if errs = append(errs, e); e == nil {
			removed = append(removed, fmt.Sprintf("image %.12s", one.Fingerprint))
		}
	}
	return removed, errors.Join(append(errs, err)...)
}
