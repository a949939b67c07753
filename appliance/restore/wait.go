package restore

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Deadlines for the engine's own work: they bound a hang.
const (
	diskWithin     = 20 * time.Minute // a preallocated disk is written once from end to end
	transferWithin = 20 * time.Minute
	vmWithin       = 10 * time.Minute
	undoWithin     = 30 * time.Minute
)

// eager is how much shorter than usual the first pause of a poll is: many things are done at once.
const eager = 8

// poll calls f until it says so, with a pause between calls that grows to the usual one. What the engine refuses because
// something is locked is asked again until the deadline, and an engine that does not answer for as long as our patience
// lasts: f must be such that it can be repeated.
func (w *worker) poll(parent context.Context, within time.Duration, what string, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(parent, within)
	defer cancel()
	var silent time.Time // since when it does not answer
	for wait := w.Poll / eager; ; wait = min(2*wait, w.Poll) {
		done, err := f()
		switch {
		case err == nil && done:
			return nil
		case err == nil || errs.Is(err, errs.Busy):
			silent = time.Time{}
		case !errs.Is(err, errs.Transient) || !silent.IsZero() && time.Since(silent) > w.Patience:
			return err
		case silent.IsZero():
			silent = time.Now()
			w.report.Detail("waiting, since there is no answer: " + err.Error())
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			switch {
			case parent.Err() != nil:
				err = parent.Err()
			case err == nil:
				err = errs.Text("wait for the engine", "", errs.Transient, "it was not done within "+within.String()).
					WithNext("Look at the events and tasks in the engine.")
			}
			return errs.Wrap(what, "", err)
		}
	}
}

// patient calls f once, and again as long as the engine does not answer or something is locked.
func (w *worker) patient(ctx context.Context, within time.Duration, what string, f func() error) error {
	return w.poll(ctx, within, what, func() (bool, error) {
		err := f()
		return err == nil, err
	})
}

// gone makes no error of what is not there.
func gone(err error) error {
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}
