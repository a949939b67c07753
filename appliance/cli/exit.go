package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The exit codes. They are promises to scripts: docs/cli.md lists them.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2 // the command line, or the input named on it, makes no sense
	exitNotFound    = 3
	exitConflict    = 4 // somebody else holds it, or it exists already
	exitPartial     = 5
	exitCorrupt     = 6 // stored or given bytes are not what they should be; a verification failed
	exitDenied      = 7
	exitTimeout     = 8
	exitUnreachable = 9
	exitInterrupted = 130
)

// codes gives every kind of error its exit code.
var codes = [len(errs.Kinds)]int{
	errs.Bug: exitError, errs.Invalid: exitUsage, errs.NotFound: exitNotFound, errs.Exists: exitConflict,
	errs.Denied: exitDenied, errs.Busy: exitConflict, errs.Transient: exitUnreachable, errs.Stale: exitConflict,
	errs.NoSpace: exitError, errs.Corrupt: exitCorrupt, errs.Unsupported: exitError, errs.Canceled: exitInterrupted,
}

func exitCode(ctx context.Context, err error) int {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return exitTimeout
	}
	var p *partial
	if errors.As(err, &p) {
		return p.code
	}
	return codes[errs.KindOf(err)]
}

// nexts says for every kind what a person can do when the error itself does not say it.
var nexts = [len(errs.Kinds)]string{
	errs.Bug:         "This is a fault of Holdfast: please report these lines, and what the command was.",
	errs.Invalid:     "Correct what the command was given; its --help says what it takes.",
	errs.NotFound:    "Check the name, and that the disk it lies on is mounted.",
	errs.Exists:      "Choose another name, or move what is there out of the way.",
	errs.Denied:      "Run the command as a user who may do that, or correct owner and mode of what is named.",
	errs.Busy:        "Wait until the other one has ended, then run the same command again.",
	errs.Transient:   "Run the same command again; if that goes on, look at the network and the disk.",
	errs.Stale:       "Look again at what is there now, then run the command again.",
	errs.NoSpace:     "Make room on that disk, then run the same command again; what was stored before is not affected.",
	errs.Corrupt:     "Take a good copy of what is damaged, and look at the health of the disk it lies on.",
	errs.Unsupported: "This version cannot do that; docs/cli.md says what it can.",
	errs.Canceled:    "It was interrupted, and nothing was left half done: run the same command again.",
}

// nextStep returns what a person can do about an error.
func nextStep(err error) string {
	var p *partial
	if errors.As(err, &p) {
		return p.next
	}
	var h *hinted
	if errors.As(err, &h) {
		return h.next
	}
	if next := errs.NextStep(err); next != "" {
		return next
	}
	return nexts[errs.KindOf(err)]
}

// partial ends a command that did print a result, but not a good one.
type partial struct {
	code int
	text string
	next string
}

func (p *partial) Error() string { return p.text }

// count writes a number with its noun.
func count(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
