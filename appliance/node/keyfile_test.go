package node

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestKeyFileIsMadeOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file+".part", []byte("what a kill left"), 0o644); err != nil {
		t.Fatal(err)
	}
	first, made, err := OpenOrMakeKeyFile(file)
	if err != nil || !made {
		t.Fatalf("made %v: %v", made, err)
	}
	again, made, err := OpenOrMakeKeyFile(file)
	if err != nil || made || !bytes.Equal(first, again) {
		t.Errorf("the second time: made %v, the same %v: %v", made, bytes.Equal(first, again), err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := os.Lstat(file + ".part"); err == nil {
		t.Error("the unfinished file is still there")
	}
}

// TestDaemonWithAKeyFile: a daemon needs no passphrase, and takes no file that others can read.
func TestDaemonWithAKeyFile(t *testing.T) {
	c := newConfig(t)
	c.KeyFile = filepath.Join(filepath.Dir(c.Store), "key")
	content, _, err := OpenOrMakeKeyFile(c.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	r, err := chunkstore.OpenReader(t.Context(), c.Store, chunkstore.Options{
		Disk: disk.OS{}, Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return ReadPassphrase(c.PassphraseFile) }),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.AddKey(t.Context(), "node", chunkstore.Secret{KeyFile: content}); err != nil {
		t.Fatal(err)
	}
	c.PassphraseFile = ""
	// The passphrase is changed while the daemon holds the store.
	end := startDaemon(t, c)
	if err := r.ChangeKey(t.Context(), "master", chunkstore.Secret{Passphrase: []byte("new"), Work: 1}); err != nil {
		t.Error(err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(c.KeyFile, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), c, "test", slog.New(slog.DiscardHandler), func() {}); !errs.Is(err, errs.Denied) {
		t.Error("a key file that others can read:", err)
	}
}
