package node

import (
	"context"
	"log/slog"

	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/fs/fuse"
)

// MountOptions say where Mount shows the points.
type MountOptions struct {
	Dir        string
	AllowOther bool
	Logger     *slog.Logger
	Note       func(string)
	Ready      func()
}

// Mount shows all restore points as files below a folder until ctx ends or somebody unmounts it; both are clean ends.
func Mount(ctx context.Context, r *chunkstore.Reader, o MountOptions) error {
	m, err := fuse.New(ctx, fuse.Options{
		Tree: NewPointsTree(r), Dir: o.Dir, AllowOther: o.AllowOther, ReadOnly: true, Logger: o.Logger,
		Events: fuse.Events{Recovered: func(dir string) {
			note(o.Note, "Took away the mount that a killed process had left at "+dir+".")
		}},
	})
	if err != nil {
		return err
	}
	if o.Ready != nil {
		o.Ready()
	}
	select {
	case <-m.Done():
		return nil
	case <-ctx.Done():
	}
	return m.Unmount()
}
