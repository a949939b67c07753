package folder

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The names of the side folder and in it; docs/format/folder.md. All of these are stored: never change.
const (
	sideSuffix    = ".tree"
	lockName      = "lock"
	recordName    = "record"
	stageName     = "stage"
	recordVersion = 1
	maxRecord     = 16 << 20
)

// reserve is how many IDs are taken at once from the record.
const reserve = 1024

// side is the side folder.
type side struct {
	path  string
	lock  *os.File
	stage *os.File
	dev   uint64 // the device that it is on

	// record is guarded by Tree.changing; dirty says that the disk may have an older one.
	record record
	dirty  bool
}

// record is what the side folder remembers of the tree.
type record struct {
	Version int           `json:"version"`
	Tree    uint64        `json:"tree"` // a random number, in every mark too
	Next    uint64        `json:"next"` // no ID from here on was ever used
	Grafts  []graftRecord `json:"grafts"`
}

// graftRecord says that a graft was made. That it was removed is seen from the missing file.
type graftRecord struct {
	Key  string `json:"key"`
	ID   fs.ID  `json:"id"`
	Path string `json:"path"` // the last one that was known
}

// openSide opens the side folder, made if need be, and locks it.
func openSide(name string) (_ *side, err error) {
	if err := (disk.OS{}).MkdirAll(name + "/" + stageName); err != nil {
		return nil, err
	}
	s := &side{path: name}
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	if s.lock, err = os.OpenFile(path.Join(name, lockName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EINTR {
			break
		}
	}
	if err == unix.EWOULDBLOCK {
		return nil, errs.Text("lock", s.lock.Name(), errs.Busy, "another process has this folder open").
			WithNext("Wait until the daemon that uses it has stopped.")
	} else if err != nil {
		return nil, os.NewSyscallError("flock", err)
	}
	s.stage, err = os.OpenFile(path.Join(name, stageName), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	return s, err
}

func (s *side) close() error {
	var all []error
	for _, f := range []*os.File{s.stage, s.lock} {
		if f != nil {
			all = append(all, f.Close())
		}
	}
	return errors.Join(all...)
}

// load reads the record; false means that there is none.
func (s *side) load() (bool, error) {
	name := path.Join(s.path, recordName)
	b, err := disk.ReadFile(disk.OS{}, name, maxRecord)
	if errs.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	text, sum, _ := strings.Cut(strings.TrimSuffix(string(b), "\n"), "\n")
	if sum != recordSum(text) {
		return false, errs.Text("read record", name, errs.Corrupt, "the checksum is wrong")
	}
	if err := json.Unmarshal([]byte(text), &s.record); err != nil {
		return false, errs.New("read record", name, errs.Corrupt, err)
	}
	if s.record.Version != recordVersion {
		return false, errs.Text("read record", name, errs.Unsupported,
			fmt.Sprintf("version %d is not known", s.record.Version))
	}
	if s.record.Next <= rootID || s.record.Next > 1<<62 {
		return false, errs.Text("read record", name, errs.Corrupt, "the next ID makes no sense")
	}
	return true, nil
}

func recordSum(text string) string {
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(text), castagnoli))
}

// store makes the record durable.
func (t *Tree) store() error {
	s := t.side
	s.dirty = true
	text, err := json.Marshal(s.record)
	if err != nil {
		return err
	}
	err = t.alter("publish", recordName, func() error {
		return disk.Publish(disk.OS{}, path.Join(s.path, recordName), []byte(string(text)+"\n"+recordSum(string(text))+"\n"))
	})
	s.dirty = err != nil
	return err
}

// begin brings record and folder together: both new, or both of one tree.
func (t *Tree) begin() error {
	st, err := t.statOf(t.disk)
	if err != nil {
		return err
	}
	stage, err := t.statOf(t.side.stage)
	if err != nil {
		return err
	}
	if t.side.dev = st.Dev; st.Dev != stage.Dev {
		return errs.Text("open", t.path, errs.Invalid, "the folder is a mount point: nothing can be moved into it").
			WithNext("Use a folder within that file system.")
	}
	known, err := t.side.load()
	if err != nil {
		return err
	}
	m, marked, err := readMark(t.disk)
	r := &t.side.record
	switch {
	case err != nil:
		return err
	case !known && marked:
		return errs.Text("open", t.path, errs.Corrupt, "the folder's record is missing: "+path.Join(t.side.path, recordName)).
			WithNext("Bring the folder back together with " + t.side.path + ".")
	case known && marked && (m.tree != r.Tree || m.kind != fs.KindDir || m.id != rootID):
		return errs.Text("open", t.path, errs.Corrupt, "the folder's mark and its record belong to two trees")
	case known && !marked && (r.Next > rootID+1 || len(r.Grafts) > 0):
		return errs.Text("open", t.path, errs.Corrupt, "the folder has lost its mark").
			WithNext("Copy such folders with their extended attributes (cp -a, rsync -X).")
	case !known:
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		*r = record{Version: recordVersion, Tree: binary.LittleEndian.Uint64(b[:]), Next: rootID + 1}
		if err := t.store(); err != nil {
			return err
		}
	}
	t.next.Store(r.Next)
	return t.clearStage()
}

// clearStage takes away what a crash left half made.
func (t *Tree) clearStage() error {
	names, err := t.side.stage.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := t.unlink(t.side.stage, name, 0)
		if errs.Is(err, errs.Invalid) { // EISDIR
			err = t.unlink(t.side.stage, name, unix.AT_REMOVEDIR)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// newID returns an ID that was never used. The caller holds changing.
func (t *Tree) newID() (fs.ID, error) {
	id := t.next.Load()
	if r := &t.side.record; id >= r.Next {
		r.Next = id + reserve
		if err := t.store(); err != nil {
			r.Next = id
			return 0, err
		}
	}
	t.next.Store(id + 1)
	return fs.ID(id), nil
}
