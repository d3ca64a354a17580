package lab

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"qmigrate/engine/plan"
	"qmigrate/engine/record"
	"qmigrate/guest"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
	"qmigrate/guest/wire"
	"qmigrate/hostnet/host"
)

// newLab is a lab for a test: gone at its end, with a small guest and a workload whose pages compress well.
func newLab(t *testing.T, s Spec) *Lab {
	t.Helper()
	needRoot(t)
	if s.Workload.Name == "" {
		s.Workload = wire.Workload{Name: "dirty", Params: map[string]string{"rate": "3000/s", "working-set": "40MiB", "content": wire.Compressible}}
	}
	s.Owner, s.Accelerator = fmt.Sprintf("test-%d", os.Getpid()), "tcg"
	if s.Guest.Memory == 0 {
		s.Guest.Memory = 128 << 20
	}
	l, err := Up(within.Context(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	return l
}

// TestStream migrates a guest over each transport and with each thing that can become of a page on its way, and has its memory checked.
func TestStream(t *testing.T) {
	for _, test := range []struct {
		qemu, transport string
		form            string
		capabilities    []string
		parameters      map[string]string
		packed          bool // the pages become smaller, and QEMU counts them so: 7.2 counts multifd's before it compresses them
	}{
		{qemu: "7.2", transport: TCP, capabilities: []string{"multifd"}, parameters: map[string]string{"multifd-compression": "zlib", "multifd-zlib-level": "3"}},
		{qemu: "7.2", transport: Unix, capabilities: []string{"multifd"}, parameters: map[string]string{"multifd-compression": "zstd", "multifd-channels": "4"}},
		{qemu: "7.2", transport: FD, capabilities: []string{"xbzrle"}, parameters: map[string]string{"xbzrle-cache-size": "67108864"}},
		{qemu: "7.2", transport: Exec, capabilities: []string{"compress"}, parameters: map[string]string{"compress-level": "3", "compress-threads": "2"}, packed: true},
		{qemu: "11.1", transport: TCP, form: plan.FormChannels, capabilities: []string{"multifd", "zero-copy-send"}, parameters: map[string]string{"multifd-compression": "none"}},
		{qemu: "10.0", transport: TCP, capabilities: []string{"multifd"}, parameters: map[string]string{"multifd-compression": "zlib", "zero-page-detection": "legacy"}, packed: true},
		{qemu: "10.0", transport: Unix, form: plan.FormChannels, capabilities: []string{"multifd"}, parameters: map[string]string{"multifd-compression": "zstd", "multifd-zstd-level": "7", "zero-page-detection": "multifd"}, packed: true},
		{qemu: "11.1", transport: FD, form: plan.FormChannels, capabilities: []string{"xbzrle", "return-path"}, parameters: map[string]string{"xbzrle-cache-size": "33554432"}},
		{qemu: "10.0", transport: Exec, form: plan.FormChannels, parameters: map[string]string{"zero-page-detection": "none"}},
		{qemu: "11.1", transport: Exec, parameters: map[string]string{"zero-page-detection": "none"}},
	} {
		t.Run(strings.Join(append([]string{test.qemu, test.transport, test.form}, test.capabilities...), "_"), func(t *testing.T) {
			qemu := guesttest.QEMU(t, test.qemu)
			l := newLab(t, Spec{SourceQEMU: qemu, DestinationQEMU: qemu, Transport: test.transport})
			p := plan.Plan{MaxBandwidth: 64 << 20, Channels: test.form, Parameters: test.parameters,
				Capabilities: map[string]bool{}}
			for _, name := range test.capabilities {
				p.Capabilities[name] = true
			}
			rec, err := l.Migrate(within.Context(t), p, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantMoved(t, rec)
			for _, name := range test.capabilities {
				if !rec.Capabilities[name] {
					t.Errorf("capability %s was read back as off", name)
				}
			}
			for name, v := range test.parameters {
				if got := fmt.Sprint(rec.Parameters[name]); got != v && !(test.qemu == "7.2" && name == "multifd-zlib-level") {
					t.Errorf("parameter %s was read back as %s", name, got)
				}
			}
			if listen, _ := rec.Plan["listen"].(string); !strings.HasPrefix(listen, test.transport+":") {
				t.Errorf("it listened on %s", listen)
			}
			if levelless := test.qemu == "7.2" && test.parameters["multifd-zlib-level"] != ""; levelless != strings.Contains(strings.Join(rec.Warnings, "\n"), "was set to 3 and is 1") {
				t.Errorf("7.2 takes a zlib level and keeps its own; warnings %q", rec.Warnings)
			}
			sent, pages := *rec.Total.Transferred, *rec.Total.Normal
			t.Logf("%d pages sent in %d KiB (multifd %v)", pages, sent>>10, rec.Total.Multifd)
			if p.Capabilities["multifd"] && (rec.Total.Multifd == nil || *rec.Total.Multifd < sent/2) {
				t.Errorf("the pages did not go by multifd: %v of %d bytes", rec.Total.Multifd, sent)
			}
			// The working set is most of the checked pages, and packs to less than a tenth. On a busy machine there are more
			// passes, and a page is sent more often. "compress" does not count its pages.
			if plain := max(rec.MemoryCheck.PagesChecked, pages/2) * 4096; test.packed == (sent > plain) {
				t.Errorf("%d pages, of %d that were checked, took %d bytes: compressed %t", pages,
					rec.MemoryCheck.PagesChecked, sent, test.packed)
			}
		})
	}
}

func wantMoved(t *testing.T, rec *record.Migration) {
	t.Helper()
	if rec.Outcome != record.Completed || rec.GuestOn != record.Destination {
		t.Errorf("outcome %s, guest on %s", rec.Outcome, rec.GuestOn)
	}
	if c := rec.MemoryCheck; c == nil || c.PagesChecked < 10000 || c.PagesWrong != 0 {
		t.Errorf("memory check %+v; warnings %q", c, rec.Warnings)
	}
	for _, w := range rec.Warnings {
		if strings.Contains(w, "FAILED") || strings.Contains(w, "rebooted") {
			t.Error(w)
		}
	}
}

// TestStreamRefused: what the stream cannot carry is refused before either QEMU is touched, in our words.
func TestStreamRefused(t *testing.T) {
	for _, test := range []struct {
		qemu, transport string
		plan            plan.Plan
		want            string
	}{
		{"7.2", Exec, plan.Plan{Capabilities: map[string]bool{"multifd": true}}, "multifd needs several connections, and exec: is one"},
		{"10.0", FD, plan.Plan{Capabilities: map[string]bool{"multifd": true}}, "multifd needs several connections, and fd: is one"},
		{"7.2", TCP, plan.Plan{Channels: plan.FormChannels}, "takes no channels"},
		{"10.0", Exec, plan.Plan{Capabilities: map[string]bool{"return-path": true}}, "one way only"},
		{"10.0", TCP, plan.Plan{Capabilities: map[string]bool{"compress": true}}, "capability compress"},
		{"11.1", TCP, plan.Plan{Capabilities: map[string]bool{"zero-blocks": true}}, "capability zero-blocks"},
		{"10.0", TCP, plan.Plan{Capabilities: map[string]bool{"xbzrle": true}, Parameters: map[string]string{"xbzrle-cache-size": "1000000"}}, "power of two"},
	} {
		t.Run(test.qemu+"_"+test.transport+"_"+strings.Join(slices.Sorted(maps.Keys(test.plan.Capabilities)), "_"), func(t *testing.T) {
			qemu := guesttest.QEMU(t, test.qemu)
			l := newLab(t, Spec{SourceQEMU: qemu, DestinationQEMU: qemu, Transport: test.transport, Workload: wire.Workload{Name: "idle"}, Fill: 8 << 20})
			_, err := l.Migrate(within.Context(t), test.plan, plan.Options{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			for vm, want := range map[*guest.VM]string{l.source: "running", l.destination: "inmigrate"} {
				v := &vmState{Host: vm.Host().Name(), PID: vm.Process().PID(), Spec: vm.Spec()}
				if got, err := runState(within.Context(t), new(host.Pool), v); got != want {
					t.Errorf("%s is %s, %v", vm.Spec().Name, got, err)
				}
			}
		})
	}
}
