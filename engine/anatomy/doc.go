// Package anatomy takes a downtime apart: the time from STOP on the source to RESUME on the destination, by what both
// QEMUs wrote into their trace logs, by their events, and by when qmigrate did its part.
//
// It is arithmetic on values: it reads no file, asks no QEMU and looks at no clock. Who calls it reads the logs, places
// their lines on its own clock, and hands over what it has. What is missing makes a part `untold`, never an error.
// docs/anatomy.md says where each part begins and ends.
package anatomy
