package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// link is one [text](target) of a document.
var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// prose is a document without its code: a link or a heading in there is none.
func prose(text string) (lines []string) {
	inside := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			inside = !inside
			line = "\n"
		}
		if inside || strings.HasPrefix(line, "    ") {
			line = "\n"
		}
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	return lines
}

// anchors are a document's headings as links name them: lower case, words joined by hyphens, without other punctuation. The second of two alike gets -1.
func anchors(text string) (all []string) {
	for _, line := range prose(text) {
		marks, title, ok := strings.Cut(line, " ")
		if !ok || marks == "" || strings.Trim(marks, "#") != "" {
			continue
		}
		var b strings.Builder
		for _, r := range strings.ToLower(strings.TrimSpace(title)) {
			switch {
			case r == ' ':
				b.WriteByte('-')
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r > 127:
				b.WriteRune(r)
			}
		}
		name := b.String()
		for n := 1; slices.Contains(all, name); n++ {
			name = fmt.Sprintf("%s-%d", b.String(), n)
		}
		all = append(all, name)
	}
	return all
}

// broken says which relative links of a file lead nowhere.
func broken(file string) (all []string, links int, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, 0, err
	}
	for i, line := range prose(string(text)) {
		for _, m := range link.FindAllStringSubmatch(line, -1) {
			name, anchor, anchored := strings.Cut(m[1], "#")
			if strings.Contains(name, ":") { // another place's
				continue
			}
			links++
			target := file
			if name != "" {
				target = filepath.Join(filepath.Dir(file), name)
			}
			if _, err := os.Stat(target); err != nil {
				all = append(all, fmt.Sprintf("%s:%d: (%s): there is no %s", file, i+1, m[1], target))
				continue
			}
			if !anchored {
				continue
			}
			there, err := os.ReadFile(target)
			if err != nil {
				return nil, 0, err
			}
			if have := anchors(string(there)); !slices.Contains(have, anchor) {
				all = append(all, fmt.Sprintf("%s:%d: (%s): %s has no such heading: it has %s", file, i+1, m[1], target, strings.Join(have, ", ")))
			}
		}
	}
	return all, links, nil
}

// TestLinks: every relative link of the documents names a file that exists, and a heading in it.
func TestLinks(t *testing.T) {
	var files []string
	for _, glob := range []string{"*.md", "docs/*.md", "docs/decisions/*.md"} {
		some, err := filepath.Glob(filepath.Join("..", "..", glob))
		if err != nil || len(some) == 0 {
			t.Fatalf("%s: %v, %v", glob, some, err)
		}
		files = append(files, some...)
	}
	sum := 0
	for _, file := range files {
		all, links, err := broken(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range all {
			t.Error(text)
		}
		sum += links
	}
	if sum == 0 {
		t.Error("no link was found")
	}
}

// TestLinksHarness: a link that leads nowhere must be found.
func TestLinksHarness(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("b.md", "# A `title`, of two\n```\n# no heading\n```\n## Same\n## Same\n")
	a := write("a.md", "[1](b.md) [2](b.md#a-title-of-two) [3](b.md#same-1) [4](#here) [5](https://x.org/y)\n# Here\n```\n[6](none.md)\n```\n"+
		"[7](c.md) [8](b.md#no-heading) [9](#there)\n")
	all, links, err := broken(a)
	if err != nil || links != 7 || len(all) != 3 {
		t.Fatalf("%d links, %v: %s", links, err, strings.Join(all, "\n"))
	}
	for i, want := range []string{"there is no", "no-heading", "#there"} {
		if !strings.Contains(all[i], want) {
			t.Errorf("%q does not tell of %s", all[i], want)
		}
	}
}
