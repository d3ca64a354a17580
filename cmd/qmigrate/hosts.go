package main

import (
	"github.com/urfave/cli/v2"

	"qmigrate/hostnet/host"
)

// hostFlags are those of every command that reaches other hosts.
func hostFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "ssh", Category: aboutHosts, Value: "ssh", Usage: "`PATH` OpenSSH's client, for ssh:// hosts"},
		&cli.StringSliceFlag{Name: "ssh-option", Category: aboutHosts,
			Usage: "`OPTION` for ssh -o, such as ProxyJump=HOST; may be given again"},
	}
}

// reach is the hosts as the command's flags say how to reach them.
func (c *commands) reach(x *cli.Context) *host.Pool {
	c.hosts.SSH = host.SSH{Program: x.String("ssh"), Options: x.StringSlice("ssh-option")}
	return c.hosts
}
