package cli

import (
	"context"
	"errors"

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
	return codes[errs.KindOf(err)]
}

// partial ends a command that did print a result, but not a good one.
type partial struct {
	code int
	text string
}

func (p *partial) Error() string { return p.text }
