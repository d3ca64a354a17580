// Package plan is what is wanted of a migration: values, their defaults, what the words alone show to be wrong, and the
// name that is derived from the values. Settings is the table by which the values are given in words. It asks no QEMU:
// whether a pair can do it is decided in package engine/fit.
package plan
