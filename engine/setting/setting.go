package setting

import (
	"cmp"
	"errors"
)

// Place is where a setting can be given.
type Place int

// The places, which can be added up.
const (
	Demo    Place = 1 << iota // a flag of `qmigrate demo`
	Migrate                   // of `qmigrate migrate`
	Save                      // of `qmigrate save`
	Restore                   // of `qmigrate restore`
	Lab                       // of `qmigrate lab up`
	Run                       // a factor of an experiment, for `qmigrate run`
	Watch                     // a flag of `qmigrate watch`
)

// Setting is one setting of a T.
type Setting[T any] struct {
	Name    string
	Shape   string           // what a value looks like, as in RATE; "": true or false
	Default string           // the value that the zero T stands for; "": none, or Absent says it
	Absent  string           // what holds if it is not given, in words, where no one value does
	Own     map[Place]string // places with a default of their own, which is set there
	Help    string           // what it does
	Example string           // a value
	Where   Place            // all places where it can be given
	List    bool             // the value is a list with commas; a flag may be given again for more of it

	// Apply reads a text into the T. Settings are applied in the order of their table, so that one can look at those
	// before it.
	Apply func(*T, string) error
}

// Set applies a text. Its error is about this setting, if Apply does not say that it is about others.
func (s Setting[T]) Set(t *T, text string) error {
	err := s.Apply(t, text)
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e) && e.Setting == "":
		return &Error{s.Name, e.Value, e.Problem}
	case errors.As(err, &e) && e.Setting == s.Name && e.Value != "":
		return &Error{s.Name, text, e.Problem} // in the words that were given
	case Of(err) != nil:
		return err
	}
	return &Error{s.Name, "", err}
}

// Otherwise is what holds at a place if the setting is not given there, for people.
func (s Setting[T]) Otherwise(place Place) string {
	return cmp.Or(s.Own[place], s.Default, s.Absent)
}

// At are the settings of a table that can be given at a place.
func At[T any](place Place, table []Setting[T]) (all []Setting[T]) {
	for _, s := range table {
		if s.Where&place != 0 {
			all = append(all, s)
		}
	}
	return all
}

// Within makes settings of a part settings of the whole.
func Within[W, T any](part func(*W) *T, table []Setting[T]) (all []Setting[W]) {
	for _, s := range table {
		all = append(all, Setting[W]{s.Name, s.Shape, s.Default, s.Absent, s.Own, s.Help, s.Example, s.Where, s.List,
			func(w *W, text string) error { return s.Apply(part(w), text) }})
	}
	return all
}
