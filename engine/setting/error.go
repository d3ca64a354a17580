package setting

import (
	"errors"
	"fmt"
)

// Error is what is wrong with the value of a setting. Its text begins with the setting's name.
type Error struct {
	Setting string // its name; an Apply leaves it out, and Set fills it in
	Value   string // as it was given; "" where Problem says it, or there is none
	Problem error
}

func (e *Error) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("%s: %v", e.Setting, e.Problem)
	}
	return fmt.Sprintf("%s %q: %v", e.Setting, e.Value, e.Problem)
}

func (e *Error) Unwrap() error { return e.Problem }

// Settings are the names of those that the error is about.
func (e *Error) Settings() []string { return []string{e.Setting} }

// Wrong is the error of an Apply: what is wrong with the value that it was given.
func Wrong(value, format string, args ...any) error {
	return &Error{Value: value, Problem: fmt.Errorf(format, args...)}
}

// Errorf is what is wrong with the value of a setting, where that is found later than by its Apply.
func Errorf(name, value, format string, args ...any) error {
	return &Error{name, value, fmt.Errorf(format, args...)}
}

// About says which settings an error is about, first the one that most likely is to be changed. Its text stays as it
// is.
func About(err error, names ...string) error {
	if err == nil {
		return nil
	}
	return &about{err, names}
}

type about struct {
	error
	names []string
}

func (a *about) Unwrap() error      { return a.error }
func (a *about) Settings() []string { return a.names }

// Of are the names of the settings that an error is about; nil if it is about none.
func Of(err error) []string {
	var e interface {
		error
		Settings() []string
	}
	if errors.As(err, &e) {
		return e.Settings()
	}
	return nil
}
