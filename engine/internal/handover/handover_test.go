package handover

import (
	"fmt"
	"os"
	"testing"
	"time"
)

func TestTry(t *testing.T) {
	if os.Getenv("TRY") == "" {
		t.Skip()
	}
	for _, md := range []mode{preCopy, stopAndCopy, postCopy} {
		for v := v7; v <= v11; v++ {
			for _, rp := range []bool{true} {
				c := Config{Source: v, Destination: v, Mode: md, ReturnPath: rp, Faults: 1}
				if os.Getenv("TRY") == "2" {
					c.Faults, c.Asks, c.Third = 1, 1, 1
				}
				if os.Getenv("TRY") == "3" {
					c.Faults, c.Crashes, c.Recovers = 1, 1, 1
				}
				begun := time.Now()
				r := Explore(c)
				fmt.Println(md, v, rp, r, time.Since(begun).Round(time.Millisecond))
			}
		}
	}
}
