package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"qmigrate/guest/guesttest"
	"qmigrate/guest/guesttest/within"
)

// block is one ```console block of a document: commands that begin with "$ " and what they print.
type block struct {
	file  string
	line  int
	lines []string
}

// blocks are those of a document that have a command of ours.
func blocks(file, text string) (all []block) {
	var now *block
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\n")
		switch {
		case now == nil && strings.TrimSpace(line) == "```console":
			now = &block{file: file, line: n}
		case now != nil && strings.TrimSpace(line) == "```":
			for _, l := range now.lines {
				if command(l) != "" {
					all = append(all, *now)
					break
				}
			}
			now = nil
		case now != nil:
			now.lines = append(now.lines, line)
		}
	}
	return all
}

// command is the command of ours in a line of a block, which is run with this program; empty if it has none.
func command(line string) string {
	text, ok := strings.CutPrefix(line, "$ ")
	text = strings.TrimPrefix(strings.TrimPrefix(text, "sudo "), "bin/")
	if !ok || !strings.HasPrefix(text, "qmigrate ") {
		return ""
	}
	return text
}

// words are those of a text but for what varies from run to run: numbers with their units, ids, versions of the kernel, and where
// lines are folded.
func words(text string) []string {
	for _, r := range []struct{ re, by string }{
		{`\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{6}`, " "},
		{`Linux \S+`, "Linux"},
		{`\b(segment|page|ping|sample)s\b`, "$1"},
		{`\b(slower|faster)\b`, " "},
		{`\((KVM|a guest under KVM|no /dev/kvm)[^)]*\)`, " "},
		{`[-+]?\d[\d.,]*( ?(ns|us|ms|s|B|KiB|MiB|GiB)(/s)?\b)?`, " "},
		{`(^|\s)-(\s|$)`, " "},
		{`[▁-█]+`, " "}, // a timeline, and the marks below it, which touch or do not
		{`(?m)^\s*M[ SR]*$`, "marks"},
	} {
		text = regexp.MustCompile(r.re).ReplaceAllString(text, r.by)
	}
	return strings.Fields(text)
}

// follow finds the words, one after another, and returns what follows them.
func follow(text, want []string) (rest []string, ok bool) {
	for i := 0; i+len(want) <= len(text); i++ {
		if slices.Equal(text[i:i+len(want)], want) {
			return text[i+len(want):], true
		}
	}
	return nil, false
}

// run runs the block's commands in one folder and holds what they print against the block: the words of each line that a document shows
// have to come, in that order. A line "..." stands for any lines.
func (b block) run(t *testing.T) {
	dir := t.TempDir()
	for i := 0; i < len(b.lines); {
		text := command(b.lines[i])
		at := fmt.Sprintf("%s:%d", b.file, b.line+1+i)
		i++
		if text == "" {
			continue
		}
		for ; strings.HasSuffix(text, `\`) && i < len(b.lines); i++ {
			text = strings.TrimSuffix(text, `\`) + strings.TrimSpace(strings.TrimPrefix(b.lines[i], ">"))
		}
		c := within.Command(t, "sh", "-c", text)
		c.Dir = dir
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %s: %v\n%s", at, text, err, out)
		}
		rest, ok := words(string(out)), true
		for ; i < len(b.lines) && !strings.HasPrefix(b.lines[i], "$ "); i++ {
			if b.lines[i] == "..." {
				continue
			}
			if rest, ok = follow(rest, words(b.lines[i])); !ok {
				t.Fatalf("%s:%d: %s does not print, at its place, %q, but\n%s", b.file, b.line+1+i, text, b.lines[i], out)
			}
		}
	}
}

// TestConsole runs what the documents show.
func TestConsole(t *testing.T) {
	guesttest.Starts(t)
	if works, err := condition(t)("lab"); err != nil || !works {
		guesttest.Unable(t, "no lab can be had: ", err)
	}
	files, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, filepath.Join("..", "..", "README.md")) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocks(filepath.Base(file), string(text)) {
			t.Run(fmt.Sprintf("%s:%d", b.file, b.line), b.run)
		}
	}
}

// TestConsoleHarness: a document that shows what is not so must fail.
func TestConsoleHarness(t *testing.T) {
	const document = "text\n```console\n$ qmigrate version\nqmigrate 1.2.3\n```\n```console\n$ ls\n```\n```go\n$ qmigrate x\n```\n```console\n# a remark\n$ sudo qmigrate lab \\\n> status\n...\n```\n"
	all := blocks("x.md", document)
	if len(all) != 2 || all[0].line != 2 || all[1].line != 12 {
		t.Fatalf("blocks: %+v", all)
	}
	shown := words("pre-copy  38.1 ms   1.25 s\nmemory    27,954 pages checked, 0 wrong\n2 (stopped)   1.29 s  -  14 MiB  643 MiB/s   0 B\nout, id 20261122T034009.279Z-98eed4")
	printed := words("stage\npre-copy  9 s   12 us\nmemory 5 pages\n  checked, 12 wrong\n3 (stopped) 9 s 1 ms 1 GiB 2.3 GiB/s 0 B\nout, id 20271122T034009.279Z-000000 x")
	if rest, ok := follow(printed, shown); !ok || !slices.Equal(rest, []string{"x"}) {
		t.Errorf("%q is not in %q", shown, printed)
	}
	if _, ok := follow(printed, words("memory 5 pages lost")); ok {
		t.Error("found what is not there")
	}
}
