// Package errs is the project's vocabulary of failure: a closed list of kinds, and an error that says what was being
// done (Op), to what (Subject), what sort of failure it was (Kind), why (Err) and what a person can do next (Next).
//
// The kind decides what the caller does: only Busy and Transient are worth a retry; Corrupt is quarantined and raised
// as an alarm and is never retried; an error of unknown kind is a Bug of ours. Callers ask errs.Is(err, errs.Corrupt);
// the outermost kind wins, so a layer that knows better re-labels by wrapping. Nobody reads error texts.
//
// Errors cross package boundaries as *errs.Error; inside a package fmt.Errorf with %w is enough. The package does not
// log, does not retry and knows no protocol: exit codes, HTTP statuses and NFS statuses are tables kept by those who
// speak them, each an array over Kinds that a test walks.
package errs

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
)

// Kind says what sort of failure an error is. The list is closed and append only: kinds travel over the API.
type Kind uint8

// The kinds of failure. Numbers never change.
const (
	Bug         Kind = iota // a broken invariant of ours, or an error nobody classified
	Invalid                 // the request or the input makes no sense; asking again changes nothing
	NotFound                // the thing asked for does not exist
	Exists                  // the thing to be made exists already
	Denied                  // no permission, wrong passphrase, not on the allow list
	Busy                    // somebody else holds it; it may be free later
	Transient               // a passing fault: network, time-out of the other side
	Stale                   // the thing existed, but what the caller holds is no longer it
	NoSpace                 // a disk, a quota or a configured bound is full
	Corrupt                 // stored bytes are not what was written
	Unsupported             // understood, but not something this version or this input can do
	Canceled                // the caller gave up, or its deadline passed
)

// Kinds lists every kind, for tables and the tests that walk them.
var Kinds = [...]Kind{Bug, Invalid, NotFound, Exists, Denied, Busy, Transient, Stale, NoSpace, Corrupt, Unsupported, Canceled}

var kindNames = [len(Kinds)]string{
	"internal error", "invalid", "not found", "exists already", "denied", "busy", "passing fault", "stale",
	"no space", "corrupt", "unsupported", "canceled",
}

// String returns the kind's name for people and logs.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown kind"
}

// Retryable tells whether the same request may succeed later without anybody's help.
func (k Kind) Retryable() bool { return k == Busy || k == Transient }

// Error is a failure as it crosses a package boundary.
type Error struct {
	Op      string // what was being done, as a verb phrase: "open store", "read pack"
	Subject string // to what: a path, a point, a name; may be empty
	Kind    Kind
	Err     error  // the cause; may be nil
	Next    string // what a person can do next, one sentence; may be empty
}

// Error prints "op subject: cause", without the next step, which the command line and the API show on a line of its own.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Subject != "" {
		b.WriteString(" ")
		b.WriteString(e.Subject)
	}
	b.WriteString(": ")
	if e.Err != nil {
		b.WriteString(e.Err.Error())
	} else {
		b.WriteString(e.Kind.String())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an *Error. cause may be nil.
func New(op, subject string, kind Kind, cause error) *Error {
	return &Error{Op: op, Subject: subject, Kind: kind, Err: cause}
}

// Text returns an *Error whose cause is a plain sentence.
func Text(op, subject string, kind Kind, cause string) *Error {
	return &Error{Op: op, Subject: subject, Kind: kind, Err: errors.New(cause)}
}

// WithNext sets what a person can do next and returns e.
func (e *Error) WithNext(next string) *Error {
	e.Next = next
	return e
}

// Wrap puts op and subject around err and keeps its kind. It returns nil when err is nil.
func Wrap(op, subject string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Subject: subject, Kind: KindOf(err), Err: err}
}

// KindOf returns the kind of the outermost *Error in err's chain. Without one it recognises the errors of the standard
// library that have an obvious kind; anything else is a Bug. A nil error has no kind: KindOf panics.
func KindOf(err error) Kind {
	if err == nil {
		panic("errs: KindOf(nil)")
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	for _, c := range standard {
		if errors.Is(err, c.err) {
			return c.kind
		}
	}
	return Bug
}

// standard gives a kind to errors of the standard library. First match wins.
var standard = []struct {
	err  error
	kind Kind
}{
	{context.Canceled, Canceled},
	{context.DeadlineExceeded, Canceled},
	{syscall.ENOSPC, NoSpace},
	{syscall.EDQUOT, NoSpace},
	{syscall.EFBIG, NoSpace},
	{syscall.EROFS, Denied},
	{syscall.EADDRINUSE, Busy},
	{syscall.ETXTBSY, Busy},
	{syscall.EBUSY, Busy},
	{syscall.EIO, Corrupt}, // the device says the bytes are not to be had
	{fs.ErrNotExist, NotFound},
	{fs.ErrExist, Exists},
	{fs.ErrPermission, Denied},
	{syscall.ENOTDIR, Invalid},
	{syscall.EISDIR, Invalid},
	{syscall.EINVAL, Invalid},
	{syscall.ECONNREFUSED, Transient},
	{syscall.ECONNRESET, Transient},
}

// Is tells whether err is of the given kind. It is false for nil.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// NextStep returns the outermost non-empty Next in err's chain, or "".
func NextStep(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Next != "" {
			return e.Next
		}
		err = e.Err
	}
	return ""
}
