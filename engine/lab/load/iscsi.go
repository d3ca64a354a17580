package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/hostnet/host"
)

const (
	portalPort = "3260"
	chapUser   = "qmigrate"
	iqn        = "iqn.2026-11.lab.qmigrate:"
)

// startTarget serves each disk as a LUN of a target of its own, by tgtd. It is one function because each of
// tgtadm's commands needs the one before it.
func (d *Disks) startTarget(ctx context.Context, dir string) error {
	home, err := find(debian.Target)
	if err != nil {
		return err
	}
	if err := d.drivers(ctx, "iscsi"); err != nil {
		return err
	}
	s := d.spec.Storage
	portal := d.spec.Address.String() + ":" + portalPort
	password := "lab-" + strings.ReplaceAll(d.spec.Owner, "-", "")
	password = (password + "0123456789ab")[:14] // RFC 3720 wants 12 bytes and more, some initiators no more than 16
	for _, node := range s.Nodes() {
		if err := storage.Create(filepath.Join(dir, node+".raw"), "raw", s.Size); err != nil {
			return err
		}
		disk := guest.Disk{Node: node, Driver: "iscsi", Server: portal, Path: iqn + node, LUN: 1}
		other := disk
		if s.CHAP {
			for _, side := range []struct {
				disk *guest.Disk
				at   Place
			}{{&disk, d.spec.Source}, {&other, d.spec.Destination}} {
				side.disk.User, side.disk.Secret = chapUser, path.Join(side.at.Folder, "chap")
				if err := side.at.Host.WriteFile(side.disk.Secret, []byte(password), 0o600); err != nil {
					return fmt.Errorf("make storage: %w", err)
				}
			}
		}
		d.add(disk, other)
	}
	observer := d.spec.Observer
	socket := filepath.Join(dir, "tgt")
	if len(socket) > 90 {
		return fmt.Errorf("make storage: socket path %s is too long: set TMPDIR to a shorter folder", socket)
	}
	env := []string{"TGT_IPC_SOCKET=" + socket, "LD_LIBRARY_PATH=" + debian.Libraries(home)}
	admin := func(ctx context.Context, args ...string) error {
		var said strings.Builder
		argv := append([]string{filepath.Join(home, "usr/sbin/tgtadm"), "--lld", "iscsi"}, args...)
		p, err := observer.Start(ctx, host.Command{Args: argv, Env: env, Stdout: &said, Stderr: &said})
		if err != nil {
			return err
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			_ = p.Kill(context.WithoutCancel(ctx))
			return ctx.Err()
		}
		if p.Err() != nil {
			return fmt.Errorf("tgtadm %s: %w: %s", strings.Join(args, " "), p.Err(), strings.TrimSpace(said.String()))
		}
		return nil
	}
	srv := &Server{dir: dir}
	srv.Start = func(ctx context.Context) error {
		_ = os.Remove(socket + ".0") // of one that was killed
		_ = os.Remove(socket + ".0.lock")
		log := filepath.Join(dir, "tgtd.log")
		var err error
		argv := []string{filepath.Join(home, "usr/sbin/tgtd"), "-f", "--iscsi", "portal=" + portal}
		if srv.proc, err = observer.Start(ctx, host.Command{Args: argv, Env: env, Log: log}); err != nil {
			return fmt.Errorf("start tgtd: %w", err)
		}
		limited, cancel := context.WithTimeout(ctx, serverLimit)
		defer cancel()
		for {
			if err = admin(limited, "--op", "show", "--mode", "target"); err == nil {
				break
			}
			select {
			case <-srv.proc.Done():
				b, _ := os.ReadFile(log)
				return fmt.Errorf("start tgtd: it ended: %s", lastLine(string(b)))
			case <-limited.Done():
				return fmt.Errorf("start tgtd: %w", err)
			case <-time.After(20 * time.Millisecond):
			}
		}
		var steps [][]string
		if s.CHAP {
			steps = append(steps, []string{"--op", "new", "--mode", "account", "--user", chapUser, "--password", password})
		}
		for i, node := range s.Nodes() {
			tid := fmt.Sprint(i + 1)
			steps = append(steps,
				[]string{"--op", "new", "--mode", "target", "--tid", tid, "-T", iqn + node},
				[]string{"--op", "new", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "-b", filepath.Join(dir, node+".raw")})
			if s.CHAP {
				steps = append(steps, []string{"--op", "bind", "--mode", "account", "--tid", tid, "--user", chapUser})
			}
			steps = append(steps, []string{"--op", "bind", "--mode", "target", "--tid", tid, "-I", "ALL"})
		}
		for _, step := range steps {
			if err := admin(limited, step...); err != nil {
				return fmt.Errorf("set up iSCSI target: %w", err)
			}
		}
		return nil
	}
	d.Server = srv
	err = srv.Start(ctx)
	return errors.Join(err, d.spec.Save()) // so that a killed run's is found
}
