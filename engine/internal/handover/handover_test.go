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
			for _, rp := range []bool{false} {
				c := Config{Source: v, Destination: v, Mode: md, ReturnPath: rp, Faults: 1}
				if os.Getenv("TRY") == "2" {
					c.Faults, c.Asks, c.Third = 1, 1, 1
				}
				if os.Getenv("TRY") == "3" {
					c.Faults, c.Crashes, c.Recovers = 1, 1, 1
				}
				switch os.Getenv("TRY") {
				case "4":
					c.Faults = 2
				case "5":
					c.Faults, c.Third, c.Crashes, c.Recovers = 1, 1, 1, 1
				case "6":
					c.Hangs, c.Slow = true, 1
				case "7":
					c.Unknown, c.Asks = true, 1
				case "8":
					c.NoLocks, c.Asks = true, 1
				case "9":
					c.Release, c.Sick, c.Asks = true, true, 1
				case "10":
					c.Theirs, c.Third, c.Asks = true, 1, 1
				case "11":
					c.Faults, c.Elsewhere, c.Asks, c.Mode, c.ReturnPath = 0, true, 1, stopAndCopy, false
				case "12":
					c.Late, c.Asks = true, 1
				case "13":
					c.Destination, c.Asks, c.Late = (v+1)%3, 1, true
				case "14":
					c.Destination, c.Asks, c.Late = (v+2)%3, 1, true
				case "15":
					c.Unknown, c.Faults, c.Crashes, c.Recovers = true, 1, 1, 1
				case "16":
					c.Arrived, c.Asks, c.Theirs, c.Third = true, 1, true, 1
				case "17":
					c.Destination, c.Faults, c.Crashes, c.Recovers, c.Late = (v+1)%3, 1, 1, 1, true
				case "18":
					c.Destination, c.Faults, c.Crashes, c.Recovers, c.Late = (v+2)%3, 1, 1, 1, true
				case "19":
					c.NoLocks, c.Faults, c.Crashes, c.Recovers = true, 1, 1, 1
				}
				begun := time.Now()
				r := Explore(c)
				fmt.Println(md, v, rp, r, time.Since(begun).Round(time.Millisecond))
			}
		}
	}
}
