package text

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// Table is rows of cells in columns.
type Table struct {
	Align string // a letter a column: l or r
	Rows  [][]string
}

// Row adds a row.
func (t *Table) Row(cells ...string) { t.Rows = append(t.Rows, cells) }

// leastText is the room that a text in the last column has at least, if another text can make it.
const leastText = 34

// Print prints the table on a page of so many columns, with two blanks between columns and none at the ends of lines. A
// text in the last column is folded; where that leaves it next to no room, so is the widest other text.
func (t *Table) Print(w io.Writer, page int) {
	width, last := make([]int, len(t.Align)), len(t.Align)-1
	for _, row := range t.Rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	room, widest := page, -1
	for i := range last {
		room -= width[i] + 2
		if t.Align[i] == 'l' && (widest < 0 || width[i] > width[widest]) {
			widest = i
		}
	}
	if need := min(leastText, width[last]); t.Align[last] == 'l' && widest >= 0 && room < need {
		width[widest] -= min(need-room, max(width[widest]-leastText, 0))
	}
	for _, row := range t.Rows {
		cells, height, at := make([][]string, len(row)), 1, 0
		for i, cell := range row {
			cells[i] = []string{cell}
			switch {
			case i == last && t.Align[i] == 'l':
				cells[i] = strings.Split(Fold(cell, 0, page-at), "\n")
			case i == widest:
				cells[i] = strings.Split(Fold(cell, 0, width[i]), "\n")
			}
			height, at = max(height, len(cells[i])), at+width[i]+2
		}
		for n := range height {
			var line strings.Builder
			for i := range cells {
				cell := ""
				if n < len(cells[i]) {
					cell = cells[i][n]
				}
				pad := strings.Repeat(" ", max(width[i]-len(cell), 0))
				if t.Align[i] == 'r' {
					cell, pad = pad+cell, ""
				}
				line.WriteString(cell + pad + "  ")
			}
			fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
		}
	}
}

// measured is a number before its unit, which stay together.
var measured = regexp.MustCompile(`(\d) (ns|us|ms|s|%|B|[KMG]iB)(\W|$)`)

// Fold breaks a text between words so that no line is wider than width; further lines are indented, and so is a text
// that is.
func Fold(text string, indent, width int) string {
	own := len(text) - len(strings.TrimLeft(text, " "))
	var b strings.Builder
	b.WriteString(text[:own])
	at := indent + own
	for i, word := range strings.Fields(measured.ReplaceAllString(text, "$1\x00$2$3")) {
		word = strings.ReplaceAll(word, "\x00", " ")
		switch {
		case i > 0 && at+1+len(word) > width && (indent+own+len(word) <= width || at > width):
			// a word that fits nowhere stays
			b.WriteString("\n" + strings.Repeat(" ", indent+own))
			at = indent + own
		case i > 0:
			b.WriteString(" ")
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	return b.String()
}

// Count prints a number in groups of three.
func Count(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// Plural is a number with the word for one or for many.
func Plural(n int64, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", one)
	}
	return Count(n) + " " + many
}
