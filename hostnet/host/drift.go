package host

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Drift is a clock that is wrong on purpose: at the instant t of the kernel's realtime clock it shows
// t + Offset + PPM (t - From) / 1e6, and from the instant Step on StepBy more.
type Drift struct {
	Offset time.Duration
	PPM    float64
	From   time.Time
	Step   time.Time // zero: none
	StepBy time.Duration
}

// At is what it shows at an instant of the kernel's clock.
func (d Drift) At(t time.Time) time.Time {
	t = t.Round(0)
	shown := t.Add(d.Offset + time.Duration(d.PPM/1e6*float64(t.Sub(d.From))))
	if !d.Step.IsZero() && !t.Before(d.Step) {
		shown = shown.Add(d.StepBy)
	}
	return shown
}

// Now is what it shows now.
func (d Drift) Now() time.Time { return d.At(time.Now()) }

// ParseDrift reads one from OFFSET_NS,PPM,FROM_NS[,STEP_NS,STEP_BY_NS], instants as nanoseconds since 1970; "" is nil.
func ParseDrift(text string) (*Drift, error) {
	if text == "" {
		return nil, nil
	}
	fields := strings.Split(text, ",")
	if len(fields) != 3 && len(fields) != 5 {
		return nil, fmt.Errorf("clock %q: want OFFSET_NS,PPM,FROM_NS[,STEP_NS,STEP_BY_NS]", text)
	}
	var n [5]float64
	var whole [5]int64
	for i, f := range fields {
		var err error
		if i == 1 {
			n[i], err = strconv.ParseFloat(f, 64)
		} else {
			whole[i], err = strconv.ParseInt(f, 10, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("clock %q: %w", text, err)
		}
	}
	d := &Drift{Offset: time.Duration(whole[0]), PPM: n[1], From: time.Unix(0, whole[2])}
	if len(fields) == 5 {
		d.Step, d.StepBy = time.Unix(0, whole[3]), time.Duration(whole[4])
	}
	return d, nil
}
