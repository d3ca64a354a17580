package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
)

// server is a storage server on the link, which both hosts reach: a process in the observer's namespace.
type server struct {
	proc host.Process
	dir  string
	// start starts the process anew with what it served before; for tests, which kill it.
	start func(context.Context) error
}

// serverState is how another process finds it.
type serverState struct {
	Host      string `json:"host"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
}

// serverLimit is how long a server may take to serve.
const serverLimit = 20 * time.Second

func (s *server) close() error {
	if s == nil || s.proc == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), serverLimit)
	defer cancel()
	return s.proc.Kill(ctx)
}

func (s *server) state(h host.Host) *serverState {
	if s == nil || s.proc == nil {
		return nil
	}
	return &serverState{h.Name(), s.proc.PID(), s.proc.StartTime()}
}

// end ends a server of a lab that another process made.
func (s *serverState) end(ctx context.Context) error {
	if s == nil {
		return nil
	}
	p, err := host.Local().FindProcess(ctx, s.PID, s.StartTime)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.Kill(ctx)
}

// needs refuses a kind of storage for which a part is missing.
func needs(what ...debian.What) error {
	for _, w := range what {
		if _, err := debian.Find(w); err != nil {
			return &plan.UnsupportedError{Feature: "storage", Have: fmt.Sprintf("%s is not there: `make deps` (qmigrate doctor --mend) unpacks it", w)}
		}
	}
	return nil
}

// modules are the block drivers that the QEMUs of a lab need beside what is in them.
func (l *Lab) modules(ctx context.Context, driver string) error {
	for _, qemu := range []string{l.spec.SourceQEMU, l.spec.DestinationQEMU} {
		b, err := guest.FindQEMU(ctx, qemu)
		if err != nil {
			return err
		}
		if err := debian.HasDriver(ctx, b.Path, driver); err != nil {
			return &plan.UnsupportedError{Feature: "storage " + string(l.spec.Storage.Kind), Have: err.Error()}
		}
	}
	return nil
}

const (
	portalPort = "3260"
	chapUser   = "qmigrate"
	iqn        = "iqn.2026-11.lab.qmigrate:"
)

// startTarget serves each disk as a LUN of a target of its own, by tgtd.
func (l *Lab) startTarget(ctx context.Context, dir string) error {
	if err := needs(debian.Target); err != nil {
		return err
	}
	if err := l.modules(ctx, "iscsi"); err != nil {
		return err
	}
	s, home := l.spec.Storage, must(debian.Find(debian.Target))
	portal := l.network.Gateway().String() + ":" + portalPort
	secret := filepath.Join(dir, "chap")
	password := "lab-" + strings.ReplaceAll(l.spec.Owner, "-", "")
	password = (password + "0123456789ab")[:14] // RFC 3720 wants 12 bytes and more, some initiators no more than 16
	if s.CHAP {
		if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
			return fmt.Errorf("make storage: %w", err)
		}
	}
	for _, node := range s.Nodes() {
		if err := storage.Create(filepath.Join(dir, node+".raw"), "raw", s.Size); err != nil {
			return err
		}
		d := guest.Disk{Node: node, Driver: "iscsi", Server: portal, Path: iqn + node, LUN: 1}
		if s.CHAP {
			d.User, d.Secret = chapUser, secret
		}
		l.disks.source, l.disks.destination = append(l.disks.source, d), append(l.disks.destination, d)
	}
	observer := l.network.Observer()
	socket := filepath.Join(dir, "tgt")
	if len(socket) > 90 {
		return fmt.Errorf("make storage: socket path %s is too long: set TMPDIR to a shorter folder", socket)
	}
	env := []string{"TGT_IPC_SOCKET=" + socket, "LD_LIBRARY_PATH=" + debian.Libraries(home)}
	admin := func(ctx context.Context, args ...string) error {
		var said strings.Builder
		p, err := observer.Start(ctx, host.Command{Args: append([]string{filepath.Join(home, "usr/sbin/tgtadm"), "--lld", "iscsi"}, args...), Env: env, Stdout: &said, Stderr: &said})
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
	srv := &server{dir: dir}
	srv.start = func(ctx context.Context) error {
		_ = os.Remove(socket + ".0") // of one that was killed
		_ = os.Remove(socket + ".0.lock")
		log := filepath.Join(dir, "tgtd.log")
		var err error
		if srv.proc, err = observer.Start(ctx, host.Command{Args: []string{filepath.Join(home, "usr/sbin/tgtd"), "-f", "--iscsi", "portal=" + portal}, Env: env, Log: log}); err != nil {
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
	l.disks.server = srv
	err := srv.start(ctx)
	return errors.Join(err, l.save()) // so that a killed run's is found
}

// startNFS serves a folder with the disks' images by nfs-ganesha, in user space. It and the port mapper, which QEMU's client asks on port 111,
// have a /run and a /var/lib of their own, for they have names there that the system's own may hold. They end together: the shell that both
// are children of is process 1 of their PID namespace.
func (l *Lab) startNFS(ctx context.Context, dir string) error {
	if err := needs(debian.Ganesha); err != nil {
		return err
	}
	if err := l.modules(ctx, "nfs"); err != nil {
		return err
	}
	if os.Geteuid() != 0 || hostnet.Inside() {
		return &plan.UnsupportedError{Feature: "storage nfs", Have: "nfs-ganesha opens files by their handles (open_by_handle_at), which only real root may: run as root"}
	}
	s, home, address := l.spec.Storage, must(debian.Find(debian.Ganesha)), l.network.Gateway().String()
	export := filepath.Join(dir, "export")
	if err := os.Mkdir(export, 0o755); err != nil {
		return fmt.Errorf("make storage: %w", err)
	}
	for _, node := range s.Nodes() {
		name := node + "." + s.Format
		if err := storage.Create(filepath.Join(export, name), s.Format, s.Size); err != nil {
			return err
		}
		d := guest.Disk{Node: node, Format: s.Format, Driver: "nfs", Server: address, Path: filepath.Join(export, name)}
		l.disks.source, l.disks.destination = append(l.disks.source, d), append(l.disks.destination, d)
	}
	config := filepath.Join(dir, "ganesha.conf")
	plugins, _ := filepath.Glob(filepath.Join(home, "usr/lib/*-linux-gnu/ganesha"))
	if len(plugins) != 1 {
		return fmt.Errorf("start nfs-ganesha: %d folders of plug-ins in %s", len(plugins), home)
	}
	text := fmt.Sprintf(`NFS_CORE_PARAM { Plugins_Dir = "%s"; Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false; Bind_addr = %s; }
NFSv4 { UseGetpwnam = true; Graceless = true; }
EXPORT { Export_Id = 1; Path = "%s"; Pseudo = "/lab"; Access_Type = RW; Squash = No_Root_Squash; Protocols = 3; Transports = TCP; SecType = sys; FSAL { Name = VFS; } }
LOG { Default_Log_Level = EVENT; }
`, plugins[0], address, export)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("make storage: %w", err)
	}
	observer := l.network.Observer()
	// $1: the unpacked programs, $2: the lab's folder. rpcbind wants a user of its own, which its package would have made.
	const script = `set -e
mount --bind "$2" /mnt; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib
mkdir -p "$2" /run/rpcbind /run/ganesha /var/lib/nfs; mount --move /mnt "$2"
{ cat /etc/passwd; echo "_rpc:x:65534:65534::/:/usr/sbin/nologin"; } > /run/passwd; mount --bind /run/passwd /etc/passwd
"$1/sbin/rpcbind" -f -w &
while ! [ -S /run/rpcbind.sock ]; do kill -0 $!; sleep 0.05; done
exec "$1/usr/bin/ganesha.nfsd" -F -L STDERR -f "$2/ganesha.conf" -p /run/ganesha/pid`
	srv := &server{dir: dir}
	srv.start = func(ctx context.Context) error {
		log := filepath.Join(dir, "ganesha.log")
		var err error
		srv.proc, err = observer.Start(ctx, host.Command{Log: log, Env: []string{"LD_LIBRARY_PATH=" + debian.Libraries(home)},
			Args: []string{"unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", script, "sh", home, dir}})
		if err != nil {
			return fmt.Errorf("start nfs-ganesha: %w", err)
		}
		limited, cancel := context.WithTimeout(ctx, serverLimit)
		defer cancel()
		for {
			nc, err := observer.Dial(limited, "tcp", address+":2049")
			if err == nil {
				nc.Close()
				return nil
			}
			select {
			case <-srv.proc.Done():
				b, _ := os.ReadFile(log)
				return fmt.Errorf("start nfs-ganesha: it ended: %s", lastLine(string(b)))
			case <-limited.Done():
				b, _ := os.ReadFile(log)
				return fmt.Errorf("start nfs-ganesha: %w; it says %q", err, lastLine(string(b)))
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	l.disks.server = srv
	err := srv.start(ctx)
	return errors.Join(err, l.save())
}

// must is for what needs has just found.
func must(path string, _ error) string { return path }
