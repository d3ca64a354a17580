// Package agentbin has the guest's agent in it: a static program that `make build` builds before this one, and puts
// into this folder. Only guest/image imports it.
package agentbin

import "embed"

//go:embed *
var files embed.FS

// Agent is the program; an error if it had not been built when this program was.
func Agent() ([]byte, error) { return files.ReadFile("agent") }
