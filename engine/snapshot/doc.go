// Package snapshot saves a guest into a file and restores it from there. Disks are not in the file. It holds a run.Run
// as a migration does; the file is the other side.
package snapshot
