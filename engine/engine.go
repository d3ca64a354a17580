// Package engine moves a running guest from one QEMU to another by speaking QMP to both, in the six stages of Clark et al.
// (NSDI 2005), and records what happened. It knows monitors, not hosts or guests: what it needs of those is in Endpoint.
package engine

import "errors"

// errTimeout is the cause of a context that Plan.Timeout ended.
var errTimeout = errors.New("not converged within the time-out")
