// Package facts is what one QEMU says about itself and its guest. Reading facts changes nothing. Whether two QEMUs go
// together is decided in package engine/fit.
package facts
