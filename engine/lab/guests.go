package lab

import "qmigrate/guest/wire"

// DefaultMemory is the RAM in bytes that a guest has unless it is told: half of it is under the memory check, and Debian's programs need the rest.
func DefaultMemory(guest string) int64 {
	if guest == wire.DebianGuest {
		return 512 << 20
	}
	return 256 << 20
}
