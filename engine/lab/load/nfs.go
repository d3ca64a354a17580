package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"qmigrate/engine/plan"
	"qmigrate/engine/storage"
	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
)

// startNFS serves a folder with the disks' images by nfs-ganesha, in user space. It and the port mapper, which QEMU's
// client asks on port 111, have their own /run and /var/lib, because they have names there that the system's own may
// hold. They end together: the shell that both are children of is process 1 of their PID namespace.
func (d *Disks) startNFS(ctx context.Context, dir string) error {
	home, err := find(debian.Ganesha)
	if err != nil {
		return err
	}
	if err := d.drivers(ctx, "nfs"); err != nil {
		return err
	}
	if os.Geteuid() != 0 || hostnet.Inside() {
		return &plan.UnsupportedError{Feature: "storage nfs",
			Have: "nfs-ganesha opens files by their handles (open_by_handle_at), which only real root may: run as root"}
	}
	s, address := d.spec.Storage, d.spec.Address.String()
	export := filepath.Join(dir, "export")
	if err := os.Mkdir(export, 0o755); err != nil {
		return fmt.Errorf("make storage: %w", err)
	}
	for _, node := range s.Nodes() {
		name := node + "." + s.Format
		if err := storage.Create(filepath.Join(export, name), s.Format, s.Size); err != nil {
			return err
		}
		disk := guest.Disk{Node: node, Format: s.Format, Driver: "nfs", Server: address, Path: filepath.Join(export, name)}
		d.add(disk, disk)
	}
	config := filepath.Join(dir, "ganesha.conf")
	plugins, _ := filepath.Glob(filepath.Join(home, "usr/lib/*-linux-gnu/ganesha"))
	if len(plugins) != 1 {
		return fmt.Errorf("start nfs-ganesha: %d folders of plug-ins in %s", len(plugins), home)
	}
	text := fmt.Sprintf(`NFS_CORE_PARAM { Plugins_Dir = "%s"; Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false;
  Bind_addr = %s; }
NFSv4 { UseGetpwnam = true; Graceless = true; }
EXPORT { Export_Id = 1; Path = "%s"; Pseudo = "/lab"; Access_Type = RW; Squash = No_Root_Squash;
  Protocols = 3; Transports = TCP; SecType = sys; FSAL { Name = VFS; } }
LOG { Default_Log_Level = EVENT; }
`, plugins[0], address, export)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("make storage: %w", err)
	}
	observer := d.spec.Observer
	// $1: the unpacked programs, $2: the lab's folder. rpcbind wants a user of its own, which its package would have made.
	const script = `set -e
mount --bind "$2" /mnt; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib
mkdir -p "$2" /run/rpcbind /run/ganesha /var/lib/nfs; mount --move /mnt "$2"
{ cat /etc/passwd; echo "_rpc:x:65534:65534::/:/usr/sbin/nologin"; } > /run/passwd; mount --bind /run/passwd /etc/passwd
"$1/sbin/rpcbind" -f -w &
while ! [ -S /run/rpcbind.sock ]; do kill -0 $!; sleep 0.05; done
exec "$1/usr/bin/ganesha.nfsd" -F -L STDERR -f "$2/ganesha.conf" -p /run/ganesha/pid`
	srv := &Server{dir: dir}
	srv.Start = func(ctx context.Context) error {
		log := filepath.Join(dir, "ganesha.log")
		var err error
		srv.proc, err = observer.Start(ctx, host.Command{Log: log, Env: []string{"LD_LIBRARY_PATH=" + debian.Libraries(home)},
			Args: []string{"unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c",
				script, "sh", home, dir}})
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
	d.Server = srv
	err = srv.Start(ctx)
	return errors.Join(err, d.spec.Save())
}
