package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"qmigrate/hostnet/host"
)

// helpers are what this test program can be in a second process.
func helpers() map[string]func() error {
	return map[string]func() error{
		// apply makes a network with a process on it, says which, and waits to be killed.
		"apply": func() error {
			n, err := Spec{Owner: os.Getenv("OWNER")}.Apply(context.Background())
			if err != nil {
				return err
			}
			p, err := n.Host("a").Start(context.Background(), host.Command{Args: []string{"sleep", "1000"}})
			if err != nil {
				return err
			}
			fmt.Println(p.PID(), p.StartTime())
			select {}
		},
		// tap opens a TAP as QEMU does.
		"tap": func() error {
			f, err := openTAP(os.Getenv("TAP"), os.Getenv("MULTI") != "")
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = fmt.Println("opened", os.Getenv("TAP"))
			return err
		},
		// user becomes another user, in a mount namespace whose TUN device is as $TUN says, and goes on as the helper $THEN.
		"user": func() error {
			if err := privateDevices(os.Getenv("TUN")); err != nil {
				return err
			}
			const limit = "/proc/sys/user/max_user_namespaces"
			if v := os.Getenv("USER_NAMESPACES"); v != "" {
				if err := setKernelFile(limit, v); err != nil {
					return err
				}
			}
			cmd := self(os.Getenv("THEN"))
			program, err := inMemory()
			if err != nil {
				return err
			}
			defer program.Close()
			cmd.Path = fmt.Sprintf("/proc/self/fd/%d", program.Fd())
			cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534},
				Pdeathsig: syscall.SIGKILL}
			return passStatus(cmd)
		},
		// rootless does with Reexec what root does without.
		"rootless": func() error {
			status, done, err := Reexec()
			if err != nil {
				return err
			}
			if done {
				os.Exit(status)
			}
			return insideRootless()
		},
		// typed says which feature is missing for Reexec or, inside, for Apply.
		"typed": func() error {
			status, done, err := Reexec()
			if done {
				os.Exit(status)
			}
			if err == nil {
				var n *Network
				if n, err = (Spec{Owner: os.Getenv("OWNER")}).Apply(context.Background()); err == nil {
					return errors.Join(errors.New("applied"), n.Close())
				}
			}
			missing := new(host.UnsupportedError)
			if !errors.As(err, &missing) || !errors.Is(err, errors.ErrUnsupported) {
				return fmt.Errorf("not typed: %w", err)
			}
			fmt.Printf("%s\n%s\n%s\n", missing.Feature, missing.Mend, err)
			return nil
		},
		// check prints what Check finds as this user.
		"check": func() error {
			for _, c := range Check(context.Background()) {
				fmt.Printf("%s|%v|%v|%s|%s\n", c.Name, c.OK, c.Optional, c.Reason, c.Mend)
			}
			return nil
		},
		// signals waits for a signal inside and leaves with 40 and its number.
		"signals": func() error {
			signals := make(chan os.Signal, 4)
			if Inside() {
				signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1)
			}
			status, done, err := Reexec()
			if err != nil {
				return err
			}
			if done {
				os.Exit(status)
			}
			fmt.Println(os.Getpid(), os.Getppid())
			os.Exit(40 + int((<-signals).(syscall.Signal)))
			return nil
		},
	}
}

func passStatus(cmd *exec.Cmd) error {
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	return err
}

// privateDevices gives this process's mount namespace a /dev/net of its own: with a TUN device that all may open, with
// one that only root may, or with none.
func privateDevices(tun string) error {
	if tun == "skip" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	dir := filepath.Dir(tunDevice)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(tun, 8, 32)
	if err != nil {
		return nil // none
	}
	if err := unix.Mknod(tunDevice, unix.S_IFCHR, int(unix.Mkdev(10, 200))); err != nil {
		return err
	}
	return os.Chmod(tunDevice, os.FileMode(mode))
}

// inMemory is this program where every user may run it. Its own folder is its builder's alone under umask 077.
func inMemory() (*os.File, error) {
	fd, err := unix.MemfdCreate("hostnet.test", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	program := os.NewFile(uintptr(fd), "hostnet.test")
	from, err := os.Open("/proc/self/exe")
	if err == nil {
		_, err = io.Copy(program, from)
		err = errors.Join(err, from.Close())
	}
	if err != nil {
		program.Close()
		return nil, err
	}
	return program, nil
}

func insideRootless() error {
	ctx := context.Background()
	if !Inside() || os.Geteuid() != 0 {
		return errors.New("not inside")
	}
	if status, done, err := Reexec(); status != 0 || done || err != nil {
		return fmt.Errorf("a second Reexec inside: %d, %v, %w", status, done, err)
	}
	if _, err := os.Stat("/run/lock"); err != nil && os.Getenv("RUN_LOCK") != "" {
		return fmt.Errorf("/run lost what it had: %w", err)
	}
	if owners, err := Owners(ctx); err != nil || len(owners) > 0 {
		return fmt.Errorf("owners before anything: %v, %w", owners, err)
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	n, err := Spec{Owner: "rootless", Rate: 12_500_000}.Apply(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	l, err := n.Host("b").Listen(ctx, "tcp", n.Address("b").String()+":0")
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		if c, err := n.Host("a").Dial(ctx, "tcp", l.Addr().String()); err == nil {
			_, _ = c.Write(input)
			c.Close()
		}
	}()
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	p, err := n.Host("a").Start(ctx, host.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		return err
	}
	if p, err = host.Local().FindProcess(ctx, p.PID(), p.StartTime()); err != nil {
		return err
	}
	if err := errors.Join(p.Kill(ctx), n.Close()); err != nil {
		return err
	}
	fmt.Printf("got %s by %s, owner %s\n", got, n.Shaper(), n.Spec().Owner)
	os.Exit(42)
	return nil
}

// openTAP opens a TAP in the thread's namespace as QEMU opens one.
func openTAP(name string, multiQueue bool) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
