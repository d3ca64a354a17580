package beside

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
	"qmigrate/guest/launch"
	"qmigrate/hostnet/host"
)

// apart fits the change and the command to a destination on another host than its source's. What the source holds is
// not in its way there, and it runs as whoever the helper is.
func (s Spec) apart(ctx context.Context, at host.Host, from *source, ours launch.Ours, change *launch.Options,
	command *host.Command, l *Launched) error {
	change.OtherNetwork, change.OtherHost = true, true
	change.Held = launch.Nothing(func(name string) bool {
		_, err := at.Stat(name)
		return err == nil
	})
	if ours.UID != from.UID {
		l.Notes = append(l.Notes, fmt.Sprintf("it is started on %s as user %d of there; the source is user %d of its own host",
			at.Name(), ours.UID, from.UID))
	}
	// Home, path and the like are that host's.
	command.Env, command.Only = from.Parts(), false
	if info, err := at.Stat(from.Dir); err != nil || !info.IsDir() {
		command.Dir = "/"
	}
	words := from.Command()
	if change.QEMU != "" {
		words, command.Env = []string{change.QEMU}, nil
	}
	program := words[len(words)-1]
	if _, err := at.Stat(program); err != nil {
		return setting.About(fmt.Errorf("host %s has no QEMU %s: %w: name one there with `destination-qemu`", at.Name(), program,
			err), "destination-qemu")
	}
	version, err := versionOf(ctx, at, host.Command{Args: words, Env: command.Env})
	if err != nil {
		return setting.About(fmt.Errorf("%s of host %s: %w: name another with `destination-qemu`", program, at.Name(), err),
			"destination-qemu")
	}
	now, _, _ := strings.Cut(version, " ")
	if was, _, _ := strings.Cut(from.facts.Version, " "); change.QEMU == "" && now != was {
		return setting.About(fmt.Errorf("%s of host %s is QEMU %s, and the source is %s: if that is meant, say so with "+
			"`destination-qemu` %s", program, at.Name(), now, from.facts.Version, program), "destination-qemu")
	}
	return nil
}

// compareDisks refuses a destination that would open other images than the source has. Disks that are mirrored are
// exempt, and those whose file the user chose.
func (l *Launched) compareDisks(ctx context.Context, at host.Host, from *source, p plan.Plan, s Spec) error {
	var errs []error
	for _, d := range from.facts.Disks {
		// what is in flash comes with the guest
		if d.Flash || d.Node != "" && slices.Contains(p.Mirror.Nodes, d.Node) {
			continue
		}
		for i, layer := range d.Layers {
			file := layer.File
			if file != "" && !filepath.IsAbs(file) && layer.Opened != nil {
				file = layer.Opened.Path
			}
			_, chosen := s.Paths[layer.File]
			if _, whole := s.Paths[file]; file == "" || chosen || whole || slices.Contains(l.judged, file) {
				continue
			}
			like, err := launch.Compare(ctx, from.host, from.PID, file, at, file)
			l.judged = append(l.judged, file)
			if err := l.judge(d, file, at, like, err, i > 0 || d.ReadOnly); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// judge is what to do about one image that the destination would open.
func (l *Launched) judge(d facts.Disk, file string, at host.Host, like launch.Likeness, err error, read bool) error {
	const mend = "put it on storage that both hosts have at this path, or give it a file there (a path for %s) and mirror it"
	refuse := func(why string) error {
		return &launch.ArgumentError{Option: "disk", Value: file, Reason: why + ": " + fmt.Sprintf(mend, file), Setting: "Paths"}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("host " + at.Name() + " has no such file")
	case err != nil:
		return fmt.Errorf("compare disk %s with that of host %s: %w", file, at.Name(), err)
	case like == launch.DifferentFile, like == launch.CopiedFile && !read:
		return refuse("that of host " + at.Name() + " is another file than the source's")
	case like == launch.CopiedFile:
		l.Doubts = append(l.Doubts, fmt.Sprintf("disk %s: %s of host %s is another file, of the same size and with the same first bytes: "+
			"see to it that it is a copy", d.Name, file, at.Name()))
	case like == launch.UnknownFile:
		l.Doubts = append(l.Doubts, fmt.Sprintf("disk %s: nothing says that %s of host %s is the source's file, or that it is not: "+
			"look yourself, or mirror it", d.Name, file, at.Name()))
	}
	return nil
}
