package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// stepWithin is how long a chapter may take.
const stepWithin = 6 * time.Minute

// step is one chapter of a story.
type step struct {
	title string
	do    func(context.Context) (result string, err error)
}

// play plays the chapters in order and ends with a table of them, or at the first thing that is not as it should be.
func play(ctx context.Context, cancel context.CancelCauseFunc, tell *narrator, steps []step) error {
	begun := time.Now()
	for _, s := range steps {
		if err := chapter(ctx, cancel, tell, s); err != nil {
			return errs.Wrap("play the scenario, chapter", fmt.Sprintf("%q", s.title), err)
		}
	}
	tell.summary(time.Since(begun))
	return nil
}

// chapter plays one chapter. Machines and servers live on into the next ones, so they hang on the context of the whole
// play, and a chapter that takes too long ends the play.
func chapter(ctx context.Context, cancel context.CancelCauseFunc, tell *narrator, s step) error {
	late := time.AfterFunc(stepWithin, func() {
		cancel(errs.Text("wait for the end of", "the chapter", errs.Canceled, "it took longer than "+stepWithin.String()))
	})
	defer late.Stop()
	tell.chapter(s.title)
	begun := time.Now()
	result, err := s.do(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil && cause != ctx.Err() {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	if err != nil {
		return err
	}
	tell.done(s.title, result, time.Since(begun))
	return nil
}
