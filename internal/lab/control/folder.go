package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Names in a lab's folder.
const (
	// LogName is what the lab's parts say.
	LogName = "lab.log"
	// lockName marks a folder as a lab's, and is locked as long as anything of the lab runs.
	lockName   = "holdfast-lab.lock"
	socketName = "lab.sock"
	infoName   = "lab.json"
	// centerName and nodeName are the data center's folder and the node's.
	centerName = "datacenter"
	nodeName   = "node"
	tempName   = "tmp"
)

// contents is what a lab makes in its folder besides log and lock. Nothing else is ever removed from there.
var contents = []string{socketName, infoName, centerName, nodeName, tempName}

// longestSocket is the longest path of a socket below the folder: the host's, for a disk in a backup.
const longestSocket = tempName + "/holdfast-host-1234567890/12345678-1234-1234-1234-123456789012/nbd1"

// maxSocketPath is the longest path of a socket in bytes (sockaddr_un, unix(7)).
const maxSocketPath = 107

// MaxDir is the longest path of a lab's folder in bytes.
const MaxDir = maxSocketPath - len("/") - len(longestSocket)

// TempDir is where a lab in a folder has its temporary files, so that not even a killed one leaves any elsewhere.
// Its process must be started with TMPDIR set to it.
func TempDir(dir string) string { return filepath.Join(dir, tempName) }

const opStart = "start a lab in"

// Check tells whether a lab may begin in a folder, which need not exist: whether it is empty or was a lab's, and no lab
// is up there. It changes nothing.
func Check(dir string) error {
	if len(dir) > MaxDir {
		return errs.Text(opStart, dir, errs.Invalid, fmt.Sprintf("sockets lie in it, so its path has at most %d bytes", MaxDir)).
			WithNext("Name a shorter one with --dir.")
	}
	info, err := os.Lstat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.Wrap(opStart, dir, err)
	}
	// Whoever else owns the folder could lead us to other files by links.
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() {
		return errs.Text(opStart, dir, errs.Denied, "it is not a folder of this user's").WithNext("Name another with --dir.")
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return errs.Wrap(opStart, dir, err)
	}
	if !isLab(dir) && slices.ContainsFunc(names, func(e os.DirEntry) bool { return e.Name() != LogName }) {
		return errs.Text(opStart, dir, errs.Exists, "the folder is not empty, and no lab was there before").
			WithNext("Name another with --dir.")
	}
	lock, err := lockDir(dir, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errs.Is(err, errs.Busy):
		return errs.Text(opStart, dir, errs.Exists, "one is up there, or starting").
			WithNext("End it first: holdfast-lab down. Or use it: where everything is says " + filepath.Join(dir, infoName))
	case err != nil:
		return err
	}
	return lock.Close()
}

// isLab tells whether a folder is or was a lab's.
func isLab(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, lockName))
	return err == nil
}

// Folder is a folder that a lab has to itself until it is closed.
type Folder struct {
	dir  string
	lock *os.File
}

// Take takes a folder for a lab, as far as Check allows, and removes what an earlier one left in it.
func Take(dir string) (*Folder, error) {
	if err := Check(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errs.Wrap(opStart, dir, err)
	}
	lock, err := lockDir(dir, os.O_CREATE)
	if errs.Is(err, errs.Busy) {
		return nil, errs.Text(opStart, dir, errs.Exists, "one was started there a moment ago")
	}
	if err != nil {
		return nil, err
	}
	f := &Folder{dir: dir, lock: lock}
	err = f.clear()
	if err == nil {
		err = os.Mkdir(TempDir(dir), 0o700)
	}
	if err == nil {
		err = f.emptyLog()
	}
	if err != nil {
		return nil, errs.Wrap(opStart, dir, errors.Join(err, f.Close()))
	}
	return f, nil
}

// Close lets go of the folder.
func (f *Folder) Close() error { return f.lock.Close() }

// clear removes what a lab makes, but not its log.
func (f *Folder) clear() error {
	var all []error
	for _, name := range contents {
		all = append(all, os.RemoveAll(filepath.Join(f.dir, name)))
	}
	return errors.Join(all...)
}

// emptyLog drops what an earlier lab has said. Whoever started this one appends to the file.
func (f *Folder) emptyLog() error {
	err := os.Truncate(filepath.Join(f.dir, LogName), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// remove removes everything of a lab, and the folder itself unless somebody has put something into it.
func (f *Folder) remove() error {
	err := f.clear()
	for _, name := range []string{LogName, lockName} { // the lock last: what was not removed is still marked as ours
		if err == nil {
			err = os.RemoveAll(filepath.Join(f.dir, name))
		}
	}
	if err != nil {
		return errs.Wrap("remove the lab in", f.dir, err)
	}
	_ = os.Remove(f.dir)
	return nil
}

// lockDir takes a folder's lock, which with the flag os.O_CREATE is made first. A lock that is held is errs.Busy.
func lockDir(dir string, flag int) (*os.File, error) {
	for {
		f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|flag, 0o600)
		if err != nil {
			return nil, errs.Wrap("lock", dir, err)
		}
		there, err := claim(f)
		if err == nil && there {
			return f, nil
		}
		_ = f.Close()
		if err != nil {
			return nil, errs.Wrap("lock", dir, err)
		}
	}
}

// claim locks a lock file. The one who held it may have removed it meanwhile: then it locks nothing.
func claim(f *os.File) (there bool, err error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, errs.New("lock", f.Name(), errs.Busy, err)
	}
	ours, err := f.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Stat(f.Name())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(ours, now), err
}

// Said returns what a lab that could not start said last in its log: the error, and what to do next.
func Said(log string) (problem, next string) {
	b, _ := os.ReadFile(log) // without a log nothing is known
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i, line := range slices.Backward(lines) {
		if text, found := strings.CutPrefix(line, "holdfast-lab: "); found {
			return text, strings.Join(lines[i+1:], " ")
		}
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return line, ""
		}
	}
	return lines[len(lines)-1], ""
}
