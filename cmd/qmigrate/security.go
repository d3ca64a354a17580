package main

import (
	"path/filepath"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/plan"
)

// security reads the flags of --tls; nil without it.
func security(x *cli.Context) (*plan.TLS, error) {
	kind := plan.TLSKind(x.String("tls"))
	if !x.IsSet("tls") {
		for _, flag := range []string{"tls-dir-source", "tls-dir-destination", "tls-hostname", "tls-username", "tls-authz", "tls-no-verify"} {
			if x.IsSet(flag) {
				return nil, usagef("--%s is for --tls: give --tls x509 or --tls psk too, or leave it out", flag)
			}
		}
		return nil, nil
	}
	if kind != plan.X509 && kind != plan.PSK {
		return nil, usagef("--tls %q: have %s, %s", kind, plan.PSK, plan.X509)
	}
	other := map[plan.TLSKind][]string{plan.PSK: {"tls-hostname", "tls-authz", "tls-no-verify"}, plan.X509: {"tls-username"}}
	for _, flag := range other[kind] {
		if x.IsSet(flag) {
			return nil, usagef("--%s means nothing to --tls %s: leave it out", flag, kind)
		}
	}
	t := &plan.TLS{
		Kind: kind, Hostname: x.String("tls-hostname"), Username: x.String("tls-username"), Authz: x.String("tls-authz"), NoVerify: x.Bool("tls-no-verify"),
		SourceDir: x.String("tls-dir-source"), DestinationDir: x.String("tls-dir-destination"),
	}
	if (t.SourceDir == "") != (t.DestinationDir == "") {
		return nil, usagef("--tls-dir-source and --tls-dir-destination belong together: give both, or none and new credentials are made")
	}
	for _, dir := range []*string{&t.SourceDir, &t.DestinationDir} {
		if *dir == "" {
			continue
		}
		var err error
		if *dir, err = filepath.Abs(*dir); err != nil { // QEMU runs in another folder
			return nil, err
		}
	}
	for _, flag := range []string{"tls-authz", "tls-hostname"} {
		if t.NoVerify && x.IsSet(flag) {
			return nil, usagef("--%s needs verification: leave --tls-no-verify out", flag)
		}
	}
	return t, nil
}
