package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"syscall"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestStatusTextsAreTotalAndDistinct(t *testing.T) {
	seen := map[string]Status{}
	for i, s := range Statuses {
		if int(s) != i {
			t.Errorf("Statuses[%d] = %d: statuses are numbered in order and never change", i, s)
		}
		text := s.Error()
		if other, ok := seen[text]; ok || text == "" || text == "unknown status" {
			t.Errorf("status %d has the text %q, as has %d", s, text, other)
		}
		seen[text] = s
	}
	if Status(len(Statuses)).Error() != "unknown status" {
		t.Error("a foreign status must not pass for a known one")
	}
}

func TestStatusOfEveryStatus(t *testing.T) {
	for _, s := range Statuses[1:] {
		for what, err := range map[string]error{
			"bare": s, "wrapped": fmt.Errorf("read: %w", s), "in an Error": errs.New("read", "f", errs.Bug, s),
		} {
			if got := StatusOf(err); got != s {
				t.Errorf("%v, %s: %v", s, what, got)
			}
		}
	}
}

// TestStatusOfEveryKind writes down what a client is told about each kind: a new kind fails here until somebody decides.
func TestStatusOfEveryKind(t *testing.T) {
	want := map[errs.Kind]Status{
		errs.Bug: StatusServerFault, errs.Invalid: StatusInvalid, errs.NotFound: StatusNotFound,
		errs.Exists: StatusExists, errs.Denied: StatusAccess, errs.Busy: StatusDelay, errs.Transient: StatusDelay,
		errs.Stale: StatusStale, errs.NoSpace: StatusNoSpace, errs.Corrupt: StatusIO,
		errs.Unsupported: StatusNotSupported, errs.Canceled: StatusDelay,
	}
	for _, k := range errs.Kinds {
		w, ok := want[k]
		if !ok {
			t.Errorf("kind %q: nobody decided what a client is told", k)
			continue
		}
		if got := StatusOf(errs.New("read", "f", k, nil)); got != w {
			t.Errorf("kind %q: %q, want %q", k, got, w)
		}
		if got := StatusOf(errs.New("read", "f", k, syscall.ENOTDIR)); got != w {
			t.Errorf("kind %q around an errno: %q, want %q: the outermost kind wins", k, got, w)
		}
		if k.Retryable() != (w == StatusDelay) && k != errs.Canceled {
			t.Errorf("kind %q: what is worth a retry must make a client wait, and nothing else", k)
		}
	}
}

func TestStatusOfForeignErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Status
	}{
		{nil, StatusOK}, {io.EOF, StatusOK}, {errors.New("plain"), StatusServerFault},
		{context.Canceled, StatusDelay}, {context.DeadlineExceeded, StatusDelay},
		{syscall.ENOTDIR, StatusNotDir}, {syscall.EISDIR, StatusIsDir}, {syscall.ENOTEMPTY, StatusNotEmpty},
		{syscall.EROFS, StatusReadOnly}, {syscall.ENAMETOOLONG, StatusNameTooLong}, {syscall.EFBIG, StatusTooLarge},
		{syscall.EMLINK, StatusTooManyLinks}, {syscall.EXDEV, StatusCrossDevice}, {syscall.EPERM, StatusPermission},
		{syscall.EACCES, StatusAccess}, {syscall.EIO, StatusIO}, {syscall.EINVAL, StatusInvalid},
		{syscall.ENOTSUP, StatusNotSupported}, {syscall.ENOENT, StatusNotFound}, {syscall.EEXIST, StatusExists},
		{syscall.ENOSPC, StatusNoSpace}, {syscall.EDQUOT, StatusNoSpace}, {iofs.ErrNotExist, StatusNotFound},
		{&iofs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT}, StatusNotFound},
		{fmt.Errorf("write: %w", syscall.ENOSPC), StatusNoSpace},
	} {
		if got := StatusOf(c.err); got != c.want {
			t.Errorf("StatusOf(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestCheckName(t *testing.T) {
	long := make([]byte, MaxName+1)
	for i := range long {
		long[i] = 'n'
	}
	for name, want := range map[string]Status{
		"a": StatusOK, "...": StatusOK, " ": StatusOK, "\xff\n": StatusOK, string(long[1:]): StatusOK,
		"": StatusInvalid, ".": StatusInvalid, "..": StatusInvalid, "a/b": StatusInvalid, "/": StatusInvalid,
		"a\x00b": StatusInvalid, string(long): StatusNameTooLong,
	} {
		if got := StatusOf(CheckName(name)); got != want {
			t.Errorf("CheckName(%q): %q, want %q", name, got, want)
		}
	}
}
