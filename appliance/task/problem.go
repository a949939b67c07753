package task

import (
	"errors"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// codes are the kinds of error as programs get them. They travel over the API and never change.
var codes = [len(errs.Kinds)]string{
	errs.Bug: "internal", errs.Invalid: "invalid", errs.NotFound: "not-found", errs.Exists: "exists",
	errs.Denied: "denied", errs.Busy: "busy", errs.Transient: "unreachable", errs.Stale: "stale",
	errs.NoSpace: "no-space", errs.Corrupt: "corrupt", errs.Unsupported: "unsupported", errs.Canceled: "canceled",
}

// Code returns the code of a kind of error.
func Code(k errs.Kind) string { return codes[k] }

// KindOfCode is the reverse of Code; an unknown code is errs.Bug.
func KindOfCode(code string) errs.Kind {
	for k, c := range codes {
		if c == code {
			return errs.Kind(k)
		}
	}
	return errs.Bug
}

// wasCanceled is why a task failed that somebody canceled.
const wasCanceled = "it was canceled"

// Canceled is the error of work that ended because somebody canceled its task; op and subject are the work.
func Canceled(op, subject string) error { return errs.Text(op, subject, errs.Canceled, wasCanceled) }

// undone is an error with what became of what was begun.
type undone struct {
	error
	cleaned string
}

func (u *undone) Unwrap() error { return u.error }

// Cleaned tells with an error what was cleaned up after it, or what is left: it becomes the problem's Cleaned. The
// error's text and kind stay as they are.
func Cleaned(err error, cleaned string) error { return &undone{err, cleaned} }

// ProblemOf tells an error as a problem.
func ProblemOf(err error) *appliance.Problem {
	if err == nil {
		return nil
	}
	var u *undone
	cleaned := ""
	if errors.As(err, &u) {
		cleaned = u.cleaned
		if err == error(u) {
			err = u.error
		}
	}
	p := &appliance.Problem{Cleaned: cleaned, Code: Code(errs.KindOf(err)), Title: err.Error(), Cause: err.Error(), Remedy: errs.NextStep(err)}
	if e, ok := err.(*errs.Error); ok {
		p.Title = e.Op
		if e.Subject != "" {
			p.Title += " " + e.Subject
		}
		if p.Cause = e.Kind.String(); e.Err != nil {
			p.Cause = e.Err.Error()
		}
	}
	return p
}
