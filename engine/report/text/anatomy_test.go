package text

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
)

// apart is the sample with its downtime taken apart.
func apart(mode record.Mode, told recordtest.Told) *record.Migration {
	r := sample()
	r.Mode = mode
	if told != recordtest.Untold {
		r.QEMU.SourceVersion = "11.1.3"
	}
	r = recordtest.TakenApart(r, told)
	if r.PostCopy != nil {
		r.Stages = append(r.Stages, record.Stage{Name: record.PostCopy, Start: r.Total.Wall, Duration: time.Second})
	}
	return r
}

// TestAnatomy: the critical path, the dearest devices and what is not told, each as it is printed; and one line of it in
// the screen. No line is wider than the page.
func TestAnatomy(t *testing.T) {
	events := apart(record.PreCopyMode, recordtest.Untold)
	whole := apart(record.PreCopyMode, recordtest.Untold)
	whole.Anatomy = whole.Anatomy[1:2]
	whole.Anatomy[0].Duration = *whole.Downtime.Wire
	long := apart(record.PreCopyMode, recordtest.Stamped)
	for i := range long.Anatomy {
		if long.Anatomy[i].Device == "0000:00:03.0/virtio-blk" {
			long.Anatomy[i].Device = strings.Repeat("0000:00:1c.0/", 9) + "virtio-blk"
		}
	}
	for _, width := range []int{80, 100} {
		for _, x := range []struct {
			name string
			r    *record.Migration
		}{
			{"pre-copy, both logs with stamps", apart(record.PreCopyMode, recordtest.Stamped)},
			{"post-copy, both logs with stamps", apart(record.PostCopyMode, recordtest.Stamped)},
			{"stop-and-copy, logs without stamps", apart(record.StopAndCopyMode, recordtest.Bare)},
			{"events alone, QEMU 7.2", events},
			{"nothing told, QEMU 7.2", whole},
			{"a device behind many bridges", long},
			{"no anatomy", sample()},
		} {
			var details, screen bytes.Buffer
			p := Page{W: &details, Width: width}
			p.anatomy(x.r)
			Page{W: &screen, Width: width}.Screen(x.r, nil, foot(x.r))
			if x.r.PostCopy != nil {
				fmt.Fprintf(&details, "\n%s\n", Fold(strings.Join(latencies(x.r.PostCopy), "; "), 0, width))
			}
			if n := p.height(split(strings.TrimSuffix(screen.String(), "\n"))); n > ScreenLines {
				t.Errorf("%s: a screen of %d lines:\n%s", x.name, n, &screen)
			}
			for line := range strings.Lines(details.String() + p.where(x.r)) {
				if line = strings.TrimRight(line, "\n"); len(line) > width || line != strings.TrimRight(line, " ") {
					t.Errorf("%s: %d columns, or blanks at its end: %q", x.name, len(line), line)
				}
			}
			if width == 80 {
				name := "anatomy-" + strings.NewReplacer(", ", "-", " ", "-", ".", "").Replace(x.name) + ".txt"
				golden(t, name, p.where(x.r)+"\n"+details.String())
			}
		}
	}
	var b bytes.Buffer
	Page{W: &b, Width: 80}.Screen(apart(record.PreCopyMode, recordtest.Stamped), nil, foot(sample()))
	golden(t, "screen-anatomy.txt", b.String())
}

// TestAnatomySums: what is printed as the critical path is the wire downtime, to the last nanosecond.
func TestAnatomySums(t *testing.T) {
	for _, mode := range []record.Mode{record.PreCopyMode, record.PostCopyMode} {
		for _, told := range []recordtest.Told{recordtest.Stamped, recordtest.Bare, recordtest.Untold} {
			r := apart(mode, told)
			if _, sum := criticalPath(r.Anatomy); sum != *r.Downtime.Wire {
				t.Errorf("%s, %s: %s of %s", mode, told, sum, *r.Downtime.Wire)
			}
		}
	}
}
