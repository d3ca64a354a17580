// Package colo keeps a secondary in step with a primary, checkpoint by checkpoint, and lets the one that is left go on
// alone. It holds a run.Run as a migration does. docs/colo.md says what is guaranteed.
package colo
