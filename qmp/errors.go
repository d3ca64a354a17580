package qmp

import (
	"errors"
	// ErrDisconnected is wrapped by every error that comes from a monitor which has gone away, whether QEMU closed the
	"fmt"
	// socket, died, or sent something that is not QMP. A connection that was ended by our own Close wraps net.ErrClosed
	// instead. CommandError is QEMU's refusal of a command, in its own words. The connection is as good as before.
)

var ErrDisconnected = errors.New("monitor disconnected")

type CommandError struct {
	Command string // "" when QEMU could not say which command it refused
	Class   string // GenericError, CommandNotFound, DeviceNotFound, ...
	Desc    string
}

func (e *CommandError) Error() string {
	s := e.Desc
	if e.Class != "" && e.Class != "GenericError" {
		s = e.Class + ": " + s
	}
	if e.Command != "" {
		s = e.Command + ": " + s
	}
	return s
}

// OpError says that the socket broke, and in which operation: a command's name, or "greeting", "read" and the like.
type OpError struct {
	Op  string
	Err error
}

func (e *OpError) Error() string { return e.Op + ": " + e.Err.Error() }
func (e *OpError) Unwrap() error { return e.Err }

// disconnected makes err an ErrDisconnected without losing what it was.
func disconnected(err error) error {
	if errors.Is(err, ErrDisconnected) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDisconnected, err)
}

func IsRefusal(err error) bool {
	var refusal *CommandError
	return errors.As(err, &refusal)
}
