package linux

import (
	"bytes"
	"fmt"
	"os"
	"path"
)

// archive is an initramfs as the kernel reads it: a cpio archive of the form "newc" (its buffer-format documentation:
// headers are numbers of eight hexadecimal digits, names and contents are padded to four bytes).
type archive struct {
	buf  bytes.Buffer
	ino  int
	seen map[string]bool
}

// Modes of entries, as in stat(2).
const (
	modeFolder = 0o040000
	modeFile   = 0o100000
	modeDevice = 0o020000
)

// newArchive returns an archive with what the first program needs before it can do anything: a console to speak on, and
// /dev/null, without which a Go program does not start.
func newArchive() *archive {
	a := &archive{seen: map[string]bool{"/": true}}
	a.folder("/dev")
	a.entry("/dev/console", modeDevice|0o600, 5, 1, nil)
	a.entry("/dev/null", modeDevice|0o666, 1, 3, nil)
	return a
}

// entry writes one entry.
func (a *archive) entry(name string, mode, major, minor int, content []byte) {
	a.ino++
	name = name[1:] + "\x00"
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s",
		a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name), 0, name)
	a.pad()
	a.buf.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

// folder adds a folder and those above it.
func (a *archive) folder(name string) {
	if a.seen[name] {
		return
	}
	a.folder(path.Dir(name))
	a.seen[name] = true
	a.entry(name, modeFolder|0o755, 0, 0, nil)
}

// file adds a file. The first one of a name stays.
func (a *archive) file(name string, perm int, content []byte) {
	if a.seen[name] {
		return
	}
	a.folder(path.Dir(name))
	a.seen[name] = true
	a.entry(name, modeFile|perm, 0, 0, content)
}

// copy adds a program of this machine's.
func (a *archive) copy(name, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.file(name, 0o755, content)
	return nil
}

// bytes ends the archive.
func (a *archive) bytes() []byte {
	a.entry("/TRAILER!!!", 0, 0, 0, nil)
	return a.buf.Bytes()
}
