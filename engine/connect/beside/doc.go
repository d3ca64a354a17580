// Package beside starts a destination beside its source, on the same machine: from the source's own command line and
// from what its monitor was told since. It gives the destination what QEMU takes over QMP only, and moves the ports
// that lead to the guest when that has moved.
//
// It moves no guest (package engine does), and package guest/launch rewrites the command line. It imports connect, the
// packages of engine that say what a QEMU has, guest, guest/launch and hostnet/host. Programs may import it. The engine
// and the lab may not.
package beside
