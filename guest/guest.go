// Package guest is one QEMU process seen from its host: what it is (Spec), its command line (Args, pure), its life (Start, Open, Close),
// what it boots (BuildImage) and which binary and accelerator run it (FindQEMU, ProbeAccelerator).
package guest

import "qmigrate/guest/debian"

// CacheDir is the folder of everything that can be made again: $QMIGRATE_CACHE, else $XDG_CACHE_HOME/qmigrate, else ~/.cache/qmigrate.
func CacheDir() (string, error) { return debian.CacheDir() }
