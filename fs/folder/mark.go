package folder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The bytes of a mark; docs/format/folder.md describes them. All of these are stored: never change.
const (
	markName    = "user.holdfast.node"
	markVersion = 1
	markLen     = 44 // without the key
	maxKey      = 128

	flagExclusive = 1 // made by an exclusive creation with the verifier
	flagGraft     = 2 // the content is the stream of the key
	flagsKnown    = flagExclusive | flagGraft
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mark is what is stored with an inode.
type mark struct {
	kind      fs.Kind
	exclusive bool
	graft     bool
	tree      uint64 // the tree that gave out the ID
	id        fs.ID
	perm      uint32
	uid, gid  uint32
	verifier  [8]byte
	key       string
}

func (m *mark) encode() []byte {
	b := make([]byte, markLen, markLen+len(m.key))
	b[0], b[1], b[3] = markVersion, byte(m.kind), byte(len(m.key))
	if m.exclusive {
		b[2] |= flagExclusive
	}
	if m.graft {
		b[2] |= flagGraft
	}
	le := binary.LittleEndian
	le.PutUint64(b[8:], m.tree)
	le.PutUint64(b[16:], uint64(m.id))
	le.PutUint32(b[24:], m.perm)
	le.PutUint32(b[28:], m.uid)
	le.PutUint32(b[32:], m.gid)
	copy(b[36:], m.verifier[:])
	b = append(b, m.key...)
	le.PutUint32(b[4:], markSum(b))
	return b
}

// markSum is taken over all but itself.
func markSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:4], castagnoli), castagnoli, b[8:])
}

func decodeMark(b []byte) (mark, error) {
	le := binary.LittleEndian
	switch {
	case len(b) < 1:
		return mark{}, errors.New("the mark is empty")
	case b[0] != markVersion:
		return mark{}, errs.Text("read mark", "", errs.Unsupported, fmt.Sprintf("version %d is not known", b[0]))
	case len(b) < markLen || len(b) != markLen+int(b[3]) || le.Uint32(b[4:]) != markSum(b):
		return mark{}, errors.New("the mark's length or checksum is wrong")
	}
	m := mark{
		kind: fs.Kind(b[1]), exclusive: b[2]&flagExclusive != 0, graft: b[2]&flagGraft != 0,
		tree: le.Uint64(b[8:]), id: fs.ID(le.Uint64(b[16:])),
		perm: le.Uint32(b[24:]), uid: le.Uint32(b[28:]), gid: le.Uint32(b[32:]),
		verifier: [8]byte(b[36:44]), key: string(b[markLen:]),
	}
	if m.kind < fs.KindFile || m.kind > fs.KindSymlink || b[2]&^byte(flagsKnown) != 0 || m.id == 0 || m.perm > 0o7777 ||
		m.graft != (m.key != "") || m.graft && m.kind != fs.KindFile {
		return mark{}, errors.New("the mark's figures make no sense")
	}
	return m, nil
}

// readMark returns the mark of an open file; ok is false when it has none.
func readMark(f *os.File) (m mark, ok bool, err error) {
	b := make([]byte, markLen+256)
	n := 0
	for {
		n, err = unix.Fgetxattr(int(f.Fd()), markName, b)
		if err != unix.EINTR {
			break
		}
	}
	switch err {
	case nil:
	case unix.ENODATA:
		return mark{}, false, nil
	case unix.ENOTSUP:
		return mark{}, false, errs.New("read mark", f.Name(), errs.Unsupported, err).
			WithNext("Keep Holdfast's state on a file system with extended attributes: ext4, xfs or btrfs.")
	default:
		return mark{}, false, &os.PathError{Op: "getxattr", Path: f.Name(), Err: err}
	}
	if m, err = decodeMark(b[:n]); err != nil {
		kind := errs.Corrupt
		if errs.Is(err, errs.Unsupported) {
			kind = errs.Unsupported
		}
		return mark{}, false, errs.New("read mark", f.Name(), kind, err)
	}
	return m, true, nil
}
