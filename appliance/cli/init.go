package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func (a *app) initCommand() *cobra.Command {
	var kit string
	var o chunkstore.Options
	c := &cobra.Command{
		Use: "init DIR", Short: "Make a store", Args: exactly(1, "the folder of the new store"),
		Long: "Make a store in DIR, which must be empty or not exist, and write its recovery kit to a file beside it.\n" +
			"The kit opens the store without the passphrase: print it, or keep it on another machine.\n" +
			"With --key-file F the store is opened by that file, which is made if it does not exist; with --passphrase-file\n" +
			"as well, either opens it. The key file must not lie in the store.\n" +
			"How disks are cut is decided for the life of the store: by content (cdc), which finds what is equal wherever it\n" +
			"lies, or at every 64 KiB (fixed-64k). So is how pieces are named: by keyed BLAKE3, or by HMAC-SHA-256, which takes\n" +
			"twice the time and is what FIPS 140 allows. Compression: zstd; s2, which takes half the time and a third more space;\n" +
			"or none, for a disk that compresses by itself.",
		RunE: func(c *cobra.Command, args []string) error {
			for _, f := range []struct {
				flag, value string
				choices     []string
			}{
				{"--cutter", o.Cutter, chunkstore.Cutters()},
				{"--digest", o.Digest, chunkstore.Digests()},
				{"--compression", o.Compression, chunkstore.Compressions()},
			} {
				if !slices.Contains(f.choices, f.value) {
					return usage(c.CommandPath(), fmt.Sprintf("%s %s: there are %s", f.flag, f.value, orList(f.choices, "and")))
				}
			}
			return a.init(c.Context(), args[0], kit, o)
		},
	}
	c.Flags().StringVar(&o.Cutter, "cutter", chunkstore.Cutters()[0], "how disks are cut: "+orList(chunkstore.Cutters(), "or"))
	c.Flags().StringVar(&o.Digest, "digest", chunkstore.Digests()[0], "how pieces are named: "+orList(chunkstore.Digests(), "or"))
	c.Flags().StringVar(&o.Compression, "compression", chunkstore.Compressions()[0], "how pieces are compressed: "+orList(chunkstore.Compressions(), "or"))
	c.Flags().StringVar(&kit, "kit", "", "file to write the recovery kit to (default DIR.kit)")
	return c
}

func (a *app) init(ctx context.Context, dir, kit string, o chunkstore.Options) error {
	dir = filepath.Clean(dir)
	if kit == "" {
		kit = dir + ".kit"
	}
	if err := outside(dir, kit, "write recovery kit", "--kit"); err != nil {
		return err
	}
	if a.keyFile != "" {
		if err := outside(dir, a.keyFile, "use key file", "--key-file"); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(kit); err == nil {
		return errKitExists(kit)
	}
	part := kit + ".part"
	if sb, ok := finishable(ctx, dir, part); ok {
		a.note("Finishing what an interrupted run had begun.")
		return a.made(dir, part, kit, sb)
	}
	pass, file, drop, err := a.firstSecrets(ctx)
	if err != nil {
		return err
	}
	o.Logger, o.KeyFile = a.logger(), file
	o.KeepKit = func(text []byte) error { return errs.Wrap("write recovery kit", kit, writeKit(part, text)) }
	made, err := chunkstore.Create(ctx, dir, pass, keys.Work, o)
	if err != nil {
		if _, ok := finishable(ctx, dir, part); !ok {
			_ = os.Remove(part) // it opens nothing
			drop()
		}
		return errs.Wrap("make store", dir, err)
	}
	return a.made(dir, part, kit, made.Superblock)
}

// orList writes "a, b or c".
func orList(names []string, or string) string {
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " " + or + " " + names[last]
}

// firstSecrets returns what is to open a new store: a passphrase, the content of a key file, or both. drop takes the key
// file away again if it was made here.
func (a *app) firstSecrets(ctx context.Context) (pass, file []byte, drop func(), err error) {
	drop = func() {}
	if a.keyFile == "" || a.passphraseFile != "" {
		pass, err = a.newPassphrase(ctx, a.passphraseFile, "--passphrase-file F, HOLDFAST_PASSPHRASE_FILE, or a key file: --key-file", "Passphrase: ")
		if err != nil {
			return nil, nil, drop, err
		}
	}
	if a.keyFile == "" {
		return pass, nil, drop, nil
	}
	file, fresh, err := node.OpenOrMakeKeyFile(a.keyFile)
	if fresh {
		a.note("Made the key file " + a.keyFile + ". Keep a copy of it away from the store, or the recovery kit.")
		drop = func() { _ = os.Remove(a.keyFile) } // it opens nothing
	}
	return pass, file, drop, err
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

// outside refuses a file that would be lost, or copied, together with the store.
func outside(dir, file, op, flag string) error {
	d, err := filepath.Abs(dir)
	if err != nil {
		return errs.Wrap("make store", dir, err)
	}
	f, err := filepath.Abs(file)
	if err != nil {
		return errs.Wrap(op, file, err)
	}
	d, f = resolved(d), filepath.Join(resolved(filepath.Dir(f)), filepath.Base(f))
	if rel, err := filepath.Rel(d, f); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return errs.Text(op, file, errs.Invalid, "it would lie inside the store, and be lost or stolen with it").
			WithNext("Name a file elsewhere with " + flag + ".")
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
