// Package engine moves a running guest from one QEMU to another by speaking QMP to both, in the six stages of Clark et
// al. (NSDI 2005), and records what happened. Migrate is the straight line; Recover ends what an interrupted run left;
// Watch records what somebody else drives.
//
// It knows monitors, not hosts or guests: what it needs of those is in an endpoint.Endpoint. Whether a pair fits is
// decided in package fit, who may run the guest in package holder. What a migration shares with a save, a restore and
// COLO is in internal/run. It imports neither guest nor hostnet.
package engine
