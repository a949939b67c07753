package keys

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"

	"filippo.io/age"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Work is the scrypt work factor of new wrapped keys, as a power of two: 2^15 needs 32 MiB and about 0.1 s. It is not
// higher because every command that opens a store pays it, also the many short ones, and because an import has to stay
// below 300 MiB altogether. A passphrase is therefore worth choosing well.
const Work = 15

// MaxWork is the highest work factor Unwrap accepts: 2^20 needs 1 GiB. Without a bound a file put in our place could
// ask for any amount of memory before the passphrase is even looked at.
const MaxWork = 20

const (
	wrapMagic = "holdfast-key-1 "     // never changes
	payload1  = "holdfast master 1\n" // begins what is encrypted, so that no other age file passes for a key
	maxBlob   = 4096                  // a wrapped key has about 330 bytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Wrap encrypts m with a passphrase at the given work factor (Work, unless a test is in a hurry). The result is a line
// of text with the key's identifier and a checksum, followed by an age file.
func Wrap(m Master, passphrase []byte, work int) ([]byte, error) {
	const op = "wrap master key"
	switch {
	case m.IsZero():
		return nil, errs.Text(op, "", errs.Bug, "the key was never set")
	case work < 1 || work > MaxWork:
		return nil, errs.Text(op, "", errs.Invalid, fmt.Sprintf("work factor %d is not between 1 and %d", work, MaxWork))
	}
	r, err := age.NewScryptRecipient(string(passphrase))
	if err != nil {
		return nil, errs.New(op, "", errs.Invalid, err).WithNext("Give a passphrase that is not empty.")
	}
	r.SetWorkFactor(work)
	var file bytes.Buffer
	w, err := age.Encrypt(&file, r)
	if err != nil {
		return nil, errs.New(op, "", errs.Bug, err)
	}
	if _, err := w.Write(append([]byte(payload1), m[:]...)); err != nil {
		return nil, errs.New(op, "", errs.Bug, err)
	}
	if err := w.Close(); err != nil {
		return nil, errs.New(op, "", errs.Bug, err)
	}
	return append(firstLine(wrapMagic, m.ID(), file.Bytes()), file.Bytes()...), nil
}

// Unwrap decrypts a wrapped key. errs.Denied: the passphrase is wrong. errs.Corrupt: the blob is damaged.
// errs.Unsupported: it asks for more work than MaxWork.
func Unwrap(blob, passphrase []byte) (Master, error) {
	const op = "unwrap master key"
	id, file, err := inspect(blob, wrapMagic)
	if err != nil {
		return Master{}, err
	}
	if w, ok := workOf(file); !ok {
		return Master{}, damaged("the age file is not encrypted with a passphrase")
	} else if w > MaxWork {
		return Master{}, errs.Text(op, "", errs.Unsupported, fmt.Sprintf("the work factor %d is above %d", w, MaxWork))
	}
	i, err := age.NewScryptIdentity(string(passphrase))
	if err != nil {
		return Master{}, errs.New(op, "", errs.Denied, err).WithNext("Give the passphrase of the store.")
	}
	i.SetMaxWorkFactor(MaxWork)
	r, err := age.Decrypt(bytes.NewReader(file), i)
	if errors.Is(err, age.ErrIncorrectIdentity) {
		return Master{}, errs.Text(op, "", errs.Denied, "the passphrase is wrong").WithNext(
			"Give the passphrase of the store; if it is lost, the recovery kit opens the store: --kit FILE.")
	}
	if err != nil {
		return Master{}, damaged(err.Error())
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxBlob))
	if err != nil {
		return Master{}, damaged(err.Error())
	}
	return payload(plain, id)
}

// workOf reads the work factor from the second line of an age file, "-> scrypt SALT WORK".
func workOf(file []byte) (int, bool) {
	lines := bytes.SplitN(file, []byte("\n"), 3)
	if len(lines) < 3 {
		return 0, false
	}
	f := bytes.Fields(lines[1])
	if len(f) != 4 || string(f[0]) != "->" || string(f[1]) != "scrypt" {
		return 0, false
	}
	w, err := strconv.Atoi(string(f[3]))
	return w, err == nil && w > 0
}
