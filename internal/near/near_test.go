package near

import "testing"

func TestHint(t *testing.T) {
	commands := []string{"demo", "migrate", "lab", "doctor"}
	capabilities := []string{"auto-converge", "multifd", "postcopy-blocktime", "postcopy-preempt", "postcopy-ram",
		"xbzrle", "events"}
	for _, c := range []struct {
		word string
		have []string
		want string
	}{
		{"dmo", commands, "did you mean demo?"},
		{"doktor", commands, "did you mean doctor?"},
		{"lba", commands, "have demo, migrate, lab, doctor"}, // two letters of three
		{"x", commands, "have demo, migrate, lab, doctor"},
		{"", commands, "have demo, migrate, lab, doctor"},
		{"--jsn", []string{"--json", "--out"}, "did you mean --json?"},
		{"multi-fd", capabilities, "did you mean multifd?"},
		{"postcpy-ram", capabilities, "did you mean postcopy-ram?"},
		{"postcopy", capabilities, "did you mean postcopy-ram or postcopy-preempt or postcopy-blocktime?"}, // the nearest first
		{"event", capabilities, "did you mean events?"},
		{"pc-q35-7.3", []string{"pc-q35-6.2", "pc-q35-7.0", "pc-q35-7.1", "pc-q35-7.2", "pc-q35-8.0"}, "did you mean pc-q35-7.0 or pc-q35-7.1 or pc-q35-7.2?"},
	} {
		if got := Hint(c.word, c.have); got != c.want {
			t.Errorf("%q: %s, want %s", c.word, got, c.want)
		}
	}
}
