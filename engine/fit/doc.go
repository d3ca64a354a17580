// Package fit decides whether a guest can move from one QEMU to another by a plan, and says why not and what would mend
// it. It compares facts and asks nobody, but for Try, which tries things on a QEMU that is for nothing else.
package fit
