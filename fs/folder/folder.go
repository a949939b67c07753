// Package folder keeps a mutable tree in a real folder on disk, with image streams grafted into it.
package folder

import (
	"context"
	"log/slog"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Options say how a tree is opened.
type Options struct {
	Logger *slog.Logger                            // nil is silent
	Space  func(context.Context) (fs.Space, error) // answers Tree.Space; nil asks the folder's file system
}

// GraftInfo tells where a graft is.
type GraftInfo struct {
	Key  string
	ID   fs.ID
	Path string // below the root, slash-separated; the last one that was known if Gone
	Gone bool   // its file was removed
}

// Tree is a tree that lives in a folder.
type Tree struct{}

var _ fs.Tree = (*Tree)(nil)

// Open opens the tree that lives in dir.
func Open(dir string, _ Options) (*Tree, error) {
	return nil, errs.Text("open folder", dir, errs.Unsupported, "not in this build")
}

// Root implements fs.Tree.
func (t *Tree) Root() fs.Dir { return nil }

// Node implements fs.Tree.
func (t *Tree) Node(context.Context, fs.ID) (fs.Node, error) { return nil, fs.StatusStale }

// Space implements fs.Tree.
func (t *Tree) Space(context.Context) (fs.Space, error) { return fs.Space{}, fs.StatusNotSupported }

// Graft serves the file at path from s.
func (t *Tree) Graft(key, path string, s fs.WritableStream, used func() int64) error {
	return errs.Text("graft", path, errs.Unsupported, "not in this build")
}

// Grafts lists all grafts that were ever made in this folder.
func (t *Tree) Grafts() []GraftInfo { return nil }

// Close ends the tree.
func (t *Tree) Close() error { return nil }
