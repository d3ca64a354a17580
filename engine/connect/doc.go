// Package connect makes an endpoint of what people write, and what stands around one migration between two of them: the
// credentials, the tunnel, the throw-away QEMUs. Parse comes first: it turns unix:/run/a.qmp into an
// endpoint.Endpoint, which engine.Migrate takes.
//
// It moves no guest (package engine does), measures nothing and makes no network (package engine/lab does), and knows
// no flag of a command line: its errors name settings. It imports the packages that engine is made of, guest and
// hostnet/host. The lab, experiments and programs may import it. The engine may not. Its package beside starts a
// destination from the source's command line.
package connect
