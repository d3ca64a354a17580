package fit

import (
	"strings"
	"testing"

	"qmigrate/engine/facts"
	"qmigrate/engine/plan"
	"qmigrate/engine/record"
)

// factsOf are those of a QEMU of this version as far as the rules look at them, with QEMU's defaults.
func factsOf(name string, major, minor int) *facts.Facts {
	f := &facts.Facts{Name: name, Version: "x", Major: major, Minor: minor, MemoryBytes: 256 << 20, Accelerator: "tcg",
		Parameters: map[string]any{
			"multifd-channels": int64(2), "multifd-compression": "none", "xbzrle-cache-size": int64(64 << 20), "tls-creds": "",
			"cpu-throttle-initial": int64(20), "max-cpu-throttle": int64(99),
		}}
	if major >= 9 {
		f.Parameters["zero-page-detection"] = "legacy"
	}
	return f
}

func on(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

// TestRules: each rule is broken by one plan and by nothing near it.
func TestRules(t *testing.T) {
	for _, test := range []struct {
		name     string
		plan     plan.Plan
		src, dst [2]int // versions; zero: 10.0
		change   func(src, dst *facts.Facts)
		alone    bool   // without a destination
		want     string // in the only problem; "" wants none
	}{
		{name: "nothing"},
		{name: "multifd", plan: plan.Plan{Capabilities: on("multifd"), Parameters: map[string]string{"multifd-compression": "zstd", "multifd-channels": "4"}}},
		{name: "shared", plan: plan.Plan{Capabilities: on("postcopy-ram", "x-ignore-shared")}, want: "exclude each other"},
		{name: "mode implies", plan: plan.Plan{Mode: record.HybridMode, Capabilities: on("multifd")}, want: "needs QEMU 10.1"},
		{name: "one is old", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: on("multifd")}, src: [2]int{10, 1}, want: "dst is x"},
		{name: "both are new", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: on("multifd")}, src: [2]int{10, 1}, dst: [2]int{11, 0}},
		{name: "preempt", plan: plan.Plan{Capabilities: on("postcopy-preempt")}, want: "needs postcopy-ram"},
		{name: "preempt in its mode", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: on("postcopy-preempt")}},
		{name: "blocktime", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: on("postcopy-blocktime")}},
		{name: "blocktime, a vCPU plugged in", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: on("postcopy-blocktime")}, change: func(_, dst *facts.Facts) { dst.Plugged = true }, want: "QEMU would write behind them"},
		{name: "no blocktime, a vCPU plugged in", plan: plan.Plan{Mode: record.PostCopyMode}, change: func(_, dst *facts.Facts) { dst.Plugged = true }},
		{name: "preempt over fd", plan: plan.Plan{Mode: record.PostCopyMode, Capabilities: on("postcopy-preempt"), Listen: "fd:m"}, want: "needs several connections, and fd: is one"},
		{name: "multifd over exec", plan: plan.Plan{Capabilities: on("multifd"), Listen: "exec:cat", Connect: "exec:cat"}, want: "multifd needs several connections, and exec: is one"},
		{name: "multifd over unix", plan: plan.Plan{Capabilities: on("multifd"), Listen: "unix:/x"}},
		{name: "multifd and xbzrle", plan: plan.Plan{Capabilities: on("multifd", "xbzrle")}, want: "multifd and xbzrle"},
		{name: "compress and xbzrle", plan: plan.Plan{Capabilities: on("compress", "xbzrle")}, src: [2]int{8, 2}, dst: [2]int{8, 2}, want: "compress and xbzrle"},
		{name: "compress and xbzrle when it could", plan: plan.Plan{Capabilities: on("compress", "xbzrle")}, src: [2]int{7, 2}, dst: [2]int{7, 2}},
		{name: "idle compression", plan: plan.Plan{Parameters: map[string]string{"multifd-compression": "zlib"}}, want: "compresses nothing without multifd"},
		{name: "odd cache", plan: plan.Plan{Capabilities: on("xbzrle"), Parameters: map[string]string{"xbzrle-cache-size": "1000000"}}, want: "power of two"},
		{name: "tiny cache", plan: plan.Plan{Parameters: map[string]string{"xbzrle-cache-size": "2048"}}, want: "at least 4096"},
		{name: "huge cache", plan: plan.Plan{Capabilities: on("xbzrle"), Parameters: map[string]string{"xbzrle-cache-size": "536870912"}}, want: "more than the guest's memory"},
		{name: "cache of the guest's size", plan: plan.Plan{Capabilities: on("xbzrle"), Parameters: map[string]string{"xbzrle-cache-size": "268435456"}}},
		{name: "unequal channels", plan: plan.Plan{Capabilities: on("multifd")}, change: func(_, dst *facts.Facts) { dst.Parameters["multifd-channels"] = int64(4) }, want: "source 2, destination 4"},
		{name: "unequal channels, set by the plan", plan: plan.Plan{Capabilities: on("multifd"), Parameters: map[string]string{"multifd-channels": "3"}}, change: func(_, dst *facts.Facts) { dst.Parameters["multifd-channels"] = int64(4) }},
		{name: "unequal channels, not used", change: func(_, dst *facts.Facts) { dst.Parameters["multifd-channels"] = int64(4) }},
		{name: "unequal compression", plan: plan.Plan{Capabilities: on("multifd")}, change: func(src, _ *facts.Facts) { src.Parameters["multifd-compression"] = "zstd" }, want: "multifd-compression differs"},
		{name: "zero pages", plan: plan.Plan{Capabilities: on("multifd")}, dst: [2]int{7, 2}, change: func(src, _ *facts.Facts) { src.Parameters["zero-page-detection"] = "multifd" }, want: "leaves zero pages to the multifd channels"},
		{name: "zero-copy", plan: plan.Plan{Capabilities: on("multifd", "zero-copy-send")}},
		{name: "zero-copy alone", plan: plan.Plan{Capabilities: on("zero-copy-send")}, want: "needs multifd"},
		{name: "zero-copy, compressed", plan: plan.Plan{Capabilities: on("multifd", "zero-copy-send"), Parameters: map[string]string{"multifd-compression": "zlib"}}, want: "what is compressed is a copy"},
		{name: "zero-copy, encrypted", plan: plan.Plan{Capabilities: on("multifd", "zero-copy-send")}, change: func(src, _ *facts.Facts) { src.Parameters["tls-creds"] = "tls" }, want: "what is encrypted is a copy"},
		{name: "zero-copy over unix", plan: plan.Plan{Capabilities: on("multifd", "zero-copy-send"), Listen: "unix:/x"}, want: "is for TCP"},
		{name: "zero-copy, 8 MiB", plan: plan.Plan{Capabilities: on("multifd", "zero-copy-send")}, change: func(src, _ *facts.Facts) { src.MemoryLock = record.Of(int64(8 << 20)) }, want: "source src may lock 8192 KiB"},
		{name: "zero-copy, 64 MiB", plan: plan.Plan{Capabilities: on("multifd", "zero-copy-send")}, change: func(src, _ *facts.Facts) { src.MemoryLock = record.Of(int64(64 << 20)) }},
		{name: "dirty-limit", plan: plan.Plan{Capabilities: on("dirty-limit")}, want: "needs KVM"},
		{name: "two throttles", plan: plan.Plan{Capabilities: on("dirty-limit", "auto-converge")}, change: func(src, dst *facts.Facts) { src.Accelerator, dst.Accelerator = "kvm", "kvm" }, want: "either throttles"},
		{name: "switchover-ack", plan: plan.Plan{Capabilities: on("switchover-ack")}, want: "needs return-path"},
		{name: "mapped-ram", plan: plan.Plan{Capabilities: on("mapped-ram")}, want: "mapped-ram needs a file"},
		{name: "mapped-ram into a file", plan: plan.Plan{Capabilities: on("mapped-ram"), Listen: "file:/x"}, alone: true},
		{name: "mapped-ram and xbzrle", plan: plan.Plan{Capabilities: on("mapped-ram", "xbzrle"), Listen: "file:/x"}, alone: true, want: "one place in the file"},
		{name: "mapped-ram snapshot", plan: plan.Plan{Capabilities: on("mapped-ram", "background-snapshot"), Listen: "file:/x"}, alone: true, want: "cannot be loaded"},
		{name: "multifd into one stream", plan: plan.Plan{Capabilities: on("multifd"), Listen: "file:/x"}, alone: true, want: "file: is one"},
		{name: "mapped-ram, compressed", plan: plan.Plan{Capabilities: on("mapped-ram", "multifd"), Listen: "file:/x"}, change: func(src, _ *facts.Facts) { src.Parameters["multifd-compression"] = "zlib" }, alone: true, want: "multifd-compression=zlib exclude"},
		{name: "direct-io", plan: plan.Plan{Parameters: map[string]string{"direct-io": "on"}}, want: "nothing else"},
		{name: "direct-io off", plan: plan.Plan{Parameters: map[string]string{"direct-io": "off"}}},
		{name: "snapshot", plan: plan.Plan{Capabilities: on("background-snapshot", "return-path"), Listen: "file:/x"}, alone: true, want: "background-snapshot and return-path"},
		{name: "old snapshot", plan: plan.Plan{Capabilities: on("background-snapshot"), Listen: "fd:x"}, src: [2]int{8, 0}, alone: true, want: "for ever"},
		{name: "old snapshot, allowed", plan: plan.Plan{Capabilities: on("background-snapshot"), Listen: "fd:x", AllowUnsafe: true}, src: [2]int{7, 2}, alone: true},
		{name: "cpr", plan: plan.Plan{Parameters: map[string]string{"mode": "cpr-reboot"}}, want: "something else than a move"},
		{name: "level", plan: plan.Plan{Capabilities: on("multifd"), Parameters: map[string]string{"multifd-zlib-level": "10"}}, want: "QEMU takes 0 to 9"},
		{name: "throttle", plan: plan.Plan{Parameters: map[string]string{"max-cpu-throttle": "10"}}, want: "cpu-throttle-initial 20 is more than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			version := func(v [2]int) (int, int) {
				if v[0] == 0 {
					return 10, 0
				}
				return v[0], v[1]
			}
			major, minor := version(test.src)
			src := factsOf("src", major, minor)
			major, minor = version(test.dst)
			dst := factsOf("dst", major, minor)
			if test.change != nil {
				test.change(src, dst)
			}
			if test.alone {
				dst = nil
			}
			all := Rules(src, dst, test.plan)
			if test.want == "" {
				if len(all) > 0 {
					t.Errorf("%q", all)
				}
				return
			}
			if len(all) != 1 || !strings.Contains(all[0].Problem, test.want) || all[0].Mend == "" {
				t.Errorf("%q, want one with %q", all, test.want)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for _, test := range []struct{ listen, connect, form, want string }{
		{"", "", "", ""},
		{"tcp:127.0.0.1:0", "tcp:h:1", "channels", ""},
		{"fd:m", "", "", ""},
		{"fd:3", "", "", "needs connect"},
		{"fd:m", "fd:n", "", "leave connect out"},
		{"exec:cat", "", "", "needs connect"},
		{"exec:cat", "exec:dd", "", ""},
		{"file:/x", "", "", "qmigrate save"},
		{"tcp:4444", "", "", "address \"tcp:4444\""},
		{"udp:1", "", "", "not udp"},
		{"tcp", "", "", "write it as"},
		{"tcp:h:1,ipv4=on", "", "channels", "is for uri"},
	} {
		err := plan.Plan{Listen: test.listen, Connect: test.connect, Channels: test.form}.WithDefaults().CheckAddresses()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v", test, err)
		}
	}
}
