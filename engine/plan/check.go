package plan

import "strings"

// ours tells whether the address is a descriptor that we hand over: one with a name. A number is one that QEMU was
// started with.
func HandsOver(uri string) bool {
	name, ok := strings.CutPrefix(uri, "fd:")
	return ok && name != "" && (name[0] < '0' || name[0] > '9')
}
