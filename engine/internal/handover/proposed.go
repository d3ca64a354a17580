package handover

import "qmigrate/engine/holder"

// proposed are rules that the model asks for before holder has them.
func (m *model) proposed(s holder.Situation) (holder.Decision, bool) {
	// A destination that died with its host breaks no connection. A closed one makes the source say whether it can go
	// back: in postcopy-device, and after the last page, from 10.0 on, it does.
	mute := s.Source.Reach == holder.Answers && s.Destination.Reach == holder.Dead && !s.Takes &&
		(s.Source.Status == holder.Device || s.Source.Status == holder.Split)
	switch {
	case !mute || m.Without == "P23" || m.Without == "all":
	case s.Waited && !s.Yanked:
		return holder.Decision{Do: holder.Yank, Rule: "proposed P23: make the source say whether it can go back"}, true
	case s.Yanked && !s.Waited:
		return holder.Decision{Do: holder.Wait, Rule: "proposed P23: it says so in a moment"}, true
	}
	return holder.Decision{}, false
}
