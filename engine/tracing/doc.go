// Package tracing switches a QEMU's trace events on and off again, proves that a log is that QEMU's, and sees to it
// that the former state comes back when qmigrate dies in between: before the switch a note says what was off, and the
// next command that speaks to this QEMU finds it.
//
// It knows no migration and does not read what the lines say: package anatomy does. It imports the type of an endpoint
// and qmp.
package tracing
