package connect_test

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/engine/connect"
	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

// What both QEMUs say of themselves, in their own words.
func TestThrowaway(t *testing.T) {
	for _, version := range guesttest.Versions() {
		t.Run(version, func(t *testing.T) {
			trial, err := connect.Throwaway(within.Context(t), []string{guesttest.QEMU(t, version)}, nil, "tcg")
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%q", trial.Refused)
			t.Logf("%q", trial.Ranges)
			want := map[string]string{"auto-converge": "", "multifd": "", "zero-copy-send": "", "tls-creds-psk": "", "tls-creds-x509": ""}
			if version != "7.2" {
				want["dirty-limit"] = "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set"
				want["multifd+postcopy-ram"] = map[string]string{"10.0": "Postcopy is not yet compatible with multifd"}[version]
				want["multifd+xbzrle"] = "Multifd is not compatible with xbzrle"
				want["mapped-ram"], want["switchover-ack"] = "", ""
			}
			for name, text := range want {
				if got, tried := trial.Refused[name]; !tried || !strings.HasPrefix(got, text) || text == "" && got != "" {
					t.Errorf("%s: %q, tried %t; want %q", name, got, tried, text)
				}
			}
			if _, tried := trial.Refused["mapped-ram"]; tried != (version != "7.2") {
				t.Error("mapped-ram is not 7.2's, but that of the others")
			}
			for name, text := range map[string]string{"multifd-channels": "1 to 255", "cpu-throttle-initial": "1 to 99"} {
				if got := trial.Ranges[name]; got != text {
					t.Errorf("%s: %q, want %q", name, got, text)
				}
			}
			levels := cmp.Or(map[string]string{"7.2": "0 to 255"}[version], "0 to 20") // 7.2 takes any, and the level does not change
			if got, text := trial.Ranges["multifd-zstd-level"], levels; got != text {
				t.Errorf("multifd-zstd-level: %q, want %q", got, text)
			}
			if got := trial.Defaults["downtime-limit"]; got != int64(300) {
				t.Errorf("downtime-limit is %v by default", got)
			}
		})
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "qmig-try-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := connect.Throwaway(within.Context(t), []string{"/bin/false"}, nil, "tcg"); err == nil || !strings.Contains(err.Error(), "try on a throw-away: ") {
		t.Error(err)
	}
}
