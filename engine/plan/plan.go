package plan

import (
	"maps"
	"slices"
	"strings"

	"qmigrate/engine/record/units"
)

// Name is derived from the plan's values, so that it cannot say anything else than what was done.
func (p Plan) Name() string {
	words := []string{string(p.Mode), p.Bandwidth(), units.FormatDuration(p.DowntimeLimit)}
	for _, name := range slices.Sorted(maps.Keys(p.Capabilities)) {
		words = append(words, name+"="+onOff(p.Capabilities[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Parameters)) {
		words = append(words, name+"="+p.Parameters[name])
	}
	if p.Tunnel != "" {
		words = append(words, "tunnel="+string(p.Tunnel))
	}
	if p.TLS != nil {
		words = append(words, "tls="+string(p.TLS.Kind))
	}
	if kind, _, _ := strings.Cut(p.Listen, ":"); kind != "tcp" {
		words = append(words, kind)
	}
	if p.Channels != FormURI {
		words = append(words, p.Channels)
	}
	if p.Anatomy == AnatomyOff {
		words = append(words, "anatomy=off")
	}
	words = append(words, p.Mirror.name()...)
	return strings.ReplaceAll(strings.Join(words, ","), " ", "")
}

func (p Plan) Bandwidth() string {
	if p.MaxBandwidth == 0 {
		return "unlimited"
	}
	return units.FormatRate(float64(p.MaxBandwidth))
}

// Words is the plan in the words of the command line, for the record.
func (p Plan) Words() map[string]any {
	w := map[string]any{
		"mode":                      p.Mode,
		"max_bandwidth_bytes_per_s": p.MaxBandwidth,
		"downtime_limit_ns":         p.DowntimeLimit,
		"listen":                    p.Listen,
		"sample_interval_ns":        max(p.SampleInterval, 0),
	}
	if p.Connect != "" {
		w["connect"] = p.Connect
	}
	if p.Channels != FormURI {
		w["channels"] = p.Channels
	}
	if len(p.Capabilities) > 0 {
		w["capabilities"] = p.Capabilities
	}
	if len(p.Parameters) > 0 {
		w["parameters"] = p.Parameters
	}
	if p.Tunnel != "" {
		w["tunnel"] = p.Tunnel
	}
	if p.TLS != nil {
		w["tls"] = p.TLS.words()
	}
	if p.Timeout > 0 {
		w["timeout_ns"] = p.Timeout
	}
	if p.Anatomy != "" {
		w["anatomy"] = p.Anatomy
	}
	p.Mirror.Words(w)
	return w
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
