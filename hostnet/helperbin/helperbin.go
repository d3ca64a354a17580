// Package helperbin has the helper in it, the program that runs on a host: static, and built by `make build` before
// this one, which puts it into this folder. A host.Pool takes Helper as its Program.
package helperbin

import "embed"

//go:embed *
var files embed.FS

// Helper is the program; an error if it had not been built when this program was.
func Helper() ([]byte, error) { return files.ReadFile("helper") }
