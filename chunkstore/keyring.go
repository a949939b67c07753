package chunkstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// A WrappedKey is the store's master key, encrypted so that one passphrase or one key file opens it. A store can have
// several; any of them opens all of it.
type WrappedKey struct {
	Name string // as people call it; unique in the store
	Form keys.Form
	Blob []byte
	Err  error // why it opens nothing: it is damaged, or of another store
}

// Names and bounds of wrapped keys. The prefix and the suffixes never change.
const (
	keyPrefix    = "keys/"
	suffixPhrase = ".age"
	suffixFile   = ".key"
	firstPhrase  = "master"  // what Create calls the wrap of its passphrase
	firstFile    = "keyfile" // and that of its key file
	maxKeys      = 32        // each may cost an attempt; nobody can make opening take for ever by adding files
	maxKeyBytes  = 64 << 10
)

var keyNames = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)

func keyObject(name string, f keys.Form) string {
	if f == keys.ByFile {
		return keyPrefix + name + suffixFile
	}
	return keyPrefix + name + suffixPhrase
}

// readKeys reads all wrapped keys, sorted by the names of their objects. One that cannot be used is among them, with
// the reason.
func readKeys(ctx context.Context, b backend.Backend, keyID string) ([]WrappedKey, error) {
	infos, err := b.List(ctx, keyPrefix)
	if err != nil {
		return nil, err
	}
	var out []WrappedKey
	for _, i := range infos {
		k := WrappedKey{Name: strings.TrimPrefix(i.Name, keyPrefix)}
		var phrase, file bool
		if k.Name, phrase = strings.CutSuffix(k.Name, suffixPhrase); !phrase {
			k.Name, file = strings.CutSuffix(k.Name, suffixFile)
		}
		if !phrase && !file || !keyNames.MatchString(k.Name) || len(out) == maxKeys {
			continue
		}
		if file {
			k.Form = keys.ByFile
		}
		if k.Blob, err = readObject(ctx, b, i.Name, maxKeyBytes); err == nil {
			err = checkKey(k, keyID)
		}
		switch {
		case errs.Is(err, errs.NotFound): // removed meanwhile
			continue
		case err != nil && !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Denied):
			return nil, errs.Wrap("read key", i.Name, err)
		}
		k.Err = errs.Wrap("read key", i.Name, err)
		out = append(out, k)
	}
	return out, nil
}

func checkKey(k WrappedKey, keyID string) error {
	form, id, err := keys.Inspect(k.Blob)
	if err == nil && form != k.Form {
		err = errs.Text("check", "", errs.Corrupt, "it is wrapped for a "+form.String())
	}
	if err == nil && hex.EncodeToString(id[:]) != keyID {
		err = errs.Text("check", "", errs.Denied, "it is a key of another store").
			WithNext("Remove it with `holdfast store key rm`: it opens nothing here.")
	}
	return err
}

// Unlock turns one of the wrapped keys of a store into its key, and names the one it used; "" if it needed none. It is
// called once for each Open. There may be none, and some may be unusable: see WrappedKey.Err.
type Unlock func(wrapped []WrappedKey, store UUID) (key keys.Master, name string, err error)

// WithPassphrase unlocks by passphrase; ask is called only when the store has a key that one could open.
func WithPassphrase(ask func() ([]byte, error)) Unlock {
	return unlockBy(keys.ByPassphrase, ask, keys.Unwrap)
}

// WithKeyFile unlocks by a key file; read returns its content and is called only when the store has a key for one.
func WithKeyFile(read func() ([]byte, error)) Unlock {
	return unlockBy(keys.ByFile, read, keys.UnwrapFile)
}

// WithMaster unlocks by the key itself, as the recovery kit holds it.
func WithMaster(k keys.Master) Unlock {
	return func([]WrappedKey, UUID) (keys.Master, string, error) { return k, "", nil }
}

// unlockBy tries all wrapped keys of a form with one secret.
func unlockBy(form keys.Form, ask func() ([]byte, error), unwrap func(blob, secret []byte) (keys.Master, error)) Unlock {
	return func(wrapped []WrappedKey, _ UUID) (keys.Master, string, error) {
		var usable []WrappedKey
		var bad error
		for _, w := range wrapped {
			switch {
			case w.Form != form:
			case w.Err != nil:
				bad = w.Err
			default:
				usable = append(usable, w)
			}
		}
		if len(usable) == 0 {
			return keys.Master{}, "", noKey(form, wrapped, bad)
		}
		secret, err := ask()
		if err != nil {
			return keys.Master{}, "", err
		}
		for _, w := range usable {
			k, uerr := unwrap(w.Blob, secret)
			if uerr == nil {
				return k, w.Name, nil
			}
			if err == nil || errs.Is(err, errs.Denied) { // damage says more than a wrong passphrase
				err = uerr
			}
		}
		if bad != nil && errs.Is(err, errs.Denied) {
			err = errs.New("unlock store", "", errs.Denied, fmt.Errorf("%w; or it belongs to a key that cannot be used: %w", err, bad))
		}
		return keys.Master{}, "", err
	}
}

// noKey says why there is nothing to try.
func noKey(form keys.Form, wrapped []WrappedKey, bad error) error {
	const op = "unlock store"
	if bad != nil {
		return bad
	}
	for _, w := range wrapped {
		if w.Form != form && w.Err == nil {
			return errs.Text(op, "", errs.Denied, "no "+form.String()+" opens this store, but a "+w.Form.String()+" does").
				WithNext("Name it (--key-file or --passphrase-file), or give the recovery kit: --kit FILE.")
		}
	}
	return errs.Text(op, "", errs.Corrupt, "the store's key is gone: there is no wrapped key below keys/").
		WithNext("Put that folder back from a copy of the store; or open it with the recovery kit (--kit FILE), with which " +
			"`holdfast store passphrase` makes a new one.")
}
