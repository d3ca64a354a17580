package behind

import (
	"testing"

	"qmigrate/guest/guesttest"
)

func TestMain(m *testing.M) { guesttest.Main(m) }
