// Package run is what a migration, a save, a restore, COLO and a watch share, by holding a Run: the two sides and what
// their events told, the clock of the stages, the samples, the watch for a QEMU that hangs, and the undo that brings
// the guest back to where it can run. It decides nothing about who runs the guest: that is package holder's. What is
// peculiar to one of them (mirrors, encryption, a policy) takes part as a Feature.
package run
