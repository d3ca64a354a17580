// Package experiments holds the bundled experiment files.
package experiments

import "embed"

// Files are the files, by NAME.toml.
//
//go:embed *.toml
var Files embed.FS
