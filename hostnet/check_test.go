package hostnet

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"qmigrate/guest/guesttest/within"
)

func TestCheck(t *testing.T) {
	found := Check(within.Context(t))
	names := []string{CapRoot, CapUserNamespaces, CapNamespaces}
	if found.Get(CapNamespaces).OK { // else there is nowhere to try the rest
		names = append(names, CapTUN, CapBridge, CapVeth, CapTBF, CapHTB, CapNetem, CapRawICMP, CapPingSocket, CapCPUCgroup,
			CapUserfaultfd)
	}
	for _, name := range names {
		c := found.Get(name)
		if c.Reason == "not looked at" {
			t.Errorf("%s was not looked at", name)
		}
		if !c.OK && c.Reason == "" {
			t.Errorf("%s is not there, for no reason", name)
		}
		t.Logf("%+v", c)
	}
	if got := found.Get("wings"); got.OK {
		t.Error("this machine has wings")
	}
	needNetwork(t)
	if missing := found.Missing(); len(missing) > 0 {
		t.Errorf("the other tests ran, and this is missing: %+v", missing)
	}
	data, err := json.Marshal(found)
	var again Capabilities
	if err != nil || json.Unmarshal(data, &again) != nil || !slices.Equal(found, again) {
		t.Errorf("%s, %v", data, err)
	}
}

func TestCheckRootless(t *testing.T) {
	needRoot(t)
	for tun, works := range map[string]string{"666": "true", "600": "false", "none": "false"} {
		out, err := asUser("check", "TUN="+tun).Output()
		if err != nil {
			t.Fatal(err)
		}
		rows := map[string][]string{}
		for line := range strings.Lines(string(out)) {
			f := strings.Split(strings.TrimSpace(line), "|")
			rows[f[0]] = f
		}
		for name, want := range map[string]string{CapRoot: "false", CapUserNamespaces: "true", CapTUN: works,
			CapBridge: "true", CapRawICMP: "true", CapUserfaultfd: "false"} {
			f := rows[name]
			if f == nil || f[1] != want {
				t.Errorf("TUN %s: %s is %v, want %s", tun, name, f, want)
			} else if f[1] == "false" && (f[3] == "" || f[4] == "") {
				t.Errorf("TUN %s: %s lacks a reason or a mend: %v", tun, name, f)
			}
		}
		if tun == "none" {
			t.Logf("%s", out)
		}
	}
}
