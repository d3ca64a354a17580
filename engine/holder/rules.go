package holder

import "qmigrate/engine/record"

// rule is one line of a table.
type rule struct {
	name string
	why  string
	when func(Situation) bool
	then Decision
}

func step(do Step) Decision { return Decision{Do: do} }

func stay(guest record.Holder, text string) Decision {
	return Decision{Do: Stay, Guest: guest, Text: text}
}

func unfinished(text string) Decision {
	return Decision{Do: Stay, Guest: record.Destination, Text: text, Unfinished: true}
}

// nothing is an end of `--recover` where nothing was to be done.
func nothing(text string) Decision {
	return Decision{Do: Stay, Guest: record.Source, Text: text, Nothing: true}
}

// doubt is an end of `--recover` or of a new `migrate` that is an error.
func doubt(guest record.Holder, text string) Decision {
	return Decision{Do: Stay, Guest: guest, Text: text, Doubt: true}
}

// tables are the rules of each asker.
func tables(a Asker) []rule {
	switch a {
	case Undo:
		return undoRules
	case Recover:
		return recoverRules
	}
	return migrateRules
}

// Decide is the next step. The last rule of each table always holds.
func Decide(s Situation) Decision {
	for _, r := range tables(s.Asker) {
		if r.when(s) {
			d := r.then
			d.Rule = r.name
			return d
		}
	}
	panic("no rule holds for a situation: the last one of each table always does")
}
