package wire

import "testing"

func TestBlock(t *testing.T) {
	b, scratch := make([]byte, BlockSize), make([]byte, BlockSize)
	if n := BlockNumber(b, 1, 7, scratch); n != BlockBlank {
		t.Errorf("an empty block is %d", n)
	}
	PutBlock(b, 1, 7, 42)
	if n := BlockNumber(b, 1, 7, scratch); n != 42 {
		t.Errorf("record 42 is read as %d", n)
	}
	for what, n := range map[string]int64{
		"another seed":  BlockNumber(b, 2, 7, scratch),
		"another block": BlockNumber(b, 1, 8, scratch),
	} {
		if n != BlockWrong {
			t.Errorf("%s: read as %d", what, n)
		}
	}
	for bit := range 8 * BlockSize { // one flipped bit anywhere is found
		b[bit/8] ^= 1 << (bit % 8)
		if bit%97 == 0 || bit < 400 {
			if n := BlockNumber(b, 1, 7, scratch); n != BlockWrong {
				t.Fatalf("with bit %d flipped it is read as %d", bit, n)
			}
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	old := append([]byte{}, b...)
	PutBlock(b, 1, 7, 43)
	copy(b[BlockSize/2:], old[BlockSize/2:])
	if n := BlockNumber(b, 1, 7, scratch); n != BlockWrong {
		t.Errorf("half of record 43 over 42 is read as %d", n)
	}
}
