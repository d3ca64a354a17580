package experiment

import (
	"slices"

	"qmigrate/engine/lab"
	"qmigrate/engine/plan"
	"qmigrate/engine/setting"
)

// factors are all that an experiment may vary: the settings of a migration and of a lab that can be given in a file, in
// the order in which they are applied, after a name. docs/experiments.md lists them, by a test.
func factors() []setting.Setting[Cell] {
	return slices.Concat(
		[]setting.Setting[Cell]{{Name: "case", Shape: "NAME", Example: "m1.tiny", Where: setting.Run,
			Help:  "a name for what the other values of a listed cell stand for; changes nothing",
			Apply: func(*Cell, string) error { return nil }}},
		setting.Within(func(c *Cell) *plan.Plan { return &c.Plan }, setting.At(setting.Run, plan.Settings())),
		setting.Within(func(c *Cell) *lab.Spec { return &c.Lab }, setting.At(setting.Run, lab.Settings())),
	)
}

// Factors are the names of all factors.
func Factors() (names []string) {
	for _, f := range factors() {
		names = append(names, f.Name)
	}
	return names
}

func isFactor(name string) bool { return slices.Contains(Factors(), name) }
