package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/hostnet/helperbin"
	"qmigrate/hostnet/host"
	"qmigrate/qmp/qmptest"
)

// place is a kind of host that both QEMUs run on.
type place struct {
	name  string
	at    host.Host
	pp    *pingPong
	trips []float64 // of a bare query-migrate, medians of blocks, in us
	looks []float64 // of the sampler's query-migrate, medians of blocks, in us
	all   []outcome
}

// hosts measures what a channel costs: the same guest, to and fro between QEMUs on this machine, behind ssh and in a
// container, which take turns. All of them run on this machine's processors; what differs is the way to their monitors.
func (b *bench) hosts(ctx context.Context, r *Result) (err error) {
	pool := &host.Pool{Program: helperbin.Helper}
	defer func() { err = errors.Join(err, pool.Close()) }()
	places := []*place{{name: "local", at: host.Local()}}
	for _, kind := range []struct {
		name string
		make func(context.Context) (name string, remove func() error, err error)
	}{{"ssh", func(ctx context.Context) (string, func() error, error) { return b.sshHost(pool) }}, {"lxc", b.lxcHost}} {
		name, remove, err := kind.make(ctx)
		if err != nil {
			r.note("%s is not measured: %v", kind.name, err)
			continue
		}
		defer func() { err = errors.Join(err, remove()) }()
		pool.KeepIn(name, filepath.Join(b.dir, "cache"))
		at, err := pool.Find(ctx, name)
		if err != nil {
			return err
		}
		places = append(places, &place{name: kind.name, at: at})
	}
	q := b.qemus[0]
	for _, p := range places {
		p.pp = &pingPong{base: filepath.Join(b.dir, "h"+p.name), spec: guest.Spec{QEMU: q.Path, Image: b.image,
			Memory: guest.SafeMemory(q.Version, "tcg", 256<<20)}}
		if err := p.pp.start(ctx, p.at); err != nil {
			return err
		}
		defer p.pp.close(&err)
		if err := p.pp.hello(ctx); err != nil {
			return err
		}
	}
	for round := range b.pick(6, 60) {
		for i := range places {
			p := places[(i+round)%len(places)]
			if err := p.turn(ctx); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	local := places[0]
	for _, p := range places {
		trip := ofMedian(p.trips)
		r.add(p.name+": a bare query-migrate, p50 of a block", "us", "", trip)
		r.add(p.name+": the sampler's, p50 of a block", "us", "", ofMedian(p.looks))
		before := values(p.all, every, func(o outcome) float64 {
			return o.stages[record.Initialization] + o.stages[record.Reservation]
		})
		over := values(p.all, every, func(o outcome) float64 { return o.overhead })
		wire := values(p.all, every, func(o outcome) float64 { return o.wire })
		decided := func(o outcome) float64 { return o.stages[record.Commitment] + o.stages[record.Activation] }
		r.add(p.name+": initialization + reservation", "ms", "", ofMedian(before))
		r.add(p.name+": overhead beyond QEMU's total", "ms", "", ofMedian(over))
		r.add(p.name+": wire downtime", "ms", "", ofMedian(wire))
		r.add(p.name+": commitment + activation", "ms", "", ofMedian(values(p.all, every, decided)))
		if p == local {
			continue
		}
		inTrips := func(e estimate) estimate {
			e.median, e.low, e.high = e.median*1000/trip.median, e.low*1000/trip.median, e.high*1000/trip.median
			return e
		}
		added := func(which func(outcome) float64) estimate {
			return inTrips(ofDifference(values(p.all, every, which), values(local.all, every, which)))
		}
		r.add(p.name+": initialization + reservation beyond local", "round trips", "", added(func(o outcome) float64 {
			return o.stages[record.Initialization] + o.stages[record.Reservation]
		}))
		r.add(p.name+": overhead beyond local", "round trips", "", added(func(o outcome) float64 { return o.overhead }))
		r.add(p.name+": what the channel adds to the downtime", "round trips", "<= 1",
			added(func(o outcome) float64 { return o.wire }))
		r.add(p.name+": of it commitment + activation", "round trips", "<= 1", added(decided))
	}
	r.note("QEMU %s, idle guest of 256 MiB under TCG, polled each 10 ms, both QEMUs on one host of the kind; a round trip is "+
		"a bare query-migrate by that way", q.Version)
	r.note("the channel itself is in the downtime only from both sides' completed on: in commitment and activation; before, " +
		"its programs only share the processors with QEMU")
	r.note("ssh: OpenSSH's own client and server with their defaults, on this machine and without a network between them")
	return nil
}

func every(outcome) bool { return true }

// turn asks the monitor and migrates once.
func (p *place) turn(ctx context.Context) error {
	dial := func(ctx context.Context) (net.Conn, error) { return p.pp.vm.Dial(ctx, guest.Sampler) }
	for driver, into := range map[string]*[]float64{qmptest.Bare: &p.trips, qmptest.Sampler: &p.looks} {
		median, err := block(ctx, driver, dial, p.pp.vm.Spec().Socket(guest.Sampler))
		if err != nil {
			return err
		}
		*into = append(*into, median)
	}
	rec, err := p.pp.migrate(ctx, plan.Plan{}, plan.Options{}, nil)
	if err != nil {
		return err
	}
	var o outcome
	o.take(rec)
	p.all = append(p.all, o)
	return nil
}

// sshHost is this machine behind a real sshd, which ssh starts itself, so that no port is opened. Its keys are made for
// this run.
func (b *bench) sshHost(pool *host.Pool) (name string, remove func() error, err error) {
	const sshd = "/usr/sbin/sshd"
	for _, program := range []string{sshd, "ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", nil, fmt.Errorf("%w: apt install openssh-server openssh-client", err)
		}
	}
	if os.Geteuid() != 0 {
		return "", nil, errors.New("sshd needs root")
	}
	dir := filepath.Join(b.dir, "ssh")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's own, which its service makes
		return "", nil, err
	}
	for _, key := range []string{"host", "user"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput()
		if err != nil {
			return "", nil, fmt.Errorf("make a key: %w: %s", err, out)
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		return "", nil, err
	}
	for file, text := range map[string]string{
		"sshd_config": "HostKey " + dir + "/host\nAuthorizedKeysFile " + dir + "/user.pub\nStrictModes no\nUsePAM no\n",
		"ssh_config": "Host bench\n  ProxyCommand " + sshd + " -i -f " + dir + "/sshd_config\n  User root\n  IdentityFile " + dir +
			"/user\n  IdentitiesOnly yes\n  UserKnownHostsFile " + dir + "/known_hosts\n",
		"known_hosts": "bench " + strings.TrimSpace(string(public)) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			return "", nil, err
		}
	}
	pool.SSH.Config = filepath.Join(dir, "ssh_config")
	return "ssh://bench", func() error { return nil }, nil
}

// lxcHost is a container of liblxc that has this machine's files.
func (b *bench) lxcHost(ctx context.Context) (name string, remove func() error, err error) {
	for _, program := range []string{"lxc-start", "lxc-attach", "lxc-stop"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", nil, fmt.Errorf("%w: apt install lxc", err)
		}
	}
	if os.Geteuid() != 0 {
		return "", nil, errors.New("this container needs root")
	}
	dir := filepath.Join(b.dir, "lxc")
	root := filepath.Join(dir, "bench", "rootfs")
	config := []string{"lxc.rootfs.path = dir:" + root, "lxc.uts.name = bench", "lxc.init.cmd = /bin/sleep infinity",
		"lxc.apparmor.profile = unconfined", "lxc.cap.drop =", "lxc.mount.auto = proc sys:rw", "lxc.net.0.type = empty"}
	cache, err := guest.CacheDir()
	if err != nil {
		return "", nil, err
	}
	for _, folder := range []string{"/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/boot", cache} {
		if _, err := os.Stat(folder); err != nil {
			continue
		}
		config = append(config, fmt.Sprintf("lxc.mount.entry = %s %s none rbind,create=dir,ro 0 0", folder,
			strings.TrimPrefix(folder, "/")))
	}
	work := b.dir + "-lxc" // where its QEMUs have their folders
	if err := os.MkdirAll(work, 0o700); err != nil {
		return "", nil, err
	}
	config = append(config, fmt.Sprintf("lxc.mount.entry = %s %s none bind,create=dir,rw 0 0", work, strings.TrimPrefix(b.dir, "/")))
	for _, folder := range []string{"dev", "proc", "sys", "tmp", "root", "run"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			return "", nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bench", "config"), []byte(strings.Join(config, "\n")+"\n"), 0o600); err != nil {
		return "", nil, err
	}
	run := func(words ...string) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		words = append([]string{words[0], "-P", dir, "-n", "bench"}, words[1:]...)
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, out)
		}
		return nil
	}
	if err := run("lxc-start", "-d"); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(work))
	}
	if err := run("lxc-attach", "--", "ip", "link", "set", "lo", "up"); err != nil {
		return "", nil, errors.Join(err, run("lxc-stop", "-k"), os.RemoveAll(work))
	}
	return "lxc:liblxc" + dir + "/bench", func() error { return errors.Join(run("lxc-stop", "-k"), os.RemoveAll(work)) }, nil
}
