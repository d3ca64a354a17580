package hostnet

// StartTime is the start time, for FindProcess, of the process that has this number on this machine now.
func StartTime(pid int) (uint64, error) {
	s, err := readStat(pid)
	return s.Start, err
}
