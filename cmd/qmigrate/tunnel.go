package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"qmigrate/engine/connect"
	"qmigrate/engine/plan"
)

// checkTunnel refuses flags that do not go with the plan's tunnel, or with none.
func checkTunnel(x *cli.Context, p plan.Plan) error {
	if p.Tunnel == "" {
		for _, flag := range []string{"tunnel-to", "tunnel-identity", "tunnel-known-hosts", "tunnel-hosts",
			"tunnel-address"} {
			if x.IsSet(flag) {
				return usagef("--%s is for --tunnel: give --tunnel tls or --tunnel ssh too, or leave it out", flag)
			}
		}
		return nil
	}
	switch {
	case x.IsSet("connect"):
		return usagef("--connect and --tunnel: the source connects to the tunnel: leave --connect out")
	case x.IsSet("tunnel-to") && p.Tunnel != plan.SSHTunnel:
		return usagef("--tunnel-to is for --tunnel ssh")
	case x.IsSet("listen") && !x.IsSet("tunnel-to"):
		return usagef("--listen and --tunnel: the destination listens to the tunnel: leave --listen out, unless " +
			"--tunnel-to names the destination's host")
	case x.IsSet("tunnel-to") && !x.IsSet("listen"):
		return usagef("--tunnel-to needs --listen: where the destination is to listen on its own host, as in --listen " +
			"unix:/run/qmigrate.sock or tcp:127.0.0.1:4444")
	}
	for _, flag := range []string{"tunnel-identity", "tunnel-known-hosts"} {
		if x.IsSet(flag) && !x.IsSet("tunnel-to") {
			return usagef("--%s is for --tunnel-to: without that both ends are in this process, and their keys too", flag)
		}
	}
	return nil
}

// tunnelPlace is where the flags say that the tunnel's halves are.
func tunnelPlace(x *cli.Context) (at connect.TunnelPlace, err error) {
	if x.IsSet("tunnel-hosts") {
		var ok bool
		if at.Source, at.Destination, ok = strings.Cut(x.String("tunnel-hosts"), ","); !ok {
			return at, usagef("--tunnel-hosts %s: write it as SOURCE,DESTINATION, as in netns:a,netns:b",
				x.String("tunnel-hosts"))
		}
	}
	at.Address = x.String("tunnel-address")
	if x.IsSet("tunnel-to") {
		at.SSHD = &connect.SSHD{Address: x.String("tunnel-to"), Identity: x.String("tunnel-identity"),
			KnownHosts: x.String("tunnel-known-hosts")}
	}
	return at, nil
}
