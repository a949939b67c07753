package fs

import (
	"errors"
	"io"
	iofs "io/fs"
	"syscall"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Status is the closed list of what can go wrong in a tree. It is an error; the zero value is "no error" and is never
// returned as one. fs/fuse maps it to errno and nfsd to nfsstat3, each by an array over Statuses that a test walks.
type Status uint8

// The statuses. Numbers never change.
const (
	StatusOK Status = iota
	StatusPermission
	StatusNotFound
	StatusIO
	StatusAccess
	StatusExists
	StatusCrossDevice
	StatusNotDir
	StatusIsDir
	StatusInvalid
	StatusTooLarge
	StatusNoSpace
	StatusReadOnly
	StatusTooManyLinks
	StatusNameTooLong
	StatusNotEmpty
	StatusStale
	StatusBadHandle
	StatusNotSync
	StatusBadCookie
	StatusNotSupported
	StatusServerFault
	// StatusDelay: not now, ask again. A guest waits instead of seeing an I/O error; for images only, while the store
	// is away, never for small files that a host's monitor reads.
	StatusDelay
)

// Statuses lists every status, for tables and the tests that walk them.
var Statuses = [...]Status{
	StatusOK, StatusPermission, StatusNotFound, StatusIO, StatusAccess, StatusExists, StatusCrossDevice, StatusNotDir,
	StatusIsDir, StatusInvalid, StatusTooLarge, StatusNoSpace, StatusReadOnly, StatusTooManyLinks, StatusNameTooLong,
	StatusNotEmpty, StatusStale, StatusBadHandle, StatusNotSync, StatusBadCookie, StatusNotSupported, StatusServerFault,
	StatusDelay,
}

var statusTexts = [len(Statuses)]string{
	"ok", "not permitted", "no such file", "input/output error", "access denied", "exists already",
	"crosses two file systems", "not a folder", "is a folder", "invalid argument", "file too large", "no space left",
	"read-only", "too many links", "name too long", "folder not empty", "stale handle", "bad handle",
	"changed in between", "bad cookie", "not supported", "server fault", "try again later",
}

// Error implements error.
func (s Status) Error() string {
	if int(s) < len(statusTexts) {
		return statusTexts[s]
	}
	return "unknown status"
}

// byKind answers an error of ours that carries no Status.
var byKind = [len(errs.Kinds)]Status{
	errs.Bug: StatusServerFault, errs.Invalid: StatusInvalid, errs.NotFound: StatusNotFound,
	errs.Exists: StatusExists, errs.Denied: StatusAccess, errs.Busy: StatusDelay, errs.Transient: StatusDelay,
	errs.Stale: StatusStale, errs.NoSpace: StatusNoSpace, errs.Corrupt: StatusIO,
	errs.Unsupported: StatusNotSupported, errs.Canceled: StatusDelay,
}

// StatusOf translates an error: StatusOK for nil, the Status in its chain if there is one, else by the errno or the
// errs.Kind in it. io.EOF is no error here.
func StatusOf(err error) Status {
	if err == nil || err == io.EOF {
		return StatusOK
	}
	var s Status
	if errors.As(err, &s) {
		return s
	}
	var e *errs.Error
	if !errors.As(err, &e) {
		for _, c := range byErrno {
			if errors.Is(err, c.err) {
				return c.status
			}
		}
	}
	return byKind[errs.KindOf(err)]
}

var byErrno = []struct {
	err    error
	status Status
}{
	{syscall.ENOTDIR, StatusNotDir}, {syscall.EISDIR, StatusIsDir}, {syscall.ENOTEMPTY, StatusNotEmpty},
	{syscall.EROFS, StatusReadOnly}, {syscall.ENAMETOOLONG, StatusNameTooLong}, {syscall.EFBIG, StatusTooLarge},
	{syscall.EMLINK, StatusTooManyLinks}, {syscall.EXDEV, StatusCrossDevice}, {syscall.EPERM, StatusPermission},
	{syscall.EIO, StatusIO}, {syscall.EINVAL, StatusInvalid}, {syscall.ENOTSUP, StatusNotSupported},
	{iofs.ErrNotExist, StatusNotFound}, {iofs.ErrExist, StatusExists},
}
