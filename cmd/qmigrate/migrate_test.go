package main

import (
	"testing"

	"qmigrate/engine/record"
)

// TestMayGoOn: what a post-copy needs for another connection is not removed while it may make one.
func TestMayGoOn(t *testing.T) {
	post := &record.PostCopyFigures{}
	for _, c := range []struct {
		rec  record.Migration
		want bool
	}{
		{record.Migration{PostCopy: post, Outcome: record.Failed, GuestOn: record.Destination}, true},
		{record.Migration{PostCopy: post, Outcome: record.Failed, GuestOn: record.Unknown}, true}, // a monitor was lost
		{record.Migration{PostCopy: post, Outcome: record.Failed, GuestOn: record.None}, true},    // paused on both sides
		{record.Migration{PostCopy: post, Outcome: record.Failed, GuestOn: record.Source}, false},
		{record.Migration{PostCopy: post, Outcome: record.Completed, GuestOn: record.Destination}, false},
		{record.Migration{Outcome: record.Failed, GuestOn: record.Unknown}, false},
	} {
		if got := mayGoOn(&c.rec); got != c.want {
			t.Errorf("%s, guest on %s: %v, want %v", c.rec.Outcome, c.rec.GuestOn, got, c.want)
		}
	}
}
