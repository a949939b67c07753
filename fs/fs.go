// Package fs is the tree that Holdfast shows to the outside: folders, small files and disk images, with no protocol in
// it. fs/fuse shows a tree to the local kernel, nfsd shows the same tree over NFS v3.
//
// Terms. A Tree has one root and finds any node by its ID, also after a restart. A Node is a Dir, a File or a Symlink.
// What a node can do beyond being read it says by implementing a further small interface (Writer, AttrSetter, Maker,
// Remover, HoleFinder); a protocol layer that does not find the interface answers StatusReadOnly or
// StatusNotSupported.
//
// Rules for every implementation:
//
//  1. IDs are never 0, are unique within the tree, and mean the same node for as long as the tree exists on disk.
//     A node that was removed answers StatusStale, it is never confused with a newer one.
//  2. Errors are Status values, or errors that StatusOf can translate by their errs.Kind.
//  3. All methods may be called concurrently, and return soon after their context ends.
//  4. Attributes are true at the moment they are given: Size is never more than reads deliver, Used counts the bytes
//     that data really takes (the oVirt engine's space checks read it).
//  5. A name is any non-empty string without '/' and NUL, at most MaxName bytes, not "." or "..". Those two never
//     appear in List and are never asked for by Lookup: the protocol layers add them.
//
// The suite in fs/fstest holds an implementation to these rules.
package fs

import (
	"context"
	"time"
)

// MaxName is the longest name in bytes that any tree accepts.
const MaxName = 255

// ID names a node within its tree. It is the inode number that clients see.
type ID uint64

// Kind says what a node is.
type Kind uint8

// The kinds of nodes.
const (
	KindFile Kind = iota + 1
	KindDir
	KindSymlink
)

// Attr is what is known about a node without reading it.
type Attr struct {
	ID    ID
	Kind  Kind
	Perm  uint32 // permission bits, 0 to 0o7777
	Nlink uint32
	UID   uint32
	GID   uint32
	Size  int64 // bytes a reader can get; for folders and links any constant
	Used  int64 // bytes of storage that stand behind it; holes are not counted
	Atime time.Time
	Mtime time.Time
	Ctime time.Time
}

// Node is anything in a tree.
type Node interface {
	ID() ID
	Attr(ctx context.Context) (Attr, error)
}

// Entry is one name in a folder.
type Entry struct {
	Name   string
	Cookie uint64 // grows along the listing, is never 0 and is never reused in this folder
	Node   Node
}

// Dir is a folder.
type Dir interface {
	Node
	// Lookup finds a name or returns StatusNotFound.
	Lookup(ctx context.Context, name string) (Node, error)
	// List calls visit for the entries whose cookie is greater than after, in the order of their cookies, until visit
	// returns false. Entries that come or go during a listing may or may not be seen; all others are seen once.
	List(ctx context.Context, after uint64, visit func(Entry) bool) error
}

// File is a regular file.
type File interface {
	Node
	// ReadAt reads as io.ReaderAt does: fewer bytes than asked for only with an error, io.EOF at the end of the file.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// Symlink is a symbolic link.
type Symlink interface {
	Node
	Readlink(ctx context.Context) (string, error)
}

// Writer is implemented by files that can be written.
type Writer interface {
	// WriteAt writes all of p or fails. With stable the data (and the size, if it grew) is durable on return; without,
	// it is durable after the next Commit that returns nil. An unstable write may be lost by a crash.
	WriteAt(ctx context.Context, p []byte, off int64, stable bool) error
	// Commit makes every write of this file that returned before the call durable.
	Commit(ctx context.Context) error
}

// SetAttr names the attributes to change; a nil field stays as it is.
type SetAttr struct {
	Perm  *uint32
	UID   *uint32
	GID   *uint32
	Size  *int64
	Atime *time.Time
	Mtime *time.Time
}

// AttrSetter is implemented by nodes whose attributes can be changed.
type AttrSetter interface {
	// SetAttr applies the change durably and returns the attributes after it. With a non-nil guard it changes nothing
	// and returns StatusNotSync unless the node's ctime equals *guard.
	SetAttr(ctx context.Context, set SetAttr, guard *time.Time) (Attr, error)
}

// CreateMode says what Create does about a name that exists.
type CreateMode uint8

// The ways to create a file (RFC 1813, section 3.3.8).
const (
	// CreateUnchecked opens an existing file. Of SetAttr only the size is applied to it then, if it is named (O_TRUNC):
	// the rest is for a new file, as open(2) has it, and nothing is emptied unasked.
	CreateUnchecked CreateMode = iota
	// CreateGuarded answers StatusExists.
	CreateGuarded
	// CreateExclusive keeps the verifier with the file; a repeat with the same verifier finds the file and succeeds,
	// any other answers StatusExists.
	CreateExclusive
)

// Maker is implemented by folders in which nodes can be made. Every change is durable on return.
type Maker interface {
	Create(ctx context.Context, name string, mode CreateMode, set SetAttr, verifier [8]byte) (File, error)
	Mkdir(ctx context.Context, name string, set SetAttr) (Dir, error)
	Symlink(ctx context.Context, name, target string, set SetAttr) (Symlink, error)
	// Link gives an existing file of the same tree one more name.
	Link(ctx context.Context, file Node, name string) error
}

// Remover is implemented by folders whose names can be removed and moved. Every change is durable on return.
type Remover interface {
	// Remove takes away the name of anything but a folder (StatusIsDir).
	Remove(ctx context.Context, name string) error
	// RemoveDir takes away an empty folder (StatusNotDir, StatusNotEmpty).
	RemoveDir(ctx context.Context, name string) error
	// Rename moves a name, replacing a file by a file and an empty folder by a folder. IDs do not change.
	Rename(ctx context.Context, name string, toDir Dir, toName string) error
}

// HoleFinder is implemented by files that know where they hold data and where only zeros.
type HoleFinder interface {
	// NextData returns the offset of the first byte at or after off that may be data, or the size when there is none.
	NextData(ctx context.Context, off int64) (int64, error)
	// NextHole returns the offset of the first byte at or after off that lies in a hole; the end of the file is one.
	NextHole(ctx context.Context, off int64) (int64, error)
}

// Space is what a tree's storage has, in bytes and in number of files.
type Space struct {
	TotalBytes, FreeBytes int64
	TotalFiles, FreeFiles int64
}

// Tree is everything one export or one mount shows.
type Tree interface {
	Root() Dir
	// Node finds a node by its ID: StatusStale when it is gone, StatusBadHandle when the ID was never given out and
	// that can be told.
	Node(ctx context.Context, id ID) (Node, error)
	Space(ctx context.Context) (Space, error)
}

// CheckName returns StatusInvalid or StatusNameTooLong for a name no tree may hold.
func CheckName(name string) error {
	if len(name) > MaxName {
		return StatusNameTooLong
	}
	if name == "" || name == "." || name == ".." {
		return StatusInvalid
	}
	for i := 0; i < len(name); i++ {
		if name[i] == '/' || name[i] == 0 {
			return StatusInvalid
		}
	}
	return nil
}
