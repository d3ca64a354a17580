package record

import "testing"

// Each thing that may not happen is a failure by itself.
func TestToolFailures(t *testing.T) {
	fine := func() *Migration {
		return &Migration{
			Tools: &Tools{Program: &Program{Name: "sysbench"}, SSH: &SSHSession{Lines: 3}, Redis: &RedisWriter{Acknowledged: 9}},
			Web:   &Web{Phases: []WebPhase{{Phase: BeforePhase, Requests: 5}}},
		}
	}
	if all := fine().ToolFailures(); len(all) != 0 {
		t.Errorf("all is well: %q", all)
	}
	for name, spoil := range map[string]func(*Migration){
		"program":          func(m *Migration) { m.Tools.Program.Error = "x" },
		"ssh reset":        func(m *Migration) { m.Tools.SSH.Resets = 1 },
		"ssh lost":         func(m *Migration) { m.Tools.SSH.LinesLost = 1 },
		"ssh silent":       func(m *Migration) { m.Tools.SSH.Lines = 0 },
		"redis lost":       func(m *Migration) { m.Tools.Redis.Lost = 1 },
		"redis wrong":      func(m *Migration) { m.Tools.Redis.Wrong = 1 },
		"redis reset":      func(m *Migration) { m.Tools.Redis.Resets = 1 },
		"redis silent":     func(m *Migration) { m.Tools.Redis.Acknowledged = 0 },
		"redis, read back": func(m *Migration) { m.Tools.Redis.Error = "x" },
		"web reset":        func(m *Migration) { m.Web.Resets = 1 },
		"web wrong":        func(m *Migration) { m.Web.Wrong = 1 },
		"web unanswered":   func(m *Migration) { m.Web.Unanswered = 1 },
		"web failed":       func(m *Migration) { m.Web.Phases[0].Errors = 1 },
		"web silent":       func(m *Migration) { m.Web.Phases[0].Requests = 0 },
	} {
		m := fine()
		if spoil(m); len(m.ToolFailures()) != 1 {
			t.Errorf("%s: %q", name, m.ToolFailures())
		}
	}
	if all := (&Migration{}).ToolFailures(); all != nil {
		t.Errorf("a guest without tools: %q", all)
	}
}
