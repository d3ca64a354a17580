package launch

import (
	"reflect"
	"testing"
)

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

// What decodes is encoded as what decodes to the same.
func FuzzValue(f *testing.F) {
	for _, s := range []string{"a,b=c,,d,e=", `{"a":{"b":[1,"x",null,true]},"c":1.5}`, "", ",", "=", "{", `{"":{}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parseValue(s)
		if err != nil {
			return
		}
		again, err := parseValue(v.String())
		if err != nil || !reflect.DeepEqual(again.options, v.options) {
			t.Errorf("%q is %q, %+v and %+v: %v", s, v, v.options, again.options, err)
		}
	})
}

// A configuration file is options, or an error and nothing.
func FuzzParseConfig(f *testing.F) {
	f.Add("[chardev \"a\"]\n  path = \"/a, b\"\n# x\n[memory]\nsize = \"64\"\n")
	f.Add("[a")
	f.Fuzz(func(t *testing.T, s string) {
		words, err := parseConfig([]byte(s))
		if err != nil && words != nil {
			t.Errorf("%q: %v with %v", s, words, err)
		}
		for _, w := range words {
			if !known(w.option) || w.flag || w.value == "" {
				t.Errorf("%q: %+v", s, w)
			}
		}
	})
}
