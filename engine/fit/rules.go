package fit

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
)

// Rules says everything in a plan that this pair of QEMUs refuses, accepts and then fails with, or accepts and does not
// do: each with its reason and its mend. It asks nobody and changes nothing. What it cannot see is tried by QEMU itself
// when the capabilities are set: whether the host has userfaultfd for post-copy, and KVM its dirty ring. dst is nil
// where there is none, as when a guest is saved into a file.
//
// Sources: QEMU's migration/options.c (7.2: migration.c), migrate_caps_check and migrate_params_check;
// migration/migration.c, migration_channels_and_transport_compatible; read in 7.2 and 10.0.2. Where a QEMU does worse
// than to refuse, the rule says what was seen.
func Rules(src, dst *facts.Facts, p plan.Plan) []Mismatch {
	c := combination{p.WithDefaults(), src, dst}
	var all []Mismatch
	for _, r := range ruleTable() {
		if problem := r.broken(&c); problem != "" {
			all = append(all, Mismatch{Problem: problem, Mend: r.mend, About: r.about})
		}
	}
	return append(all, c.ranges()...)
}

// rule is one line of the table.
type rule struct {
	broken func(*combination) string // in what way the combination breaks it; "": it does not
	mend   string
	about  []string // the settings that may break it, first the one that most likely is to be changed
}

// capability and parameter are the settings behind a capability that is on and behind a parameter's value. Modes and
// policies switch capabilities on, and so does TLS with parameters.
func capability() []string { return []string{"capability", "mode", "policy"} }
func parameter() []string  { return []string{"parameter", "capability", "tls"} }

// combination is a plan and the two QEMUs that it is for.
type combination struct {
	plan     plan.Plan
	src, dst *facts.Facts
}

// on tells whether the capability will be on: configure switches off every one that the plan does not name.
func (c *combination) on(name string) bool {
	return c.plan.Capabilities[name] || name == "postcopy-ram" &&
		(c.plan.Mode == record.PostCopyMode || c.plan.Mode == record.HybridMode)
}

// param is a parameter's value as it will be on one side: the plan's, or what that QEMU has now. "" if it has none.
func (c *combination) param(f *facts.Facts, name string) string {
	if v, ok := c.plan.Parameters[name]; ok {
		return v
	}
	if f == nil || f.Parameters[name] == nil {
		return ""
	}
	return fmt.Sprint(f.Parameters[name])
}

// number is a parameter's value on the source; 0 if it has none.
func (c *combination) number(name string) int64 {
	n, _ := strconv.ParseInt(c.param(c.src, name), 10, 64)
	return n
}

// either tells whether test holds for one of the QEMUs.
func (c *combination) either(test func(*facts.Facts) bool) bool {
	return test(c.src) || c.dst != nil && test(c.dst)
}

// older is the first QEMU that is older than major.minor, by name and version; "" if neither is.
func (c *combination) older(major, minor int) string {
	for _, f := range []*facts.Facts{c.src, c.dst} {
		if f != nil && f.Before(major, minor) {
			return fmt.Sprintf("%s is %s", f.Name, f.Version)
		}
	}
	return ""
}

// transports are the kinds of the plan's addresses: tcp, unix, fd, exec, file.
func (c *combination) transports() []string {
	var kinds []string
	for _, uri := range []string{c.plan.Listen, c.plan.Connect} {
		if kind, _, ok := strings.Cut(uri, ":"); ok && !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// without is the first transport that is none of those given.
func (c *combination) without(kinds ...string) string {
	for _, kind := range c.transports() {
		if !slices.Contains(kinds, kind) {
			return kind
		}
	}
	return ""
}

// both is a rule that two capabilities exclude each other.
func both(a, b, why, mend string) rule {
	return rule{func(c *combination) string {
		if c.on(a) && c.on(b) {
			return fmt.Sprintf("%s and %s exclude each other: %s", a, b, why)
		}
		return ""
	}, mend, capability()}
}

// needs is a rule that a capability does not go without another one.
func needs(a, b, why string) rule {
	return rule{func(c *combination) string {
		if c.on(a) && !c.on(b) {
			return fmt.Sprintf("capability %s needs %s: %s", a, b, why)
		}
		return ""
	}, fmt.Sprintf("give capability %s=on too, or leave %s out", b, a), capability()}
}

// ruleTable is the table. One rule is one fact; a new QEMU's facts are added here and nowhere else. It is one function
// because it is a table.
func ruleTable() []rule {
	rules := []rule{
		// Post-copy.
		both("postcopy-ram", "x-ignore-shared", "QEMU refuses it", "leave x-ignore-shared out"),
		{func(c *combination) string {
			// 7.2 accepts it, then the destination aborts in yank after the switch and the guest is gone (seen); 10.0 refuses
			// it.
			if c.on("postcopy-ram") && c.on("multifd") {
				if old := c.older(10, 1); old != "" {
					return fmt.Sprintf("post-copy with multifd needs QEMU 10.1 on both sides, and %s: one before 10.0 accepts it "+
						"and loses the guest", old)
				}
			}
			return ""
		}, "leave multifd out, or use a newer QEMU", capability()},
		needs("postcopy-preempt", "postcopy-ram", "it is a channel of post-copy's"),
		both("postcopy-preempt", "compress", "compression threads put pages out of order", "leave one of them out"),

		// What becomes of a page on its way.
		both("multifd", "compress", "multifd compresses by itself",
			"leave compress out and give parameter multifd-compression=zlib"),
		both("multifd", "xbzrle", "multifd takes each page before xbzrle sees it, and newer QEMUs refuse the two",
			"leave one of them out"),
		{func(c *combination) string {
			if c.on("compress") && c.on("xbzrle") && c.either(func(f *facts.Facts) bool { return !f.Before(8, 0) }) {
				return "compress and xbzrle exclude each other: QEMU refuses it"
			}
			return ""
		}, "leave one of them out", capability()},
		{func(c *combination) string {
			method, set := c.plan.Parameters["multifd-compression"]
			if set && method != "none" && !c.on("multifd") {
				return fmt.Sprintf("multifd-compression=%s compresses nothing without multifd", method)
			}
			return ""
		}, "give capability multifd=on too", parameter()},
		{func(c *combination) string { return c.cacheSize() }, "give parameter xbzrle-cache-size=BYTES, such as 67108864",
			parameter()},
		// The page header of 9.0 says which pages are zero; an older destination takes it for page data.
		{func(c *combination) string {
			if c.dst == nil || !c.on("multifd") || c.param(c.src, "zero-page-detection") != "multifd" ||
				c.param(c.dst, "zero-page-detection") != "" {
				return ""
			}
			return fmt.Sprintf("source %s leaves zero pages to the multifd channels, which destination %s (QEMU %s) does not understand", c.src.Name, c.dst.Name, c.dst.Version)
		}, "set zero-page-detection to legacy on the source by `migrate-set-parameters`, or use QEMU >= 9.0 on both sides",
			capability()},

		// Channels. With unequal counts 2 to 4 hangs and 4 to 2 fails late (seen on 7.2).
		equal("multifd-channels", "the migration would hang or fail late", "parameter multifd-channels=N sets it on both"),
		equal("multifd-compression", "the destination would not understand the pages",
			"parameter multifd-compression=METHOD sets it on both"),
		channels("multifd"),
		channels("postcopy-preempt"),

		// Zero-copy.
		needs("zero-copy-send", "multifd", "only multifd's channels can do it"),
		both("zero-copy-send", "compress", "what is compressed is a copy", "leave one of them out"),
		both("zero-copy-send", "xbzrle", "what is encoded is a copy", "leave one of them out"),
		{func(c *combination) string {
			if method := c.param(c.src, "multifd-compression"); c.on("zero-copy-send") && method != "" && method != "none" {
				return fmt.Sprintf("zero-copy-send and multifd-compression=%s exclude each other: what is compressed is a copy",
					method)
			}
			return ""
		}, "give parameter multifd-compression=none", parameter()},
		{func(c *combination) string {
			if c.on("zero-copy-send") && c.param(c.src, "tls-creds") != "" {
				return "zero-copy-send and TLS exclude each other: what is encrypted is a copy"
			}
			return ""
		}, "leave one of them out", capability()},
		{func(c *combination) string {
			if kind := c.without("tcp"); c.on("zero-copy-send") && kind != "" {
				return fmt.Sprintf("zero-copy-send is for TCP, and the stream is %s", kind)
			}
			return ""
		}, "listen on tcp:HOST:PORT", []string{"capability", "listen", "transport"}},
		{func(c *combination) string {
			// The kernel counts the pages that lie in send buffers against the limit (mm_account_pinned_pages), and QEMU fails
			// in the middle.
			need := max(c.number("multifd-channels"), 1)*sendBuffer + 1<<20
			if l := c.src.MemoryLock; c.on("zero-copy-send") && l != nil && *l < need {
				return fmt.Sprintf("zero-copy-send locks guest memory while it is on its way, up to %d KiB, and source %s may "+
					"lock %d KiB", need>>10, c.src.Name, *l>>10)
			}
			return ""
		}, "start the source as root, or with `ulimit -l unlimited`", capability()},

		{func(c *combination) string {
			if c.on("postcopy-blocktime") && c.either(func(f *facts.Facts) bool { return f.Plugged }) {
				return "postcopy-blocktime counts by vCPU, in tables of -smp's length, and this guest has a vCPU that was plugged " +
					"in: QEMU would write behind them"
			}
			return ""
		}, "leave postcopy-blocktime out", capability()},

		// Convergence and the switch-over.
		both("dirty-limit", "auto-converge", "either throttles the guest", "leave one of them out"),
		{func(c *combination) string {
			if c.on("dirty-limit") && c.either(func(f *facts.Facts) bool { return f.Accelerator != "kvm" }) {
				there := "there is no destination"
				if c.dst != nil {
					there = "the destination has " + c.dst.Accelerator
				}
				return fmt.Sprintf("dirty-limit needs KVM with a dirty ring on both sides: the source has %s, %s",
					c.src.Accelerator, there)
			}
			return ""
		}, "start both QEMUs with -accel kvm,dirty-ring-size=4096, or use auto-converge",
			[]string{"capability", "accelerator"}},
		needs("switchover-ack", "return-path", "the acknowledgement comes back on it"),

		// Files.
		both("mapped-ram", "xbzrle", "every page has one place in the file", "leave xbzrle out"),
		both("mapped-ram", "compress", "every page has one place in the file", "leave compress out"),
		{func(c *combination) string {
			// Memory is unprotected only after success (7.2: bg_migration_completion; mended in 8.1): seen on 7.2.22 with a full
			// disk and after a cancel.
			if c.on("background-snapshot") && c.src.Before(8, 1) && !c.plan.AllowUnsafe {
				return fmt.Sprintf("a background save that fails half-way, for want of disk space or by Ctrl-C, stops the guest "+
					"and its QEMU %s for ever (mended in 8.1)", c.src.Version)
			}
			return ""
		}, "save it without background, use QEMU >= 8.1, or set allow-unsafe if you are sure of the disk",
			[]string{"allow-unsafe"}},
		// A background save never calls ram_save_complete, which writes the map of the pages (migration/migration.c,
		// bg_migration_completion).
		both("mapped-ram", "background-snapshot",
			"QEMU accepts it and writes a file that cannot be loaded: the map of its pages is missing (seen on 10.0.2)", "use format stream for a background save"),
		both("mapped-ram", "postcopy-ram", "a file asks for no pages", "leave post-copy out"),
		{func(c *combination) string {
			if method := c.param(c.src, "multifd-compression"); c.on("mapped-ram") && method != "" && method != "none" {
				return fmt.Sprintf("mapped-ram and multifd-compression=%s exclude each other: every page has one place in the file",
					method)
			}
			return ""
		}, "give parameter multifd-compression=none", parameter()},
		{func(c *combination) string {
			if c.on("mapped-ram") && (c.param(c.src, "tls-creds") != "" || c.param(c.dst, "tls-creds") != "") {
				return fmt.Sprintf("mapped-ram and TLS exclude each other (tls-creds is %q on the source): a file is no connection",
					c.param(c.src, "tls-creds"))
			}
			return ""
		}, "leave tls out, and unset tls-creds (`migrate-set-parameters` with tls-creds \"\")",
			[]string{"tls", "capability"}},
		{func(c *combination) string {
			if kind := c.without("file"); c.on("mapped-ram") && kind != "" {
				return fmt.Sprintf("mapped-ram needs a file, and the stream is %s", kind)
			}
			return ""
		}, "use `qmigrate save --format mapped-ram`", capability()},
		{func(c *combination) string {
			on := c.plan.Parameters["direct-io"] == "on" || c.plan.Parameters["direct-io"] == "true"
			if on && !(c.on("mapped-ram") && c.on("multifd")) {
				return "direct-io works for the multifd channels of a mapped-ram file and for nothing else"
			}
			return ""
		}, "use `qmigrate save --format mapped-ram --direct-io`, which has them", parameter()},

		// The form of the address, and other things that `migrate` can be.
		{func(c *combination) string {
			for _, f := range []*facts.Facts{c.src, c.dst} {
				if c.plan.Channels == plan.FormChannels && f != nil && f.Schema != nil && !HasArgument(f, "migrate", "channels") {
					return fmt.Sprintf("`migrate` of %s (QEMU %s) takes no channels", f.Name, f.Version)
				}
			}
			return ""
		}, "give channels uri, or use QEMU >= 8.2 on both sides", []string{"channels"}},
		{func(c *combination) string {
			if mode := c.plan.Parameters["mode"]; mode != "" && mode != "normal" {
				return fmt.Sprintf("parameter mode=%s makes `migrate` something else than a move of a guest from one QEMU to another", mode)
			}
			return ""
		}, "leave it out", parameter()},
	}
	// migration/options.c, check_caps_background_snapshot: the same list in 7.2 and 10.0.
	for _, name := range []string{"postcopy-ram", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate",
		"return-path", "multifd",
		"pause-before-switchover", "auto-converge", "release-ram", "rdma-pin-all", "compress", "xbzrle", "x-colo", "validate-uuid", "zero-copy-send"} {
		rules = append(rules, both("background-snapshot", name, "QEMU refuses it", "leave "+name+" out"))
	}
	return rules
}

// sendBuffer is the most, in bytes, that a TCP connection holds back before it blocks: Linux's default for tcp_wmem's
// third number.
const sendBuffer = 4 << 20

// equal is a rule that both sides have the same value of a parameter of multifd's.
func equal(name, why, mend string) rule {
	return rule{func(c *combination) string {
		if c.dst == nil || !c.on("multifd") {
			return ""
		}
		a, b := c.param(c.src, name), c.param(c.dst, name)
		if a == "" || b == "" || a == b {
			return ""
		}
		return fmt.Sprintf("%s differs: source %s, destination %s: %s", name, a, b, why)
	}, mend, parameter()}
}

// channels is a rule that a capability needs a transport on which QEMU can open several connections.
func channels(name string) rule {
	return rule{func(c *combination) string {
		kind := c.without("tcp", "unix", "vsock", "file")
		// each channel writes to the pages' places
		if kind == "" && c.without("tcp", "unix", "vsock") == "file" && !c.on("mapped-ram") {
			kind = "file"
		}
		if c.on(name) && kind != "" {
			return fmt.Sprintf("%s needs several connections, and %s: is one", name, kind)
		}
		return ""
	}, "listen on tcp:HOST:PORT or unix:PATH, or leave " + name + " out", []string{"listen", "transport", "capability"}}
}

// cacheSize is what is wrong with xbzrle's cache: QEMU rounds nothing, and refuses what is no power of two only when it
// is set; one that is larger than the guest's memory is only waste.
func (c *combination) cacheSize() string {
	text, set := c.plan.Parameters["xbzrle-cache-size"]
	if !set {
		if text = c.param(c.src, "xbzrle-cache-size"); !c.on("xbzrle") || text == "" {
			return ""
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return "" // resolve says so
	}
	switch {
	case n < facts.PageSize || bits.OnesCount64(uint64(n)) != 1:
		return fmt.Sprintf("xbzrle-cache-size %d: it is a power of two of at least %d bytes, one page", n, facts.PageSize)
	case n > c.src.MemoryBytes && c.on("xbzrle"):
		return fmt.Sprintf("xbzrle-cache-size %d is more than the guest's memory of %d bytes", n, c.src.MemoryBytes)
	}
	return ""
}

// ranges are the plan's parameters that QEMU refuses for their value alone.
func (c *combination) ranges() []Mismatch {
	var all []Mismatch
	for name, r := range map[string][2]int64{
		"multifd-channels": {1, 255}, "multifd-zlib-level": {0, 9}, "multifd-zstd-level": {0, 20},
		"compress-level": {0, 9}, "compress-threads": {1, 255}, "decompress-threads": {1, 255},
		"throttle-trigger-threshold": {1, 100}, "cpu-throttle-initial": {1, 99}, "cpu-throttle-increment": {1,
			99}, "max-cpu-throttle": {1, 99},
		"announce-initial": {0, 100000}, "announce-max": {0, 100000}, "announce-rounds": {0, 1000}, "announce-step": {1,
			10000},
		"x-vcpu-dirty-limit-period": {1, 1000},
	} {
		text, set := c.plan.Parameters[name]
		n, err := strconv.ParseInt(text, 10, 64)
		if set && err == nil && (n < r[0] || n > r[1]) {
			all = append(all, Mismatch{Problem: fmt.Sprintf("parameter %s=%s: QEMU takes %d to %d", name, text, r[0], r[1]),
				Mend: "give one of those", About: parameter()})
		}
	}
	slices.SortFunc(all, func(a, b Mismatch) int { return strings.Compare(a.Problem, b.Problem) })
	if least, most := c.number("cpu-throttle-initial"), c.number("max-cpu-throttle"); most > 0 && least > most {
		all = append(all, Mismatch{Problem: fmt.Sprintf("cpu-throttle-initial %d is more than max-cpu-throttle %d", least,
			most),
			Mend: "raise parameter max-cpu-throttle or lower the other", About: parameter()})
	}
	return all
}

// HasArgument tells by introspection whether a command takes an argument.
func HasArgument(f *facts.Facts, command, name string) bool {
	for _, m := range f.Schema.Arguments(command) {
		if m.Name == name {
			return true
		}
	}
	return false
}

// FirstMismatch is the first of all as an error, and how many more there are; nil if there is none.
func FirstMismatch(all []Mismatch) error {
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return fmt.Errorf("%w (and %d more: %s)", all[0], len(all)-1, problems(all[1:]))
}

func problems(all []Mismatch) string {
	seen := map[string]bool{}
	for _, m := range all {
		seen[m.Problem] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(seen)), "; ")
}
