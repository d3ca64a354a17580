package fit

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/qmp"
)

// Ability is one way to migrate, and whether a pair of QEMUs can go it.
type Ability struct {
	Name string
	Can  Verdict
	Why  string // in one line: why not, or on what it rests
}

// Verdict is yes, no, or unknown for want of a trial.
type Verdict string

const (
	Yes      Verdict = "yes"
	No       Verdict = "no"
	NotTried Verdict = "not tried"
)

// transport leads to the names of the transports, in the arguments of migrate.
const transport = "channels.addr.transport"

// end is one side of a pair as its abilities are judged.
type end struct {
	name  string
	facts *facts.Facts
	trial *Trial
}

// versions says since when QEMU has a capability, and until when it had it.
var versions = map[string]string{
	"switchover-ack": "8.1 and later have it", "dirty-limit": "8.1 and later have it", "mapped-ram": "9.0 and later have it", "compress": "it is gone since 9.1",
	"background-snapshot": "6.0 and later have it", "postcopy-preempt": "7.1 and later have it", "zero-copy-send": "7.1 and later have it, on Linux",
}

// judge collects what one way needs; the first thing that is missing decides.
type judge struct {
	can      Verdict
	why      string
	nothing  bool   // a trial was wanted and there was none
	untested string // and why
}

func (j *judge) no(format string, args ...any) {
	if j.can != No {
		j.can, j.why = No, fmt.Sprintf(format, args...)
	}
}

// capability needs one on each of the ends given.
func (j *judge) capability(name string, ends ...end) {
	for _, e := range ends {
		if _, ok := e.facts.Capabilities[name]; !ok {
			text := fmt.Sprintf("%s has no capability %s", e.name, name)
			if v := versions[name]; v != "" {
				text += ": " + v
			}
			j.no("%s", text)
		}
	}
}

// trial needs an attempt that a throw-away took.
func (j *judge) trial(attempt string, ends ...end) {
	for _, e := range ends {
		switch refusal, tried := e.trial.said(attempt); {
		case !tried:
			j.nothing = true
			if e.trial != nil && e.trial.Why != "" && j.untested == "" {
				j.untested = e.trial.Why
			}
		case refusal != "":
			j.no("%s refuses: %s", e.name, refusal)
		}
	}
}

// command needs the commands on each end.
func (j *judge) command(e end, names ...string) {
	for _, name := range names {
		if e.facts.Schema != nil && !e.facts.Schema.HasCommand(name) {
			j.no("%s has no command %s", e.name, name)
		}
	}
}

// rules needs a plan that Rules does not refuse for this pair.
func (j *judge) rules(src, dst *facts.Facts, p plan.Plan) {
	for _, m := range Rules(src, dst, p) {
		j.no("%s", m.Problem)
	}
}

// ability is the verdict; why is what to say when all is there.
func (j *judge) ability(name, why string) Ability {
	switch {
	case j.can == No:
		return Ability{name, No, j.why}
	case j.nothing:
		if j.untested == "" {
			j.untested = "introspection has it; whether host and build can was not tried"
		}
		return Ability{name, NotTried, j.untested}
	}
	return Ability{name, Yes, why}
}

// Abilities says which ways to migrate a pair can go, and why not: by introspection, and by what throw-away QEMUs of
// the same binaries said where that cannot tell. The same QEMU may be given twice. What keeps this very guest from
// moving at all is Compare's. It is one function because it is a table.
func Abilities(src, dst *facts.Facts, srcTrial, dstTrial *Trial) []Ability {
	a, b := end{"source " + src.Name, src, srcTrial}, end{"destination " + dst.Name, dst, dstTrial}
	if src == dst {
		a.name, b.name = src.Name, dst.Name
	}
	var all []Ability
	add := func(name, why string, needs func(j *judge)) {
		j := &judge{}
		needs(j)
		if capabilities := rulesOf[name]; j.can != No && capabilities != nil {
			// The cache can be made to fit any guest: that is no matter of the pair.
			p := plan.Plan{Capabilities: map[string]bool{}, Parameters: map[string]string{"xbzrle-cache-size": "4096"}}
			for _, c := range capabilities {
				p.Capabilities[c] = true
			}
			if p.Capabilities["mapped-ram"] {
				p.Listen, p.Connect = "file:f", "file:f"
			}
			j.rules(src, dst, p)
		}
		all = append(all, j.ability(name, why))
	}
	lossy := ""
	if src.Accelerator == "tcg" && src.Before(9, 0) {
		lossy = "but under TCG before 9.0 dirty pages are lost if RAM is a multiple of 256 KiB"
	}
	add("pre-copy", lossy, func(j *judge) { j.command(a, "migrate"); j.command(b, "migrate-incoming") })
	add("stop-and-copy", "", func(j *judge) { j.command(a, "migrate", "stop"); j.command(b, "migrate-incoming") })
	postCopy := func(j *judge) {
		j.capability("postcopy-ram", a, b)
		j.trial("postcopy-ram", b)
		comparePages(src, dst, func(problem, _ string) { j.no("%s", problem) })
	}
	add("post-copy", "the destination's host has userfaultfd", postCopy)
	add("hybrid", lossy, postCopy)
	add("post-copy preempt", "", func(j *judge) {
		postCopy(j)
		j.capability("postcopy-preempt", a,
			b)
		j.trial("postcopy-preempt", b)
	})
	add("post-copy recovery", "migrate-pause and migrate-recover, out of band", func(j *judge) {
		postCopy(j)
		j.command(a, "migrate-pause")
		j.command(b, "migrate-pause", "migrate-recover")
	})
	add("auto-converge", "", func(j *judge) { j.capability("auto-converge", a) })
	add("dirty-limit", "", func(j *judge) {
		j.capability("dirty-limit", a)
		j.trial("dirty-limit", a)
	})
	add("xbzrle", "", func(j *judge) { j.capability("xbzrle", a, b) })
	add("compress", "", func(j *judge) { j.capability("compress", a, b) })
	add("multifd", "as many channels on both sides",
		func(j *judge) { j.capability("multifd", a, b); j.trial("multifd", a, b) })
	for _, method := range compressions(src, dst) {
		add("multifd "+method, "", func(j *judge) {
			j.capability("multifd", a, b)
			for _, e := range []end{a, b} {
				if e.facts.Schema != nil && !slices.Contains(compressions(e.facts), method) {
					j.no("%s has no multifd-compression %s", e.name, method)
				}
			}
		})
	}
	add("multifd and post-copy", "", func(j *judge) {
		postCopy(j)
		j.capability("multifd", a, b)
		for _, e := range []end{a, b} {
			if e.facts.Before(10, 0) {
				j.no("%s takes both, and then the destination aborts and the guest is lost; 10.1 and later can", e.name)
			}
		}
		j.trial("multifd+postcopy-ram", a, b)
	})
	add("zero-copy", "needs multifd without compression and TLS, and RLIMIT_MEMLOCK for what is in flight",
		func(j *judge) {
			j.capability("zero-copy-send", a)
			j.capability("multifd", a, b)
			j.trial("zero-copy-send", a)
		})
	add("switchover-ack", "", func(j *judge) { j.capability("switchover-ack", a, b) })
	add("TLS", "by tls-creds-psk or -x509 on both sides",
		func(j *judge) { j.trial("tls-creds-psk", a, b); j.trial("tls-creds-x509", a, b) })
	add("mirror", "blockdev-mirror to an NBD server on the destination, for storage that is not shared", func(j *judge) {
		j.command(a, "blockdev-add", "blockdev-mirror")
		j.command(b, "nbd-server-start", "block-export-add")
	})
	add("colo", seenOfCOLO(dst), func(j *judge) {
		j.capability("x-colo", a, b)
		j.command(a, "x-colo-lost-heartbeat")
		j.command(b, "x-colo-lost-heartbeat", "nbd-server-start")
		switch {
		case strings.HasPrefix(src.Machine, "pc-q35"):
			j.no("%s has a q35 machine, on which the secondary aborts at the first checkpoint: machine pc can", a.name)
		case !src.Before(11, 1):
			j.no("%s has another COLO than mode colo goes by (seen on 11.1.3): a 7.2 can be the primary", a.name)
		case !dst.Before(11, 1):
			j.no("%s has another COLO than mode colo goes by (seen on 11.1.3): a 7.2 or 10.0 can be the secondary", b.name)
		case src.Major == 10 && src.Minor == 0:
			j.no("%s cannot be the primary: 10.0.2 completes its migration instead of entering COLO; it can be the secondary of a 7.2", a.name)
		case !src.Before(10, 1):
			j.nothing, j.untested = true, "10.0.2 cannot be the primary; whether this one can, `demo --mode colo` tries "+
				"before anything else"
		}
		j.trial("x-colo", a, b)
	})
	add("background-snapshot", "the source's host has userfaultfd with write protection", func(j *judge) {
		j.capability("background-snapshot", a)
		j.trial("background-snapshot", a)
	})
	mappable := func(j *judge) {
		for _, e := range []end{a, b} {
			if e.facts.Schema != nil && !slices.Contains(e.facts.Schema.Enum("migrate", transport), "file") {
				j.no("%s has no file: transport: 8.2 and later have it", e.name)
			}
		}
	}
	by, direct := "file:PATH", new(judge)
	if mappable(direct); direct.can == No {
		by = "exec: with cat, for " + direct.why
	}
	add("file", "to a file, and from it, by "+by,
		func(j *judge) { j.command(a, "migrate", "stop"); j.command(b, "migrate-incoming") })
	add("mapped-ram", "each page at its own place in the file",
		func(j *judge) { mappable(j); j.capability("mapped-ram", a, b); j.trial("mapped-ram", a, b) })
	add("transport tcp, unix, fd, exec", "", func(j *judge) { j.command(a, "migrate"); j.command(b, "migrate-incoming") })
	add("transport rdma", "", func(j *judge) { j.trial("rdma", a, b) })
	add("migrate by channels", "the channels form of migrate and migrate-incoming", func(j *judge) {
		for _, e := range []end{a, b} {
			if e.facts.Schema != nil && !slices.ContainsFunc(e.facts.Schema.Arguments("migrate"),
				func(m qmp.Member) bool { return m.Name == "channels" }) {
				j.no("%s has no channels form: 8.2 and later have it", e.name)
			}
		}
	})
	return all
}

// compressions are the multifd compressions that any of the QEMUs knows, but for none.
func compressions(all ...*facts.Facts) (names []string) {
	for _, f := range all {
		if f.Schema == nil {
			continue
		}
		for _, m := range f.Schema.MigrationParameters() {
			if m.Name != "multifd-compression" {
				continue
			}
			for _, name := range m.Enum {
				if name != "none" && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	return names
}

// seenOfCOLO is what was seen of COLO, which introspection does not tell.
func seenOfCOLO(dst *facts.Facts) string {
	if !dst.Before(10, 0) {
		return "either side may die; after a failover the guest is on a QEMU that was not seen to be a primary (10.0.2 cannot)"
	}
	return "either side may die, and be replaced (seen on 7.2)"
}

// rulesOf are the capabilities that a way to migrate needs together, by which Rules judges it.
var rulesOf = map[string][]string{
	"post-copy": {"postcopy-ram"}, "hybrid": {"postcopy-ram"}, "post-copy preempt": {"postcopy-ram",
		"postcopy-preempt"}, "dirty-limit": {"dirty-limit"}, "xbzrle": {"xbzrle"}, "compress": {"compress"},
	"multifd": {"multifd"}, "multifd and post-copy": {"multifd", "postcopy-ram"}, "zero-copy": {"multifd",
		"zero-copy-send"}, "switchover-ack": {"return-path", "switchover-ack"},
	"background-snapshot": {"background-snapshot"}, "mapped-ram": {"mapped-ram"},
}

// Exclusion is a capability and those that it does not go together with.
type Exclusion struct {
	Capability string
	With       []string
}

// Exclusions are the capabilities of a pair of which Rules refuses two together, though neither by itself. Each pair is
// there once.
func Exclusions(src, dst *facts.Facts) (all []Exclusion) {
	problems := func(names ...string) map[string]bool {
		p, found := plan.Plan{Capabilities: map[string]bool{}, AllowUnsafe: true}, map[string]bool{}
		for _, name := range names {
			p.Capabilities[name] = true
		}
		for _, m := range Rules(src, dst, p) {
			found[m.Problem] = true
		}
		return found
	}
	var names []string
	alone := map[string]map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(src.Capabilities)) {
		if _, both := dst.Capabilities[name]; both {
			names = append(names, name)
			alone[name] = problems(name)
		}
	}
	for i, a := range names {
		e := Exclusion{Capability: a}
		for _, b := range names[i+1:] {
			for problem := range problems(a, b) {
				if !alone[a][problem] && !alone[b][problem] {
					e.With = append(e.With, b)
					break
				}
			}
		}
		if len(e.With) > 0 {
			all = append(all, e)
		}
	}
	return all
}
