// Package setting is how a setting is written down: its name, what its values look like, its default, what it does,
// where it applies, and how a text becomes its value.
//
// The settings themselves stand beside the struct that they set: plan.Settings has those of a migration, lab.Settings
// those of a guest and its hosts. Everything that names a setting is made from these two tables: the flags of the
// command line, the factors of an experiment, and the table in docs/experiments.md.
//
// An error that is about settings carries their names, which Of finds. Its text has the plain name, max-bandwidth. The
// command line turns that into --max-bandwidth, and an experiment finds the line of its file by it.
//
// This package knows no setting and no struct. It imports package engine/record/units, and every package that checks a
// setting may import it.
package setting
