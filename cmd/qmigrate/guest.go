package main

import (
	"errors"
	"strings"

	"qmigrate/engine/record"
	"qmigrate/guest/debian"
	"qmigrate/guest/wire"
)

// workloadNames are the names of all workloads; those that need another guest than the default say so.
func workloadNames() (names []string) {
	for _, t := range wire.WorkloadTypes() {
		name := t.Name
		if t.Guest != "" {
			name += " (" + t.Guest + ")"
		}
		names = append(names, name)
	}
	return names
}

// guestFinding says whether the Debian guest is there.
func guestFinding(mend string) finding {
	path, err := debian.Find(debian.Guest)
	f := finding{name: "Debian guest", ok: err == nil, optional: true, text: path, mend: mend}
	if err != nil {
		f.text = "not in the cache: --guest debian makes it once"
	}
	return f
}

// wrongTools is the error of a run whose guest's tools are not content.
func wrongTools(r *record.Migration) error {
	if r == nil {
		return nil
	}
	if all := r.ToolFailures(); len(all) > 0 {
		return errors.New(strings.Join(all, "; "))
	}
	return nil
}
