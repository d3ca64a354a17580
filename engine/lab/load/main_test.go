package load

import (
	"testing"

	"qmigrate/guest/guesttest"
	"qmigrate/hostnet"
)

func TestMain(m *testing.M) {
	hostnet.Main()
	guesttest.Main(m)
}
