package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) initCommand() *cobra.Command {
	var kit string
	c := &cobra.Command{
		Use: "init DIR", Short: "Make a store", Args: exactly(1, "the folder of the new store"),
		Long: "Make a store in DIR, which must be empty or not exist, and write its recovery kit to a file beside it.\n" +
			"The kit opens the store without the passphrase: print it, or keep it on another machine.",
		RunE: func(c *cobra.Command, args []string) error { return a.init(c.Context(), args[0], kit) },
	}
	c.Flags().StringVar(&kit, "kit", "", "file to write the recovery kit to (default DIR.kit)")
	return c
}

func (a *app) init(ctx context.Context, dir, kit string) error {
	dir = filepath.Clean(dir)
	if kit == "" {
		kit = dir + ".kit"
	}
	if err := checkKit(dir, kit); err != nil {
		return err
	}
	if _, err := os.Lstat(kit); err == nil {
		return errKitExists(kit)
	}
	part := kit + ".part"
	if sb, ok := finishable(ctx, dir, part); ok {
		a.note("Finishing what an interrupted run had begun.")
		return a.made(dir, part, kit, sb)
	}
	pass, err := a.passphrase(ctx, true)
	if err != nil {
		return err
	}
	made, err := chunkstore.Create(ctx, dir, pass, keys.Work, chunkstore.Options{
		Logger:  a.logger(),
		KeepKit: func(text []byte) error { return errs.Wrap("write recovery kit", kit, writeKit(part, text)) },
	})
	if err != nil {
		if _, ok := finishable(ctx, dir, part); !ok {
			_ = os.Remove(part) // it opens nothing
		}
		return errs.Wrap("make store", dir, err)
	}
	return a.made(dir, part, kit, made.Superblock)
}

// made gives the kit of a finished store its name, and tells of both.
func (a *app) made(dir, part, kit string, sb chunkstore.Superblock) error {
	err := unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, kit, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system that cannot: the look before has to do
		err = os.Rename(part, kit)
	}
	if errors.Is(err, os.ErrExist) {
		err = errKitExists(kit)
	}
	if err == nil {
		err = disk.OS{}.SyncDir(filepath.Dir(kit))
	}
	if err != nil {
		return errs.Wrap("write recovery kit", kit, err)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return errs.Wrap("make store", dir, err)
	}
	out := map[string]string{"store": abs, "uuid": sb.UUID.String(), "kit": kit}
	return a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "Made the store %s.\n", dir)
		fmt.Fprintf(w, "Its recovery kit is in %s: it opens the store without the passphrase.\n", kit)
		fmt.Fprintln(w, "Print it, or keep it on another machine; without it and the passphrase nothing can be restored.")
	})
}

func errKitExists(kit string) error {
	return errs.Text("write recovery kit", kit, errs.Exists, "the file exists").
		WithNext("It may open another store: move it away, or name another file with --kit.")
}

// writeKit makes the kit durable under the name it has until the store is whole. What lies under that name belongs to no
// store: finishable has looked.
func writeKit(part string, text []byte) error {
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // after the sync there is nothing left to fail
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return disk.OS{}.SyncDir(filepath.Dir(part))
}

// finishable tells whether part is the kit of the store in dir: then only the kit's last step was cut short.
func finishable(ctx context.Context, dir, part string) (chunkstore.Superblock, bool) {
	text, err := disk.ReadFile(disk.OS{}, part, 1<<20)
	if err != nil {
		return chunkstore.Superblock{}, false
	}
	key, _, err := keys.ParseKit(text)
	if err != nil {
		return chunkstore.Superblock{}, false
	}
	r, err := chunkstore.OpenReader(context.WithoutCancel(ctx), dir, chunkstore.Options{Unlock: chunkstore.WithMaster(key)})
	if err != nil {
		return chunkstore.Superblock{}, false
	}
	defer r.Close()
	return r.Superblock(), true
}

// checkKit refuses a kit that would be lost together with the store.
func checkKit(dir, kit string) error {
	d, err := filepath.Abs(dir)
	if err != nil {
		return errs.Wrap("make store", dir, err)
	}
	k, err := filepath.Abs(kit)
	if err != nil {
		return errs.Wrap("write recovery kit", kit, err)
	}
	d, k = resolved(d), filepath.Join(resolved(filepath.Dir(k)), filepath.Base(k))
	if rel, err := filepath.Rel(d, k); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return errs.Text("write recovery kit", kit, errs.Invalid, "it would lie inside the store, and be lost with it").
			WithNext("Name a file elsewhere with --kit.")
	}
	return nil
}

// resolved follows the symbolic links in as much of an absolute path as exists.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil || path == filepath.Dir(path) {
		return real
	}
	return filepath.Join(resolved(filepath.Dir(path)), filepath.Base(path))
}
