// Package mark is the names of what hostnet makes in the kernel, qmig-OWNER-HOST, and whose they are. It touches
// nothing.
package mark

import (
	"path/filepath"
	"strings"
)

// Prefix begins all names: qmig-OWNER-HOST.
const Prefix = "qmig-"

// IsOwner: letters, digits, _ and, but in front, -.
func IsOwner(s string) bool { return s != "" && s[0] != '-' && len(s) <= 64 && onlyWord(s, "-") }

// IsHost: letters, digits and _, as many as leave room for the 7 bytes of qmigup- in a device's name of 15 bytes.
func IsHost(s string) bool { return s != "" && len(s) <= 8 && onlyWord(s, "") }

func onlyWord(s, also string) bool {
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"+also) == ""
}

// ownerOf reads the mark of a namespace's name. An owner may have a - and a host may not, so the last one parts them.
func Owner(namespace string) (owner string, ok bool) {
	rest, ok := strings.CutPrefix(filepath.Base(namespace), Prefix)
	i := strings.LastIndexByte(rest, '-')
	if !ok || i < 0 {
		return "", false
	}
	owner, host := rest[:i], rest[i+1:]
	return owner, IsOwner(owner) && IsHost(host)
}
