package strategy

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// eager is how much shorter than usual the first pause of a poll is: many things are done at once.
const eager = 8

// endWithin is how long the end of something at the engine may take: snapshots are merged meanwhile.
const endWithin = 20 * time.Minute

// Waiting is how an engine is waited for.
type Waiting struct {
	Poll     time.Duration // between two looks
	Patience time.Duration // how long it may not answer
	Report   Reporter
}

// Until calls f until it says so, with a pause between calls. An engine that does not answer is asked again for as long as
// our patience lasts: f must be such that it can be repeated.
func (w Waiting) Until(parent context.Context, within time.Duration, f func() (bool, error)) error {
	const op = "wait for the engine"
	ctx, cancel := context.WithTimeout(parent, within)
	defer cancel()
	var silent time.Time // since when it does not answer
	for wait := w.Poll / eager; ; wait = min(2*wait, w.Poll) {
		done, err := f()
		switch {
		case err == nil && done:
			return nil
		case err == nil:
			silent = time.Time{}
		case !errs.Is(err, errs.Transient) || !silent.IsZero() && time.Since(silent) > w.Patience:
			return err
		case silent.IsZero():
			silent = time.Now()
			w.Report.Detail("waiting, since there is no answer: " + err.Error())
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			switch {
			case parent.Err() != nil:
				return errs.Wrap(op, "", parent.Err())
			case err != nil:
				return err
			}
			return errs.Text(op, "", errs.Transient, "it was not done within "+within.String()).
				WithNext("Look at the VM's events and tasks in the engine.")
		}
	}
}

// Patiently calls f once, and again as long as the engine does not answer.
func (w Waiting) Patiently(ctx context.Context, f func() error) error {
	return w.Until(ctx, endWithin, func() (bool, error) {
		err := f()
		return err == nil, err
	})
}
