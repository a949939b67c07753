package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Secret is what is to open a store: the content of a key file if there is one, otherwise a passphrase.
type Secret struct {
	KeyFile    []byte
	Passphrase []byte
	Work       int // of scrypt, for a passphrase
}

// wrap encrypts the master key, and makes sure that the result can be opened before anything depends on it.
func (s Secret) wrap(m keys.Master) (blob []byte, form keys.Form, err error) {
	var back keys.Master
	if s.KeyFile != nil {
		form = keys.ByFile
		if blob, err = keys.WrapFile(m, s.KeyFile); err == nil {
			back, err = keys.UnwrapFile(blob, s.KeyFile)
		}
	} else if blob, err = keys.Wrap(m, s.Passphrase, s.Work); err == nil {
		back, err = keys.Unwrap(blob, s.Passphrase)
	}
	if err == nil && back != m {
		err = errs.Text("wrap master key", "", errs.Bug, "it does not come out again")
	}
	return blob, form, err
}

// Keys returns the store's wrapped keys. None of them is needed by a Reader that is open.
func (r *Reader) Keys(ctx context.Context) ([]WrappedKey, error) {
	k, err := readKeys(ctx, r.b, r.super.KeyID)
	return k, errs.Wrap("list keys", r.dir, err)
}

// OpenedBy names the wrapped key that opened the store; "" if the master key itself did.
func (r *Reader) OpenedBy() string { return r.openedBy }

// AddKey makes one more passphrase or key file open the store. errs.Exists if the name is taken.
func (r *Reader) AddKey(ctx context.Context, name string, s Secret) error {
	const op = "add key"
	return r.changeKeys(ctx, op, name, func(have []WrappedKey) error {
		if find(have, name) != nil {
			return errs.Text(op, name, errs.Exists, "there is a key of that name").
				WithNext("Choose another name; `holdfast store passphrase NAME` changes a passphrase.")
		}
		if len(have) >= maxKeys {
			return errs.Text(op, name, errs.NoSpace, fmt.Sprintf("there are %d keys already", len(have))).
				WithNext("Remove one that is no longer used: `holdfast store key rm NAME`.")
		}
		blob, form, err := s.wrap(r.key)
		if err != nil {
			return err
		}
		if err := r.b.Put(ctx, keyObject(name, form), blob); err != nil {
			// If only its last sync failed it is there, and nobody was told that it works.
			_ = r.b.Remove(context.WithoutCancel(ctx), keyObject(name, form))
			return err
		}
		return nil
	})
}

// ChangeKey puts a new passphrase, or a new key file, in the place of the old one. No other byte of the store is
// written. Cut short at any point, the old one opens the store or the new one does. errs.NotFound if there is no key of
// that name.
func (r *Reader) ChangeKey(ctx context.Context, name string, s Secret) error {
	const op = "change key"
	return r.changeKeys(ctx, op, name, func(have []WrappedKey) error {
		old := find(have, name)
		if old == nil {
			return noSuchKey(op, name)
		}
		blob, form, err := s.wrap(r.key)
		if err != nil {
			return err
		}
		if form != old.Form {
			return errs.Text(op, name, errs.Invalid, "this key is for a "+old.Form.String()).
				WithNext("Add a key of the other form, then remove this one.")
		}
		w, ok := r.b.(backend.Replacer)
		if !ok {
			return errs.Text(op, name, errs.Unsupported, "objects of this store cannot be replaced").
				WithNext("Add a key of another name, then remove this one.")
		}
		if err := w.Replace(ctx, keyObject(name, form), blob); err != nil {
			return errs.New("replace", name, errs.KindOf(err), err).
				WithNext("Either the old one or the new one opens the store now: try both, then change it again.")
		}
		return nil
	})
}

// RemoveKey makes a passphrase or key file no longer open the store. The last one that does is not removed, even though
// the recovery kit opens the store without any.
func (r *Reader) RemoveKey(ctx context.Context, name string) error {
	const op = "remove key"
	return r.changeKeys(ctx, op, name, func(have []WrappedKey) error {
		k := find(have, name)
		if k == nil {
			return noSuchKey(op, name)
		}
		if err := dispensable(have, k); err != nil {
			return err
		}
		return r.b.Remove(ctx, keyObject(name, k.Form))
	})
}

// dispensable fails if k is the last key that opens the store.
func dispensable(have []WrappedKey, k *WrappedKey) error {
	const op, next = "count the others", "Add another one first: `holdfast store key add NAME`."
	if k.Err != nil {
		return nil // it opens nothing
	}
	var bad error
	for i := range have {
		if have[i].Name == k.Name {
			continue
		}
		if have[i].Err == nil {
			return nil
		}
		bad = have[i].Err
	}
	if bad != nil {
		return errs.New(op, "", errs.KindOf(bad), fmt.Errorf("none of them can be used: %w", bad)).WithNext(next)
	}
	return errs.Text(op, "", errs.Invalid, "nothing else but the recovery kit would open the store").WithNext(next)
}

func noSuchKey(op, name string) error {
	return errs.Text(op, name, errs.NotFound, "the store has no key of that name").
		WithNext("`holdfast store key list` lists them.")
}

func find(have []WrappedKey, name string) *WrappedKey {
	for i := range have {
		if have[i].Name == name {
			return &have[i]
		}
	}
	return nil
}

// changeKeys runs f with the keys there are, while no other process changes them: two that each remove "not the last
// one" would leave none. Writers of the store are not concerned, so a passphrase can be changed while a node runs.
func (r *Reader) changeKeys(ctx context.Context, op, name string, f func(have []WrappedKey) error) error {
	if !keyNames.MatchString(name) {
		return errs.Text(op, name, errs.Invalid, "a key's name is small letters, digits and hyphens, at most 40")
	}
	lock, err := lockKeys(r.d, filepath.Join(r.dir, filepath.Clean(keyPrefix)))
	if err != nil {
		return errs.Wrap(op, name, err)
	}
	defer lock.Close()
	have, err := r.Keys(ctx)
	if err != nil {
		return errs.Wrap(op, name, err)
	}
	return errs.Wrap(op, name, f(have))
}

// lockKeys locks the folder itself: a file would be taken for something that belongs into it.
func lockKeys(d disk.Disk, dir string) (io.Closer, error) {
	if _, real := d.(disk.OS); !real {
		return &storeLock{}, nil // one process, as in lockStore
	}
	if err := d.MkdirAll(dir); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errs.Text("lock", dir, errs.Busy, "another process changes the keys")
	}
	return nil, err
}
