package clock

import (
	"context"
	"sync"
	"time"
)

// Every is how often a follower looks.
const Every = time.Second

// lookLimit is how long one look may take. A look that takes longer is left out.
const lookLimit = 5 * time.Second

// Follower looks at a host's clock at once and then each second, until it is stopped.
type Follower struct {
	look func(context.Context) (Look, error)
	stop context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	looks []Look
	fit   *Fit
	err   error
	pause time.Time // until when the looks are left out
}

// Follow looks once, and goes on to do so. The error is that of the first look.
func Follow(ctx context.Context, look func(context.Context) (Look, error)) (*Follower, error) {
	f := &Follower{look: look, done: make(chan struct{})}
	if err := f.once(ctx); err != nil {
		return nil, err
	}
	ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx))
	if f.fit == nil { // there is nothing to follow
		f.stop()
		close(f.done)
		return f, nil
	}
	go func() {
		defer close(f.done)
		tick := time.NewTicker(Every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if f.paused() {
					continue
				}
				_ = f.once(ctx) // kept for Err: the looks before it stand, and the next may succeed
			}
		}
	}()
	return f, nil
}

// once looks once.
func (f *Follower) once(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	l, err := f.look(limited)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err = err; err == nil {
		f.looks = append(f.looks, l)
		f.fit = Compare(f.looks)
	}
	return err
}

// Pause leaves out the looks of the time that comes now; 0: none.
func (f *Follower) Pause(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pause = time.Now().Add(d)
}

func (f *Follower) paused() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Before(f.pause)
}

// Fit is what the looks so far tell; nil: the host's clock is ours.
func (f *Follower) Fit() *Fit {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fit
}

// Ours is when by our clock theirs showed an instant. A nil follower is of our own clock.
func (f *Follower) Ours(theirs time.Time) time.Time {
	if f == nil || f.Fit() == nil {
		return theirs
	}
	return f.Fit().Place(theirs, time.Time{}).At
}

// Each are instants of theirs, as ours.
func (f *Follower) Each(theirs []time.Time) []time.Time {
	if f == nil || f.Fit() == nil {
		return theirs
	}
	ours := make([]time.Time, len(theirs))
	for i, t := range theirs {
		ours[i] = f.Ours(t)
	}
	return ours
}

// Error is that of Ours.
func (f *Follower) Error(theirs time.Time) time.Duration {
	if f == nil || f.Fit() == nil {
		return 0
	}
	return f.Fit().Place(theirs, time.Time{}).Error
}

// Err is why the last look failed; nil if it did not.
func (f *Follower) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Stop looks a last time, and no more. Harmless twice.
func (f *Follower) Stop(ctx context.Context) {
	f.Close()
	if f.Fit() != nil {
		_ = f.once(ctx)
	}
}

// Close looks no more. Harmless twice.
func (f *Follower) Close() {
	f.stop()
	<-f.done
}
