package run

import (
	"testing"

	"qmigrate/engine/facts"
)

// A mode that somebody left is put back on both sides; where there is none, QEMU knows no such parameter.
func TestModeIsNormal(t *testing.T) {
	t.Parallel()
	for mode, want := range map[any]any{nil: nil, "normal": nil, "cpr-reboot": "normal", "cpr-transfer": "normal"} {
		m := &Run{Parameters: map[string]any{"max-bandwidth": int64(1)}}
		f := &facts.Facts{Name: "x", Parameters: map[string]any{}}
		if mode != nil {
			f.Parameters["mode"] = mode
		}
		if got := m.parametersOf(&Side{Facts: f})["mode"]; got != want {
			t.Errorf("mode %v: set to %v, want %v", mode, got, want)
		}
	}
}
