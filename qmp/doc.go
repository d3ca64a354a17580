// Package qmp speaks the QEMU Machine Protocol, QEMU's JSON monitor, to one QEMU over one socket.
//
// [Conn] is the connection for everything: calls from any number of goroutines, events, out-of-band commands and
// descriptors. [Sampler] is the hot path: query-migrate and nothing else, in lock step, without an allocation.
// [Monitor] gives a Conn to programs written for go-qemu. [Schema] is what QEMU says about its own commands.
//
// A monitor socket serves one client. QEMU lets the kernel accept a second one and never greets it, so a program that
// wants calls, events and samples at once gives QEMU three monitors.
//
// Units are converted here: bytes, pages and [time.Duration] go in and out. The exception is migration parameters,
// which keep QEMU's names and units, because they are read back as QEMU has them.
package qmp
