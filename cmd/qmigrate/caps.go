package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/connect"
	"qmigrate/engine/endpoint"
	"qmigrate/engine/facts"
	"qmigrate/engine/fit"
	"qmigrate/engine/plan"
	"qmigrate/engine/record/units"
	"qmigrate/engine/report/text"
	"qmigrate/guest"
	"qmigrate/hostnet/host"
	"qmigrate/qmp"
)

func (c *commands) caps() *cli.Command {
	return &cli.Command{
		Name:      "caps",
		Usage:     "what one QEMU, or a pair, can do, and why not",
		ArgsUsage: "E [E]",
		Description: "E is an endpoint, as `qmigrate migrate` takes it, or qemu:VERSION or qemu:PATH: that binary is " +
			"started without a guest and asked.\n" +
			"With two, only what differs is listed, and whether a guest could move from the first to the second.\n\n" +
			"What introspection cannot tell (userfaultfd, KVM's dirty ring, TLS, RDMA) is tried on throw-away QEMUs of the " +
			"same binaries, which are started without a guest and ended; " +
			"a QEMU elsewhere, or one whose binary may not be started here, is not tried.",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "with two: list also what is the same"},
			&cli.BoolFlag{Name: "json", Category: aboutOutput, Usage: "print JSON"},
			&cli.BoolFlag{Name: "no-trial", Usage: "start no throw-away QEMUs"},
			&cli.StringFlag{Name: "machine", Value: "pc-q35-7.2",
				Usage: "`TYPE` machine type of the QEMUs that are started for qemu:"},
			logLevelFlag(),
		}, hostFlags()...),
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
	var all []*facts.Facts
	var trials []*fit.Trial
	thrown := false
	for _, text := range x.Args().Slice() {
		f, bin, own, err := factsOf(x.Context, c.reach(x), text, x.String("machine"),
			plan.Options{Logger: log, Schemas: schemas(), Traces: traces()})
		if err != nil {
			return err
		}
		all, thrown = append(all, f), thrown || own
		if x.Bool("no-trial") {
			bin = binary{why: "not asked for: --no-trial"}
		}
		trial := bin.try(x.Context, f.Accelerator)
		if own { // nobody has touched this one, and it has a machine, which sets some of its defaults
			trial.Defaults = f.Parameters
		}
		trials = append(trials, trial)
	}
	if x.Bool("json") {
		return json.NewEncoder(c.stdout).Encode(capsJSON(all, trials, thrown))
	}
	printCaps(c.stdout, all, trials, x.Bool("all") || len(all) == 1)
	printAbilities(c.stdout, abilities(all, trials))
	printExclusions(c.stdout, fit.Exclusions(all[0], all[len(all)-1]))
	switch {
	case thrown:
	case len(all) == 2:
		refusals, doubts := fit.Compare(all[0], all[1], plan.Plan{})
		printVerdict(c.stdout, refusals, doubts)
	default:
		printConditions(c.stdout, fit.Conditions(all[0], nil, plan.Plan{}))
	}
	return nil
}

// abilities are those of a pair, or of one QEMU to another like it.
func abilities(all []*facts.Facts, trials []*fit.Trial) []fit.Ability {
	last := len(all) - 1
	return fit.Abilities(all[0], all[last], trials[0], trials[last])
}

// binary is a QEMU that can be started here once more, or why not.
type binary struct {
	command []string // the program, and before it what runs it
	env     []string
	why     string
}

// try starts a throw-away; what it does not tell is not tried, and why.
func (p binary) try(ctx context.Context, accelerator string) *fit.Trial {
	if p.why != "" {
		return &fit.Trial{Why: p.why}
	}
	trial, err := connect.Throwaway(ctx, p.command, p.env, accelerator)
	if err != nil {
		return &fit.Trial{Why: err.Error()}
	}
	return trial
}

// programOf is the binary behind an endpoint.
func programOf(e *endpoint.Endpoint, f *facts.Facts) binary {
	proc, err := connect.Behind(e)
	if err == nil && proc.IsQEMU() { // nor does root run a user's program
		err = proc.Startable()
	}
	switch {
	case errors.Is(err, connect.ErrElsewhere):
		return binary{why: f.Name + " is not on this machine, as far as is known"}
	case err != nil:
		return binary{why: err.Error()}
	case !proc.IsQEMU():
		return binary{why: fmt.Sprintf("the process behind %s is no QEMU that can be started here (%s)", f.Name,
			first(proc.Program, "not to be looked at"))}
	}
	return binary{command: proc.Command(), env: proc.Parts()}
}

// factsOf asks an endpoint, or a QEMU that is started for it; own tells which.
func factsOf(ctx context.Context, hosts *host.Pool, text, machine string, o plan.Options) (f *facts.Facts, bin binary,
	own bool, err error) {
	want, own := strings.CutPrefix(text, "qemu:")
	if !own {
		e, err := connect.Parse(text, hosts)
		if err != nil {
			return nil, binary{}, false, usageError{err}
		}
		if f, err = facts.Inspect(ctx, e, o); err != nil {
			return nil, binary{}, false, err
		}
		return f, programOf(e, f), false, nil
	}
	b, err := guest.FindQEMU(ctx, want)
	if err != nil {
		return nil, binary{}, true, err
	}
	dir, err := os.MkdirTemp("", "qmig-caps-")
	if err != nil {
		return nil, binary{}, true, err
	}
	defer os.RemoveAll(dir)
	vm, err := guest.Start(ctx, host.Local(),
		guest.Spec{Name: "caps", QEMU: b.Path, Machine: machine, Memory: 16 << 20, Dir: dir + "/vm", Paused: true})
	if err != nil {
		return nil, binary{}, true, err
	}
	defer vm.Close()
	e := connect.Endpoint(vm)
	e.Name = text
	f, err = facts.Inspect(ctx, e, o)
	return f, binary{command: []string{b.Path}}, true, err
}

// capRow is one capability or parameter over the QEMUs; "" is one that a QEMU does not have.
type capRow struct {
	name   string
	values []string
}

func capRows(all []*facts.Facts, trials []*fit.Trial) (capabilities, parameters []capRow) {
	collect := func(values func(*facts.Facts, *fit.Trial) map[string]string) []capRow {
		names := map[string]bool{}
		each := make([]map[string]string, len(all))
		for i, f := range all {
			each[i] = values(f, trials[i])
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
	capabilities = collect(func(f *facts.Facts, _ *fit.Trial) map[string]string {
		m := map[string]string{}
		for name, on := range f.Capabilities {
			m[name] = map[bool]string{true: "on", false: "off"}[on]
		}
		return m
	})
	parameters = collect(func(f *facts.Facts, t *fit.Trial) map[string]string {
		m := map[string]string{}
		for _, member := range f.Schema.MigrationParameters() {
			legal := t.Ranges[member.Name]
			if len(all) > 1 && len(legal) > longRange {
				legal = ""
			}
			m[member.Name] = parameterText(member, f.Parameters[member.Name], legal)
			value, usual := f.Parameters[member.Name], t.Defaults[member.Name]
			if usual != nil && !reflect.DeepEqual(value, usual) { // 11.1 has a list among them
				m[member.Name] += fmt.Sprintf(", default %v without a machine", usual)
			}
		}
		return m
	})
	return capabilities, parameters
}

// longRange is what a column has no room for beside another one: "a power of two no less than the target page size".
const longRange = 24

// parameterText is the parameter's value if it is set, and its type, with its range where a trial told, or its
// enumeration's members.
func parameterText(m qmp.Member, value any, legal string) string {
	text := m.Type
	if legal != "" {
		text += ", " + legal
	}
	if len(m.Enum) > 0 {
		text = strings.Join(m.Enum, ", ")
	}
	if value != nil && value != "" {
		text = fmt.Sprintf("%v (%s)", value, text)
	}
	return text
}

func printCaps(w io.Writer, all []*facts.Facts, trials []*fit.Trial, everything bool) {
	t := table{Align: "l" + strings.Repeat("l", len(all))}
	line := func(name string, value func(*facts.Facts) string) {
		cells := []string{name}
		for _, f := range all {
			cells = append(cells, value(f))
		}
		t.Row(cells...)
	}
	line("", func(f *facts.Facts) string { return f.Name })
	line("version", func(f *facts.Facts) string { return text.Version(f.Version) })
	line("machine", func(f *facts.Facts) string { return f.Machine })
	line("memory", func(f *facts.Facts) string { return units.FormatSize(f.MemoryBytes) })
	line("vCPUs", func(f *facts.Facts) string { return fmt.Sprint(f.VCPUs) })
	line("accelerator", func(f *facts.Facts) string { return f.Accelerator })
	line("run state", func(f *facts.Facts) string { return f.RunState })
	line("migration", func(f *facts.Facts) string { return first(f.MigrationStatus, "none") })
	line("blocked", func(f *facts.Facts) string {
		return map[bool]string{true: "no", false: "yes, see below"}[len(f.Blockers) == 0]
	})
	capabilities, parameters := capRows(all, trials)
	for _, part := range []struct {
		title string
		rows  []capRow
	}{{"capability", capabilities}, {"parameter", parameters}} {
		same := 0
		t.Row("")
		t.Row(part.title)
		for _, row := range part.rows {
			if len(slices.Compact(slices.Clone(row.values))) == 1 && !everything {
				same++
				continue
			}
			cells := []string{"  " + row.name}
			for _, v := range row.values {
				cells = append(cells, first(v, "(none)"))
			}
			t.Row(cells...)
		}
		if same > 0 {
			t.Row("  (same)", fmt.Sprintf("%d more: --all", same))
		}
	}
	t.Print(w, page(w))
	for _, f := range all {
		for _, reason := range f.Blockers {
			fmt.Fprintf(w, "\n%s\n", fold(f.Name+" cannot migrate: "+reason, 2, page(w)))
		}
	}
}

func printAbilities(w io.Writer, all []fit.Ability) {
	fmt.Fprintln(w)
	t := table{Align: "lll"}
	t.Row("way to migrate", "can", "why")
	for _, a := range all {
		t.Row("  "+a.Name, string(a.Can), a.Why)
	}
	t.Print(w, page(w))
}

func printExclusions(w io.Writer, all []fit.Exclusion) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := table{Align: "ll"}
	t.Row("capability", "does not go with")
	for _, e := range all {
		t.Row("  "+e.Capability, strings.Join(e.With, ", "))
	}
	t.Print(w, page(w))
}

func printVerdict(w io.Writer, refusals, doubts []fit.Mismatch) {
	list := func(title string, all []fit.Mismatch) {
		fmt.Fprintf(w, "\n%s\n", title)
		for _, m := range all {
			fmt.Fprintf(w, "  %s\n", fold(m.Error(), 4, page(w)))
		}
	}
	switch {
	case len(refusals) > 0:
		list("a guest cannot move from the first to the second:", refusals)
	default:
		fmt.Fprintln(w, "\na guest can move from the first to the second")
	}
	if len(doubts) > 0 {
		list("what may matter:", doubts)
	}
}

// printConditions says what a migration does about the state of one QEMU as a source.
func printConditions(w io.Writer, all []fit.Finding) {
	fmt.Fprintln(w, "\nas a source:")
	for _, f := range all {
		fmt.Fprintf(w, "  %s\n", fold(fmt.Sprintf("%s: %s", f.Answer, f.Mismatch), 4, page(w)))
	}
}

// capsJSON is what `caps --json` prints.
// It is one function because it is one document: its keys stand in the order in which they are printed.
func capsJSON(all []*facts.Facts, trials []*fit.Trial, thrown bool) any {
	type parameter struct {
		Type    string   `json:"type"`
		Enum    []string `json:"members,omitempty"`
		Value   any      `json:"value,omitempty"`
		Default any      `json:"default,omitempty"` // of a throw-away
		Range   string   `json:"range,omitempty"`
	}
	type device struct {
		Type string `json:"type"`
		ID   string `json:"id,omitempty"`
		Path string `json:"path"`
	}
	type disk struct {
		Name     string `json:"name"`
		Device   string `json:"device,omitempty"`
		Node     string `json:"node,omitempty"`
		File     string `json:"file,omitempty"`
		Bytes    int64  `json:"size_bytes"`
		ReadOnly bool   `json:"read_only"`
		Direct   bool   `json:"cache_direct"`
	}
	type trial struct {
		Why     string            `json:"not_tried,omitempty"`
		Refused map[string]string `json:"refused,omitempty"` // by what was tried; "" was taken
	}
	type ability struct {
		Name string `json:"name"`
		Can  string `json:"can"` // yes, no, not tried
		Why  string `json:"why,omitempty"`
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
		CPU          string               `json:"cpu"`
		Devices      []device             `json:"devices"`
		Disks        []disk               `json:"disks"`
		Trial        trial                `json:"trial"`
	}
	type condition struct {
		Answer string `json:"answer"` // of a migration: move, warn, wait, refuse
		Text   string `json:"text"`
	}
	out := struct {
		QEMUs      []qemu      `json:"qemus"`
		Conditions []condition `json:"conditions,omitempty"` // of the first QEMU as a source
		Modes      []ability   `json:"modes"`
		Exclude    any         `json:"exclude"` // a capability, and those that it does not go with
		Problems   []string    `json:"problems,omitempty"`
		Doubts     []string    `json:"doubts,omitempty"`
	}{}
	for i, f := range all {
		t := trials[i]
		q := qemu{f.Name, f.Version, f.Machine, f.MemoryBytes, f.VCPUs, f.Accelerator, f.RunState, f.Blockers, f.Capabilities,
			map[string]parameter{}, f.CPU.Type, []device{}, []disk{}, trial{t.Why, t.Refused}}
		for _, m := range f.Schema.MigrationParameters() {
			q.Parameters[m.Name] = parameter{m.Type, m.Enum, f.Parameters[m.Name], t.Defaults[m.Name], t.Ranges[m.Name]}
		}
		for _, d := range f.Devices {
			q.Devices = append(q.Devices, device{d.Type, d.ID, d.Path})
		}
		for _, d := range f.Disks {
			q.Disks = append(q.Disks, disk{d.Name, d.Device, d.Node, d.File, d.Bytes, d.ReadOnly, d.Direct})
		}
		out.QEMUs = append(out.QEMUs, q)
	}
	exclude := map[string][]string{}
	for _, e := range fit.Exclusions(all[0], all[len(all)-1]) {
		exclude[e.Capability] = e.With
	}
	out.Exclude = exclude
	for _, a := range abilities(all, trials) {
		out.Modes = append(out.Modes, ability{a.Name, string(a.Can), a.Why})
	}
	if !thrown {
		var dst *facts.Facts
		if len(all) == 2 {
			dst = all[1]
		}
		for _, f := range fit.Conditions(all[0], dst, plan.Plan{}) {
			out.Conditions = append(out.Conditions, condition{string(f.Answer), f.Error()})
		}
	}
	if len(all) == 2 && !thrown {
		refusals, doubts := fit.Compare(all[0], all[1], plan.Plan{})
		for _, m := range refusals {
			out.Problems = append(out.Problems, m.Error())
		}
		for _, m := range doubts {
			out.Doubts = append(out.Doubts, m.Error())
		}
	}
	return out
}
