// Package text prints the record of a migration as a terminal shows it: in one screen, or with everything that was
// measured. It reads records only.
package text

import (
	"cmp"
	"io"
)

// MaxWidth is the widest that a line is, in columns, however wide the terminal.
const MaxWidth = 100

// Page is what a record is printed on.
type Page struct {
	W      io.Writer
	Width  int  // columns of the page; 0: MaxWidth
	Blocks bool // whoever reads it takes UTF-8: a timeline is drawn in blocks, else in ASCII
}

func (p Page) width() int { return cmp.Or(p.Width, MaxWidth) }
