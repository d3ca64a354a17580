package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"qmigrate/engine/record"
)

// TestShow: which record is shown, and what is said in one line where there is none.
func TestShow(t *testing.T) {
	t.Chdir(t.TempDir())
	folder, err := record.OpenFolder("out")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"20260102T000000.000Z-aaaaaa", "20260102T000001.000Z-bbbbbb",
		"20260101T000000.000Z-cccccc"} {
		r := &record.Migration{Schema: record.Schema, ID: id, Mode: record.PreCopyMode, Outcome: record.Completed,
			GuestOn: record.Destination, Trial: "trial " + id[21:], Warnings: []string{"\x1b[2J of " + id[21:]}}
		if err := folder.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll("empty/samples", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("empty", record.RecordsFile), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ words, want string }{
		{"", "id 20260102T000001.000Z-bbbbbb"}, // the newest, which is not the last
		{"out", "id 20260102T000001.000Z-bbbbbb"},
		{"20260101", "id 20260101T000000.000Z-cccccc"},
		{"out 20260102T000000", "id 20260102T000000.000Z-aaaaaa"},
		{"out 20260102T000001.000Z-bbbbbb --details", "series    out/samples/20260102T000001.000Z-bbbbbb.jsonl"},
		{"--json out 20260101", `"id":"20260101T000000.000Z-cccccc"`},
		{"out 20260102", "qmigrate: 20260102 is the beginning of 2 ids in out, such as 20260102T000000.000Z-aaaaaa and 20260102T0000"},
		{"out nobody", "qmigrate: no record nobody in out: the newest is 20260102T000001.000Z-bbbbbb"},
		{"nobody", "qmigrate: no record nobody in out: "},
		{"no/where", "qmigrate: no folder no/where: give what --out named"},
		{"nowhere 2026", "qmigrate: no folder nowhere, which should have record 2026: "},
		{"empty", "qmigrate: empty: no records in it: "},
		{"empty/samples", "qmigrate: empty/samples has no records.jsonl: "},
		{"out/records.jsonl", "qmigrate: out/records.jsonl is no folder: "},
		{"out 2026 more", "qmigrate: show takes a folder and the id of a record, found 3 words"},
	} {
		var out, said bytes.Buffer
		words := append([]string{"qmigrate", "show"}, strings.Fields(c.words)...)
		status := run(context.Background(), words, nil, &out, &said)
		refused := strings.HasPrefix(c.want, "qmigrate: ")
		text := out.String() + said.String()
		if refused != (status == statusUsage) || !refused && status != statusDone || !strings.Contains(text, c.want) ||
			strings.Contains(text, "\x1b") || refused && strings.Count(text, "\n") != 1 {
			t.Errorf("show %s: status %d, %q, want %q", c.words, status, text, c.want)
		}
	}
	name := filepath.Join("out", record.RecordsFile)
	all, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, append([]byte("no record\n"), all...), 0o644); err != nil {
		t.Fatal(err)
	}
	var out, said bytes.Buffer
	if status := run(context.Background(), []string{"qmigrate", "show", "out", "trial", "bbbbbb"}, nil, &out, &said); status != statusUsage {
		t.Errorf("three words: status %d", status)
	}
	out.Reset()
	said.Reset()
	status := run(context.Background(), []string{"qmigrate", "show", "out", "trial bbbbbb"}, nil, &out, &said)
	if status != statusDone || !strings.Contains(out.String(), "id 20260102T000001.000Z-bbbbbb") ||
		!strings.HasPrefix(said.String(), "warning: out/records.jsonl: line 1: ") {
		t.Errorf("by the trial's name, behind a line that is no record: status %d, %q, %q", status, out.String(),
			said.String())
	}
}
