// Package guest is one QEMU process seen from its host: what it is (Spec), its command line (Args, pure), its life
// (Start, Open, Close), its agent, and which binary and accelerator run it (FindQEMU, ProbeAccelerator).
//
// It makes nothing that a guest boots (guest/image does), reads no command line of another's QEMU (guest/launch does)
// and migrates nothing. It imports hostnet/host, never hostnet. Labs, connect and the commands may import it; engine
// does not: an endpoint is all that engine knows of a guest.
package guest

import "qmigrate/guest/debian"

// CacheDir is the folder of everything that can be made again: $QMIGRATE_CACHE, else $XDG_CACHE_HOME/qmigrate, else
// ~/.cache/qmigrate.
func CacheDir() (string, error) { return debian.CacheDir() }
