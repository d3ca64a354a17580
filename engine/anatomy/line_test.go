package anatomy

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// forms writes a line in the three forms in which QEMUs do.
func forms(l Line) []string {
	us := l.Stamp.UnixMicro()
	return []string{
		fmt.Sprintf("15322@%d.%06d:%s\n", us/1e6, us%1e6, l),
		l.Stamp.UTC().Format(utc) + " " + l.String() + "\n",
		l.String() + "\n",
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 30, 11, 7, 44, 543705000, time.UTC)
	for text, want := range map[string]Line{
		"vmstate_downtime_checkpoint src-downtime-start": {Event: Checkpoint, Name: "src-downtime-start"},
		"vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=38109": {Event: Save, Name: "ram",
			Iterable: true, Took: 38109 * time.Microsecond},
		"vmstate_downtime_load type=non-iterable idstr=dma instance_id=1 downtime=4": {Event: Load, Name: "dma",
			Instance: 1, Took: 4 * time.Microsecond},
		"vmstate_downtime_load type=non-iterable idstr=a instance_id=1 downtime=9 instance_id=2 downtime=4": {Event: Load,
			Name: "a instance_id=1 downtime=9", Instance: 2, Took: 4 * time.Microsecond},
		"migration_bitmap_sync_start ":              {Event: SyncStart},
		"migration_bitmap_sync_end dirty_pages 17":  {Event: SyncEnd, Name: "dirty_pages 17"},
		`handle_qmp_command mon 0x5 req: {"id": 3}`: {Event: Request, Name: `mon 0x5 req: {"id": 3}`},
	} {
		for i, prefix := range []string{"", "15322@1796036864.543705:", "2026-11-30T11:07:44.543705Z "} {
			w := want
			if i > 0 {
				w.Stamp = at
			}
			if got := Parse([]byte(prefix + text + "\n")); len(got) != 1 || !got[0].Stamp.Equal(w.Stamp) ||
				got[0].String() != w.String() || got[0].Took != w.Took || got[0].Instance != w.Instance {
				t.Errorf("%s%s:\n%+v", prefix, text, got)
			}
		}
	}
	for _, text := range []string{
		"", "\n", "qemu-system-x86_64: warning: nic n0 has no peer\n", "vmstate_downtime_checkpoint \n",
		"vmstate_downtime_checkpoint src-vm-stopped", // cut off
		"vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=\n",
		"vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=-4\n",
		"vmstate_downtime_save type=other idstr=ram instance_id=0 downtime=4\n",
		"vmstate_downtime_save type=iterable idstr= instance_id=0 downtime=4\n",
		"vmstate_downtime_save type=iterable downtime=4 instance_id=0\n",
		"x@1796036864.543705:vmstate_downtime_checkpoint src-vm-stopped\n",
		"1@1796036864.5437:vmstate_downtime_checkpoint src-vm-stopped\n",
		"migration_thread_low_pending 0\n",
	} {
		if got := Parse([]byte(text)); len(got) > 0 {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// FuzzParse: a line that is read is the same when it is written in any of the forms and read again.
func FuzzParse(f *testing.F) {
	for _, l := range []Line{
		{Event: Checkpoint, Name: "dst-precopy-bh-enter"},
		{Event: Load, Name: "0000:00:03.0/e1000", Took: 2519 * time.Microsecond},
		{Event: SyncEnd, Name: "dirty_pages 17"},
	} {
		l.Stamp = time.UnixMicro(1796036864543705)
		for _, text := range forms(l) {
			f.Add([]byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, log []byte) {
		for _, want := range Parse(log) {
			if want.Stamp.IsZero() {
				want.Stamp = time.UnixMicro(0).UTC()
			}
			for i, text := range forms(want) {
				w := want
				if i == 2 {
					w.Stamp = time.Time{}
				}
				if got := Parse([]byte(text)); !slices.Equal(got, []Line{w}) {
					t.Fatalf("%q\n%+v\n%+v", text, got, w)
				}
			}
		}
	})
}
