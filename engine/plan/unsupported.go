package plan

import "fmt"

// UnsupportedError is something that this QEMU, or this pair, cannot do.
type UnsupportedError struct {
	Feature string // what was asked
	Have    string // what there is instead, or which names are near
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s is not supported: %s", e.Feature, e.Have)
}
