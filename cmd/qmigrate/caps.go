package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine"
	"qmigrate/engine/lab"
	"qmigrate/engine/record/units"
	"qmigrate/guest"
	"qmigrate/hostnet"
	"qmigrate/qmp"
)

func (c *commands) caps() *cli.Command {
	return &cli.Command{
		Name:      "caps",
		Usage:     "what one QEMU, or a pair, can do, and why not",
		ArgsUsage: "E [E]",
		Description: "E is an endpoint, as `qmigrate migrate` takes it, or qemu:VERSION or qemu:PATH: that binary is started without a guest and asked.\n" +
			"With two, only what differs is listed, and whether a guest could move from the first to the second.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "with two: list also what is the same"},
			&cli.BoolFlag{Name: "json", Category: aboutOutput, Usage: "print JSON"},
			&cli.StringFlag{Name: "machine", Value: "pc-q35-7.2", Usage: "`TYPE` machine type of the QEMUs that are started for qemu:"},
			logLevelFlag(),
		},
		Action: c.runCaps,
	}
}

func (c *commands) runCaps(x *cli.Context) error {
	if n := x.Args().Len(); n < 1 || n > 2 {
		return usagef("caps takes one or two endpoints, found %d: as in `qmigrate caps qemu:7.2 qemu:10.0`", n)
	}
	log, err := c.logger(x)
	if err != nil {
		return err
	}
	var all []*engine.Facts
	thrown := false
	for _, text := range x.Args().Slice() {
		f, own, err := facts(x.Context, text, x.String("machine"), engine.Options{Logger: log, Schemas: schemas()})
		if err != nil {
			return err
		}
		all, thrown = append(all, f), thrown || own
	}
	if x.Bool("json") {
		return json.NewEncoder(c.stdout).Encode(capsJSON(all, thrown))
	}
	printCaps(c.stdout, all, x.Bool("all") || len(all) == 1)
	if len(all) == 2 && !thrown {
		printVerdict(c.stdout, engine.Compare(all[0], all[1]))
	}
	return nil
}

// facts asks an endpoint, or a QEMU that is started for it; own tells which.
func facts(ctx context.Context, text, machine string, o engine.Options) (f *engine.Facts, own bool, err error) {
	want, own := strings.CutPrefix(text, "qemu:")
	if !own {
		e, err := parseEndpoint(text)
		if err != nil {
			return nil, false, err
		}
		f, err = engine.Inspect(ctx, e, o)
		return f, false, err
	}
	b, err := guest.FindQEMU(ctx, want)
	if err != nil {
		return nil, true, err
	}
	dir, err := os.MkdirTemp("", "qmig-caps-")
	if err != nil {
		return nil, true, err
	}
	defer os.RemoveAll(dir)
	vm, err := guest.Start(ctx, hostnet.Local(), guest.Spec{Name: "caps", QEMU: b.Path, Machine: machine, Memory: 16 << 20, Dir: dir + "/vm", Paused: true})
	if err != nil {
		return nil, true, err
	}
	defer vm.Close()
	e := lab.Endpoint(vm)
	e.Name = text
	f, err = engine.Inspect(ctx, e, o)
	return f, true, err
}

// capRow is one capability or parameter over the QEMUs; "" is one that a QEMU does not have.
type capRow struct {
	name   string
	values []string
}

func capRows(all []*engine.Facts) (capabilities, parameters []capRow) {
	collect := func(values func(*engine.Facts) map[string]string) []capRow {
		names := map[string]bool{}
		each := make([]map[string]string, len(all))
		for i, f := range all {
			each[i] = values(f)
			for name := range each[i] {
				names[name] = true
			}
		}
		var rows []capRow
		for _, name := range slices.Sorted(maps.Keys(names)) {
			row := capRow{name: name}
			for i := range all {
				row.values = append(row.values, each[i][name])
			}
			rows = append(rows, row)
		}
		return rows
	}
	capabilities = collect(func(f *engine.Facts) map[string]string {
		m := map[string]string{}
		for name, on := range f.Capabilities {
			m[name] = map[bool]string{true: "on", false: "off"}[on]
		}
		return m
	})
	parameters = collect(func(f *engine.Facts) map[string]string {
		m := map[string]string{}
		for _, member := range f.Schema.MigrationParameters() {
			m[member.Name] = parameterText(member, f.Parameters[member.Name])
		}
		return m
	})
	return capabilities, parameters
}

// parameterText is the parameter's value if it is set, and its type or its enumeration's members.
func parameterText(m qmp.Member, value any) string {
	text := m.Type
	if len(m.Enum) > 0 {
		text = strings.Join(m.Enum, "|")
	}
	if value != nil && value != "" {
		text = fmt.Sprintf("%v (%s)", value, text)
	}
	return text
}

func printCaps(w io.Writer, all []*engine.Facts, everything bool) {
	t := table{align: "l" + strings.Repeat("l", len(all))}
	line := func(name string, value func(*engine.Facts) string) {
		cells := []string{name}
		for _, f := range all {
			cells = append(cells, value(f))
		}
		t.row(cells...)
	}
	line("", func(f *engine.Facts) string { return f.Name })
	line("version", func(f *engine.Facts) string { return shortVersion(f.Version) })
	line("machine", func(f *engine.Facts) string { return f.Machine })
	line("memory", func(f *engine.Facts) string { return units.FormatSize(f.MemoryBytes) })
	line("vCPUs", func(f *engine.Facts) string { return fmt.Sprint(f.VCPUs) })
	line("accelerator", func(f *engine.Facts) string { return f.Accelerator })
	line("run state", func(f *engine.Facts) string { return f.RunState })
	line("migration", func(f *engine.Facts) string { return first(f.MigrationStatus, "none") })
	line("blocked", func(f *engine.Facts) string {
		return map[bool]string{true: "no", false: "yes, see below"}[len(f.Blockers) == 0]
	})
	capabilities, parameters := capRows(all)
	for _, part := range []struct {
		title string
		rows  []capRow
	}{{"capability", capabilities}, {"parameter", parameters}} {
		same := 0
		t.row("")
		t.row(part.title)
		for _, row := range part.rows {
			if len(slices.Compact(slices.Clone(row.values))) == 1 && !everything {
				same++
				continue
			}
			cells := []string{"  " + row.name}
			for _, v := range row.values {
				cells = append(cells, first(v, "(none)"))
			}
			t.row(cells...)
		}
		if same > 0 {
			t.row("  (same)", fmt.Sprintf("%d more: --all", same))
		}
	}
	t.print(w)
	for _, f := range all {
		for _, reason := range f.Blockers {
			fmt.Fprintf(w, "\n%s\n", fold(f.Name+" cannot migrate: "+reason, 2, page(w)))
		}
	}
}

func printVerdict(w io.Writer, all []engine.Mismatch) {
	if len(all) == 0 {
		fmt.Fprintln(w, "\na guest can move from the first to the second")
		return
	}
	fmt.Fprintln(w, "\na guest cannot move from the first to the second:")
	for _, m := range all {
		fmt.Fprintf(w, "  %s\n", fold(m.Error(), 4, page(w)))
	}
}

// capsJSON is what `caps --json` prints.
func capsJSON(all []*engine.Facts, thrown bool) any {
	type parameter struct {
		Type  string   `json:"type"`
		Enum  []string `json:"members,omitempty"`
		Value any      `json:"value,omitempty"`
	}
	type qemu struct {
		Name         string               `json:"name"`
		Version      string               `json:"version"`
		Machine      string               `json:"machine"`
		MemoryBytes  int64                `json:"memory_bytes"`
		VCPUs        int                  `json:"vcpus"`
		Accelerator  string               `json:"accelerator"`
		RunState     string               `json:"run_state"`
		Blockers     []string             `json:"blockers"`
		Capabilities map[string]bool      `json:"capabilities"`
		Parameters   map[string]parameter `json:"parameters"`
	}
	out := struct {
		QEMUs    []qemu   `json:"qemus"`
		Problems []string `json:"problems,omitempty"`
	}{}
	for _, f := range all {
		q := qemu{f.Name, f.Version, f.Machine, f.MemoryBytes, f.VCPUs, f.Accelerator, f.RunState, f.Blockers, f.Capabilities, map[string]parameter{}}
		for _, m := range f.Schema.MigrationParameters() {
			q.Parameters[m.Name] = parameter{m.Type, m.Enum, f.Parameters[m.Name]}
		}
		out.QEMUs = append(out.QEMUs, q)
	}
	if len(all) == 2 && !thrown {
		for _, m := range engine.Compare(all[0], all[1]) {
			out.Problems = append(out.Problems, m.Error())
		}
	}
	return out
}
