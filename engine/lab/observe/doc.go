// Package observe looks at a guest from outside while it is migrated: pings, heartbeats, a TCP connection, what the
// link carries and where it learns the guest's address, and the processor time of both QEMUs. Start begins all of it,
// Stop ends it, and Note writes into the record what was seen. The package also places what the guest's agent counted
// on this host's clock, by the guest's heartbeats.
//
// It makes no guest, no host and no network, it changes nothing in them, and it does not know what the guest runs: what
// asks the guest's programs is package load, which counts by this package's means. Only load, lab and what stands above
// them may import it.
package observe
