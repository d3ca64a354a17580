package record

import "fmt"

// StageError is a migration that did not go to its end. Guest says who holds the guest now; Err why; Mend what to do
// where there is something to do. Issued tells whether `migrate` had been sent.
type StageError struct {
	Stage  StageName
	Guest  Holder
	Issued bool
	Err    error
	Mend   string
	Ended  bool // the guest has ended by itself: no side runs it, and nothing was lost
}

func (e *StageError) Error() string {
	if e.Stage == Initialization && e.Guest != None { // nothing was changed: only what was wrong matters
		return e.Err.Error()
	}
	if e.Ended {
		text := fmt.Sprintf("%s: %v", e.Stage, e.Err)
		if e.Mend != "" {
			text += "; " + e.Mend
		}
		return text
	}
	where := map[Holder]string{
		Source:      "the guest is on the source",
		Destination: "the guest is on the destination",
		File:        "the guest is in its file",
		None:        "NO SIDE RUNS THE GUEST",
		Unknown:     "it is not known which side holds the guest",
	}[e.Guest]
	text := fmt.Sprintf("%s: %v; %s", e.Stage, e.Err, where)
	if e.Mend != "" {
		text += ": " + e.Mend
	}
	return text
}

func (e *StageError) Unwrap() error { return e.Err }
