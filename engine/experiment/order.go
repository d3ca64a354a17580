package experiment

import "math/rand/v2"

// Trials are all of them in the order that the seed draws. With PerTrial they are interleaved: every cell comes once in
// each round, in an order of that round's own, so that a drift of the host meets all cells alike. With PerCell the
// cells come in a drawn order, each with its repeats one after the other.
func (e *Experiment) Trials(seed int64) (all []Trial) {
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	rounds := 0
	for _, c := range e.Cells {
		rounds = max(rounds, c.Sweep.Repeats)
	}
	if e.Boot == PerCell {
		for _, i := range rng.Perm(len(e.Cells)) {
			for repeat := range e.Cells[i].Sweep.Repeats {
				all = append(all, Trial{Cell: e.Cells[i], Repeat: repeat + 1, Order: len(all)})
			}
		}
		return all
	}
	for repeat := range rounds {
		for _, i := range rng.Perm(len(e.Cells)) {
			if repeat < e.Cells[i].Sweep.Repeats {
				all = append(all, Trial{Cell: e.Cells[i], Repeat: repeat + 1, Order: len(all)})
			}
		}
	}
	return all
}
