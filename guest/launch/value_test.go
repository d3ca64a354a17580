package launch

import "testing"

// What is taken out of JSON takes what it leaves empty with it, and nothing else: null is a value.
func TestValueJSON(t *testing.T) {
	for _, c := range []struct{ from, without, want string }{
		{`{"a":"1","b":"2"}`, "a", `{"b":"2"}`},
		{`{"l":[{"str":"1"},{"str":"2"}],"n":null,"e":[],"o":{}}`, "l.0.str", `{"e":[],"l":[{"str":"2"}],"n":null,"o":{}}`},
		{`{"l":[{"str":"1"}],"b":2,"c":true}`, "l.0.str", `{"b":2,"c":true}`},
		{`{"addr":{"abstract":true,"path":"p"}}`, "addr.abstract", `{"addr":{"path":"p"}}`},
	} {
		v, err := parseValue(c.from)
		if err != nil {
			t.Fatal(err)
		}
		v.options = v.without(c.without)
		if got := v.String(); got != c.want {
			t.Errorf("%s without %s: %s", c.from, c.without, got)
		}
	}
	v, err := parseValue(`{"backing":null,"file":{"filename":"/a"}}`)
	if err != nil {
		t.Fatal(err)
	}
	v.set("file.filename", "/b")
	if got := v.String(); got != `{"backing":null,"file":{"filename":"/b"}}` {
		t.Error(got)
	}
	if v, err := parseValue(`{"a":`); err == nil {
		t.Error(v)
	}
}
