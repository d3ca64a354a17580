package setting

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"qmigrate/engine/record/units"
	"qmigrate/internal/near"
)

// Text is an Apply that takes any text.
func Text[T any](at func(*T) *string) func(*T, string) error {
	return func(t *T, text string) error {
		*at(t) = text
		return nil
	}
}

// Choice is an Apply that takes one of the words.
func Choice[T any, S ~string](at func(*T) *S, of ...S) func(*T, string) error {
	return func(t *T, text string) error {
		*at(t) = S(text)
		return OneOf(S(text), of...)
	}
}

// OneOf refuses a text that is none of the words, with those that are near.
func OneOf[S ~string](text S, of ...S) error {
	if slices.Contains(of, text) {
		return nil
	}
	return Wrong(string(text), "%s", near.Hint(text, of))
}

// Truth is an Apply that takes true or false.
func Truth[T any](at func(*T) *bool) func(*T, string) error {
	return func(t *T, text string) (err error) {
		if *at(t), err = strconv.ParseBool(text); err != nil {
			return Wrong(text, "true or false")
		}
		return nil
	}
}

// Duration is an Apply that takes a time with its unit.
func Duration[T any](at func(*T) *time.Duration) func(*T, string) error {
	return func(t *T, text string) (err error) {
		*at(t), err = units.Duration(text)
		return err
	}
}

// Rate is an Apply that takes bytes per second with their unit.
func Rate[T any](at func(*T) *int64) func(*T, string) error {
	return func(t *T, text string) (err error) {
		*at(t), err = units.Rate(text)
		return err
	}
}

// Size is an Apply that takes bytes with their unit.
func Size[T any](at func(*T) *int64) func(*T, string) error {
	return func(t *T, text string) (err error) {
		*at(t), err = units.Size(text)
		return err
	}
}

// Pairs reads a list of pairs, each of the shape, which has a = in it. take says whether it takes one.
func Pairs(text, shape string, take func(name, value string) bool) error {
	if text == "" {
		return nil
	}
	for word := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(word), "=")
		if !ok || name == "" || !take(name, value) {
			return Wrong(word, "write it as %s", shape)
		}
	}
	return nil
}
