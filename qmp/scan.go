package qmp

import "encoding/json"

// scanner walks valid or invalid JSON text in place and allocates nothing. It accepts exactly what encoding/json does.
// Every method says false at text that is not JSON; the position is then meaningless.
type scanner struct {
	b []byte
	i int
}

// maxDepth is encoding/json's own limit on nesting.
const maxDepth = 10000

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

// take consumes c, after white space.
func (s *scanner) take(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// end says whether only white space is left.
func (s *scanner) end() bool {
	s.space()
	return s.i == len(s.b)
}

// member reads `"key": value` and what follows it: again is a comma, otherwise the object's end was consumed.
func (s *scanner) member() (key, value []byte, again, ok bool) {
	s.space()
	if key, ok = s.str(); !ok || !s.take(':') {
		return nil, nil, false, false
	}
	if value, ok = s.value(2); !ok {
		return nil, nil, false, false
	}
	if s.take(',') {
		return key, value, true, true
	}
	return key, value, false, s.take('}')
}

// str reads a string and returns what is between the quotes; escapes, which QEMU's names do not have, are undone.
func (s *scanner) str() ([]byte, bool) {
	if s.i >= len(s.b) || s.b[s.i] != '"' {
		return nil, false
	}
	begin, escapes := s.i, false
	for s.i++; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			if escapes {
				return unquote(s.b[begin:s.i]), true
			}
			return s.b[begin+1 : s.i-1], true
		case c < ' ':
			return nil, false
		case c == '\\':
			escapes = true
			if s.i++; s.i >= len(s.b) {
				return nil, false
			}
			switch s.b[s.i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					if s.i++; s.i >= len(s.b) || !isHex(s.b[s.i]) {
						return nil, false
					}
				}
			default:
				return nil, false
			}
		}
	}
	return nil, false
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// unquote is the text of a valid JSON string.
func unquote(quoted []byte) []byte {
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return nil
	}
	return []byte(s)
}

// value reads one value of any kind and returns its text.
func (s *scanner) value(depth int) ([]byte, bool) {
	s.space()
	begin := s.i
	if begin >= len(s.b) {
		return nil, false
	}
	ok := false
	switch c := s.b[begin]; {
	case (c == '{' || c == '[') && depth > maxDepth:
	case c == '{':
		s.i++
		if ok = s.take('}'); ok {
			break
		}
		for again := true; again; {
			s.space()
			if _, ok = s.str(); !ok || !s.take(':') {
				return nil, false
			}
			if _, ok = s.value(depth + 1); !ok {
				return nil, false
			}
			again = s.take(',')
		}
		ok = s.take('}')
	case c == '[':
		s.i++
		if ok = s.take(']'); ok {
			break
		}
		for again := true; again; {
			if _, ok = s.value(depth + 1); !ok {
				return nil, false
			}
			again = s.take(',')
		}
		ok = s.take(']')
	case c == '"':
		_, ok = s.str()
	case c == 't':
		ok = s.word("true")
	case c == 'f':
		ok = s.word("false")
	case c == 'n':
		ok = s.word("null")
	default:
		ok = s.number()
	}
	return s.b[begin:s.i], ok
}

func (s *scanner) word(w string) bool {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return false
	}
	s.i += len(w)
	return true
}

func (s *scanner) digits() bool {
	begin := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > begin
}

func (s *scanner) one(a, b byte) bool {
	if s.i < len(s.b) && (s.b[s.i] == a || s.b[s.i] == b) {
		s.i++
		return true
	}
	return false
}

func (s *scanner) number() bool {
	s.one('-', '-')
	if !s.one('0', '0') && !s.digits() {
		return false
	}
	if s.one('.', '.') && !s.digits() {
		return false
	}
	if s.one('e', 'E') {
		s.one('+', '-')
		return s.digits()
	}
	return true
}

// integer is a JSON number that is an int64; anything else is false.
func integer(b []byte) (int64, bool) {
	negative := len(b) > 1 && b[0] == '-'
	if negative {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	switch {
	case negative && n <= 1<<63:
		return -int64(n), true
	case !negative && n < 1<<63:
		return int64(n), true
	}
	return 0, false
}
