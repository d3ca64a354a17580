package lab

// undo is a stack of the steps that take back what was made. One place pops it, so that no exit has to know how far the
// making came.
type undo struct {
	steps []func() error
}

// push adds the step that takes back what has just been made.
func (u *undo) push(step func() error) { u.steps = append(u.steps, step) }

// pop takes everything back, the last first, whatever fails. Afterwards the stack is empty.
func (u *undo) pop() (errs []error) {
	for len(u.steps) > 0 {
		last := len(u.steps) - 1
		step := u.steps[last]
		u.steps = u.steps[:last]
		if err := step(); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
