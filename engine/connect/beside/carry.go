package beside

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/qmp"
)

// carryOver gives a destination that was started from its source's command line what the source's monitor was told
// since: the media in the drives, the limits of the disks and the thresholds at which they report. The destination
// waits for its guest, and the source is only asked. said is what was carried over. missing is what QEMU does not let
// be read or set, each in one line.
func carryOver(ctx context.Context, src, dst *endpoint.Endpoint, o plan.Options) (said, missing []string, err error) {
	a, err := src.Talk(ctx, src.Control, "", qmp.Options{Logger: o.Logger})
	if err != nil {
		return nil, nil, err
	}
	defer a.Close()
	b, err := dst.Talk(ctx, dst.Control, "", qmp.Options{Logger: o.Logger})
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(ctx, facts.ReadLimit)
	defer cancel()
	here, err := readRunTime(ctx, a)
	if err != nil {
		return nil, nil, fmt.Errorf("ask source %s: %w", src.Name, err)
	}
	there, err := readRunTime(ctx, b)
	if err != nil {
		return nil, nil, fmt.Errorf("ask destination %s: %w", dst.Name, err)
	}
	facts.ReadOpened(src, here.disks)
	facts.ReadOpened(dst, there.disks)
	todo, missing := here.carry(there)
	for _, t := range todo {
		if err := b.Execute(ctx, t.command, t.arguments, nil); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", t.what, err))
			continue
		}
		said = append(said, t.what)
	}
	return said, missing, nil
}

// runTime is what a QEMU may have been told by its monitor since it started.
type runTime struct {
	disks    []facts.Disk
	objects  map[string]string // user's objects: id and type
	chardevs []string          // labels
	netdevs  map[string]string // name and type
	locked   []string          // displays whose password was given to the monitor or on the command line: "VNC"
}

func readRunTime(ctx context.Context, c *qmp.Conn) (r runTime, err error) {
	var blocks []qmp.BlockDevice
	var devices []facts.Device
	err = facts.Together(ctx, func(ctx context.Context) (err error) {
		blocks, err = c.BlockDevices(ctx)
		return facts.Optional(err)
	}, func(ctx context.Context) error {
		tree, err := c.HumanMonitor(ctx, "info qtree")
		devices = facts.ParseDevices(tree)
		return facts.Optional(err)
	}, func(ctx context.Context) error {
		var all []struct {
			Name string `json:"name"`
			Type string `json:"type"`
		}
		err := c.Execute(ctx, "qom-list", map[string]string{"path": "/objects"}, &all)
		r.objects = map[string]string{}
		for _, o := range all {
			kind, ok := strings.CutPrefix(o.Type, "child<")
			if ok {
				r.objects[o.Name] = strings.TrimSuffix(kind, ">")
			}
		}
		return facts.Optional(err)
	}, func(ctx context.Context) error {
		var all []struct {
			Label string `json:"label"`
		}
		err := c.Execute(ctx, "query-chardev", nil, &all)
		for _, d := range all {
			r.chardevs = append(r.chardevs, d.Label)
		}
		return facts.Optional(err)
	}, func(ctx context.Context) error {
		text, err := c.HumanMonitor(ctx, "info network")
		r.netdevs, _ = facts.ParseNetdevs(text)
		return facts.Optional(err)
	}, func(ctx context.Context) error {
		var vnc, spice struct {
			Auth string `json:"auth"`
		}
		if err := c.Execute(ctx, "query-vnc", nil, &vnc); facts.Optional(err) != nil {
			return err
		}
		if vnc.Auth == "vnc" || strings.HasSuffix(vnc.Auth, "+vnc") {
			r.locked = append(r.locked, "VNC")
		}
		if err := c.Execute(ctx, "query-spice", nil, &spice); facts.Optional(err) != nil {
			return err
		}
		if spice.Auth == "spice" {
			r.locked = append(r.locked, "SPICE")
		}
		return nil
	})
	r.disks = facts.DisksOf(blocks, devices)
	return r, err
}

// task is a command that carries something over.
type task struct {
	what      string
	command   string
	arguments any
}

// carry says what a destination has to be told to be as the source is, and what it cannot be told.
func (r runTime) carry(there runTime) (todo []task, missing []string) {
	byDevice := map[string]facts.Disk{}
	for _, e := range there.disks {
		byDevice[e.Device] = e
		if e.QOM != "" {
			byDevice[e.QOM] = e
		}
	}
	for _, d := range r.disks {
		e, ok := byDevice[d.Device]
		if !ok || d.Device == "" {
			e, ok = byDevice[d.QOM]
		}
		id := cmp.Or(e.QOM, d.QOM) // a device without a drive is in no answer to query-block
		if !ok && !d.Removable || id == "" {
			continue
		}
		name := cmp.Or(d.Name, d.QOM)
		if d.Removable {
			todo = append(todo, medium(name, id, d, e)...)
		}
		if d.Throttle != e.Throttle && d.Node != "" {
			limits := struct {
				ID string `json:"id"`
				qmp.Throttle
			}{id, d.Throttle}
			what := "disk " + name + ": its limits of bytes and requests a second"
			todo = append(todo, task{what, "block_set_io_throttle", limits})
		}
		if d.Threshold != e.Threshold && e.Node != "" {
			what := fmt.Sprintf("disk %s: it reports writes behind byte %d", name, d.Threshold)
			todo = append(todo, task{what, "block-set-write-threshold",
				map[string]any{"node-name": e.Node, "write-threshold": d.Threshold}})
		}
	}
	gone := func(what string, ids []string, mend string) {
		if len(ids) > 0 {
			missing = append(missing, fmt.Sprintf("%s that the source was given while it ran, and the destination lacks: %s: %s",
				what, strings.Join(ids, ", "), mend))
		}
	}
	lacks := func(a, b map[string]string) (ids []string) {
		for _, id := range slices.Sorted(maps.Keys(a)) {
			if _, ok := b[id]; !ok && !strings.HasPrefix(id, "#") {
				ids = append(ids, a[id]+" "+id)
			}
		}
		return ids
	}
	objects := maps.Clone(r.objects)
	maps.DeleteFunc(objects, func(_, kind string) bool {
		return strings.HasPrefix(kind, "monitor-") || strings.HasPrefix(kind, "tls-creds")
	})
	gone("objects", lacks(objects, there.objects), "make them there too (object-add) if something is to use them")
	gone("network backends", lacks(r.netdevs, there.netdevs),
		"make them there too (netdev_add) if a device is to use them")
	chardevs := slices.DeleteFunc(slices.Clone(r.chardevs), func(label string) bool {
		return strings.HasPrefix(label, "qmigrate-") || strings.HasPrefix(label, "compat_monitor") ||
			slices.Contains(there.chardevs, label)
	})
	gone("character devices", chardevs, "make them there too (chardev-add) if a device is to use them")
	for _, what := range there.locked {
		missing = append(missing, what+": a password that was given to the source's monitor cannot be read: "+
			"set it there too (set_password)")
	}
	return todo, missing
}

// medium puts into a drive what the source has in its own.
func medium(name, id string, d, e facts.Disk) []task {
	switch {
	case d.Node == "" && e.Node == "":
		return nil
	case d.Node == "":
		return []task{{fmt.Sprintf("disk %s: it is empty", name), "eject", map[string]any{"id": id, "force": true}}}
	case len(d.Layers) == 0:
		return nil
	case len(e.Layers) > 0 && fit.Alike(d.Layers[0], e.Layers[0], true) <= fit.Namesake &&
		d.Layers[0].ImageFormat() == e.Layers[0].ImageFormat():
		return nil
	}
	file := d.Layers[0].File
	if file != "" && !filepath.IsAbs(file) && d.Layers[0].Opened != nil {
		file = d.Layers[0].Opened.Path
	}
	mode := "retain"
	if d.ReadOnly {
		mode = "read-only"
	}
	return []task{{fmt.Sprintf("disk %s: %s is in it", name, cmp.Or(file, d.File)), "blockdev-change-medium",
		map[string]any{"id": id, "filename": cmp.Or(file, d.File), "format": d.Layers[0].ImageFormat(),
			"read-only-mode": mode}}}
}
