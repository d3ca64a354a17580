package connect

import "fmt"

// Error is about settings. Its text begins with the name of one, or has names in backquotes, so that a command line can
// put its flags in their place.
type Error struct {
	Names []string
	Wrong bool // what the settings say cannot be meant, whatever QEMUs and hosts there are
	err   error
}

func (e *Error) Error() string { return e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Settings are the names of the settings that it is about.
func (e *Error) Settings() []string { return e.Names }

// wrong is the error of a setting that cannot be meant.
func wrong(name, format string, args ...any) error {
	return &Error{Names: []string{name}, Wrong: true, err: fmt.Errorf(name+": "+format, args...)}
}

// about says which settings mend an error.
func about(err error, names ...string) error { return &Error{Names: names, err: err} }
