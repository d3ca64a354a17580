package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/guest"
	"qmigrate/guest/debian"
	"qmigrate/guest/image"
	"qmigrate/hostnet"
	"qmigrate/hostnet/host"
	"qmigrate/hostnet/libvirtd"
	"qmigrate/hostnet/lxc"
)

func (c *commands) doctor() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "what this machine, or another host, lacks, with the command that would mend it",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "host", Usage: "`HOST` another host, as in ssh://USER@HOST or lxc:NAME"},
			&cli.BoolFlag{Name: "mend", Usage: "get what is missing: QEMU 7.2, 10.0 and 11.1, the guest's kernel, what " +
				"storage on a network needs, and the Debian guest, into the cache folder; nothing else changes"},
		}, hostFlags()...),
		Action: c.runDoctor,
	}
}

// finding is one line of the doctor's.
type finding struct {
	name, text, mend string
	ok, optional     bool
}

func (c *commands) runDoctor(x *cli.Context) error {
	if x.Args().Present() {
		return usagef("doctor takes no arguments, found %q", x.Args().First())
	}
	if x.Bool("mend") {
		var errs []error
		for _, what := range debian.All() {
			_, err := debian.Ensure(x.Context, what, c.stderr)
			errs = append(errs, err)
		}
		for _, what := range debian.Extras() { // the demo goes without them
			if _, err := debian.Ensure(x.Context, what, c.stderr); err != nil && errors.Join(errs...) == nil {
				fmt.Fprintf(c.stderr, "without %v\n", err)
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	missing := 0
	all, what := []finding(nil), "`qmigrate demo`"
	if name := x.String("host"); name != "" && name != "local" {
		if x.Bool("mend") {
			return usagef("--mend gets what this machine lacks: the commands for %s are its administrator's to run", name)
		}
		if err := host.CheckName(name); err != nil {
			return usageError{err}
		}
		var err error
		if all, err = c.hostFindings(x.Context, c.reach(x), name); err != nil {
			return err
		}
		what = "a lab on " + name
	} else {
		all = findings(x.Context)
	}
	for _, f := range all {
		mark := "ok     "
		switch {
		case !f.ok && f.optional:
			mark = "without"
		case !f.ok:
			mark = "MISSING"
			missing++
		}
		if x.Bool("mend") && mark != "MISSING" { // what was asked for is there: the whole list is `doctor`'s
			continue
		}
		fmt.Fprintln(c.stdout, strings.TrimRight(fmt.Sprintf("%s  %-20s%s", mark, f.name, fold(f.text, 29, page(c.stdout))),
			" "))
		if !f.ok && f.mend != "" {
			fmt.Fprintf(c.stdout, "%29s%s\n", "", fold("try: "+f.mend, 29, page(c.stdout)))
		}
	}
	if x.Bool("mend") && missing == 0 {
		fmt.Fprintln(c.stdout, "everything that the demo and the tests need is there")
	}
	if missing > 0 {
		return fmt.Errorf("%s missing for %s", plural(int64(missing), "thing is", "things are"), what)
	}
	return nil
}

func findings(ctx context.Context) []finding {
	var all []finding
	for _, one := range hostnet.Check(ctx) {
		all = append(all, finding{one.Name, one.Reason, one.Mend, one.OK, one.Optional})
	}
	const mend = "qmigrate doctor --mend"
	safe := false
	for _, series := range []string{"7.2", "10.0", "11.1"} {
		b, err := guest.FindQEMU(ctx, series)
		f := finding{name: "QEMU " + series, ok: err == nil, text: b.Path, mend: mend, optional: true}
		if err != nil {
			f.text = "not found: the tests need it"
		} else if guest.CompareVersions(b.Version, "9.0") >= 0 {
			safe = true
		}
		all = append(all, f)
	}
	newest, err := guest.FindQEMU(ctx, "")
	safe = safe || err == nil && guest.CompareVersions(newest.Version, "9.0") >= 0
	all = append(all, finding{
		name: "QEMU >= 9.0", ok: safe, mend: mend,
		text: "before 9.0 QEMU under TCG loses dirty pages (fixed by commit 03bfc2188f): the demo runs on a newer one",
	})
	if safe {
		all[len(all)-1].text = first(newest.Version, "10.0") + "; " + all[len(all)-1].text
	}
	kernel, err := debian.Find(debian.Kernel)
	f := finding{name: "guest kernel", ok: err == nil, text: kernel, mend: mend}
	if err != nil {
		f.text = "not in the cache: without it give --kernel and --modules"
	}
	all = append(append(all, f), storageFindings(ctx, mend)...)
	all = append(all, guestFinding(mend), agentFinding(), kvmFinding(), containerFinding(ctx), libvirtFinding(ctx))
	return all
}

func agentFinding() finding {
	f := finding{name: "guest agent", ok: image.HasAgent(), text: "built in", mend: "make build"}
	if !f.ok {
		f.text = image.ErrNoAgent.Error()
	}
	return f
}

// containerFinding says who can make the containers of --hosts lxc.
func containerFinding(ctx context.Context) finding {
	f := finding{name: "hosts lxc", optional: true}
	usable, err := lxc.Managers(ctx)
	if f.ok = len(usable) > 0; f.ok {
		var names []string
		for _, m := range usable {
			names = append(names, string(m))
		}
		f.text = "containers by " + strings.Join(names, ", ")
		return f
	}
	f.text = "no containers for --hosts lxc"
	var first *host.UnsupportedError
	if errors.As(err, &first) { // liblxc's, which needs no daemon
		f.text, f.mend = f.text+": "+first.Reason, first.Mend
	}
	return f
}

// libvirtFinding says whether --hosts libvirt can be made.
func libvirtFinding(ctx context.Context) finding {
	f := finding{name: "hosts libvirt", optional: true, ok: true, text: "containers by liblxc with a libvirtd in them"}
	var lacks *host.UnsupportedError
	if err := libvirtd.Check(ctx); errors.As(err, &lacks) {
		f.ok, f.text, f.mend = false, "no --hosts libvirt: "+lacks.Reason, lacks.Mend
	}
	return f
}

// kvmFinding says what can be said without booting anything.
func kvmFinding() finding {
	f := finding{name: "KVM", optional: true, text: "no /dev/kvm: guests run under TCG"}
	if _, err := host.Local().Stat("/dev/kvm"); err == nil {
		f.ok, f.text = true, "/dev/kvm is there; whether a guest really boots under it is tried once, at the first demo, "+
			"and remembered"
	}
	return f
}
