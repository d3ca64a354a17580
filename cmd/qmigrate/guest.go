package main

import (
	"errors"
	"strings"

	"qmigrate/engine/record"
	"qmigrate/guest/debian"
)

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
