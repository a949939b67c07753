package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/appliance/config"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ReadKeyFile reads a key file. It is refused, as errs.Denied, if anybody but its owner may read or write it: who can
// read it and the store can read every backup.
func ReadKeyFile(file string) ([]byte, error) {
	const op = "read key file"
	f, err := os.Open(file)
	if err != nil {
		return nil, errs.Wrap(op, file, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, errs.Wrap(op, file, err)
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, errs.Text(op, file, errs.Denied, fmt.Sprintf("others than its owner may use it: its mode is %04o", mode)).
			WithNext("Run `chmod 600 " + file + "`; if somebody may have read it, add a new key file and remove this one.")
	}
	b, err := io.ReadAll(io.LimitReader(f, keys.FileSize+1))
	if err == nil {
		err = keys.CheckFile(b)
	}
	return b, errs.Wrap(op, file, err)
}

// OpenOrMakeKeyFile reads a key file, or makes it, durably, readable by nobody else. made tells which.
func OpenOrMakeKeyFile(file string) (content []byte, made bool, err error) {
	const op = "make key file"
	b, err := ReadKeyFile(file)
	if !errs.Is(err, errs.NotFound) {
		return b, false, err
	}
	b = keys.NewFile()
	part := file + ".part" // one that a kill left holds nothing that anything depends on
	if err := writeSecret(part, b); err != nil {
		return nil, false, errs.Wrap(op, file, err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, file, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system that cannot: the look before has to do
		err = os.Rename(part, file)
	}
	if err != nil {
		_ = os.Remove(part)
		return nil, false, errs.Wrap(op, file, err)
	}
	return b, true, errs.Wrap(op, file, disk.OS{}.SyncDir(filepath.Dir(file)))
}

// writeSecret writes a file that only its owner may read, and syncs it.
func writeSecret(file string, content []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // after the sync there is nothing left to fail
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

// unlockAs opens the daemon's store as its configuration says.
func unlockAs(c *config.Config) chunkstore.Unlock {
	if c.KeyFile != "" {
		return chunkstore.WithKeyFile(func() ([]byte, error) { return ReadKeyFile(c.KeyFile) })
	}
	return chunkstore.WithPassphrase(func() ([]byte, error) { return ReadPassphrase(c.PassphraseFile) })
}
