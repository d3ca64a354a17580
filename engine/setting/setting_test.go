package setting_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"qmigrate/engine/setting"
)

type thing struct {
	rate int64
	kind string
}

// TestSet: what is wrong is about the setting, in its name and in the words that were given, unless it is about others.
func TestSet(t *testing.T) {
	rate := setting.Setting[thing]{Name: "rate", Apply: setting.Rate(func(t *thing) *int64 { return &t.rate })}
	kind := setting.Setting[thing]{Name: "kind",
		Apply: setting.Choice(func(t *thing) *string { return &t.kind }, "one", "two")}
	early := setting.Setting[thing]{Name: "early", Apply: func(*thing, string) error {
		return setting.Errorf("early", "1h0m0s", "too late")
	}}
	other := setting.Setting[thing]{Name: "other", Apply: func(*thing, string) error {
		return setting.About(errors.New("no kind"), "kind", "rate")
	}}
	for _, c := range []struct {
		s          setting.Setting[thing]
		text, want string
		about      []string
	}{
		{rate, "1MiB/s", "", nil},
		{rate, "fast", `rate: "fast" is not a rate: write it as 50MiB/s or 1Gbit/s (units: B/s, KiB/s, MiB/s, GiB/s, kB/s, ` +
			`MB/s, GB/s, kbit/s, Mbit/s, Gbit/s)`, []string{"rate"}},
		{kind, "three", `kind "three": have one, two`, []string{"kind"}},
		{early, "1h", `early "1h": too late`, []string{"early"}},
		{other, "x", "no kind", []string{"kind", "rate"}},
	} {
		var into thing
		err := c.s.Set(&into, c.text)
		if c.want == "" {
			if err != nil || into.rate != 1<<20 {
				t.Errorf("%s %s: %v, %+v", c.s.Name, c.text, err, into)
			}
			continue
		}
		if err == nil || err.Error() != c.want {
			t.Errorf("%s %s says %v, want %s", c.s.Name, c.text, err, c.want)
		}
		if about := setting.Of(fmt.Errorf("deeper: %w", err)); !slices.Equal(about, c.about) {
			t.Errorf("%s %s is about %q, want %q", c.s.Name, c.text, about, c.about)
		}
	}
	if err := setting.About(nil, "kind"); err != nil {
		t.Errorf("nothing that is about something is %v", err)
	}
}
