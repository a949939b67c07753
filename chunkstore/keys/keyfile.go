package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// FileSize is the length of a key file in bytes: random bytes and nothing else. Unlike a passphrase it cannot be
// guessed, so opening a store with one costs no work.
const FileSize = 32

// NewFile draws the content of a key file.
func NewFile() []byte {
	b := make([]byte, FileSize)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}

// Form says what opens a wrapped key.
type Form uint8

// The forms of wrapped keys.
const (
	ByPassphrase Form = iota // an age file with one scrypt recipient
	ByFile                   // sealed with a key that is derived from a key file
)

// String returns the form's name for people.
func (f Form) String() string {
	if f == ByFile {
		return "key file"
	}
	return "passphrase"
}

// The layout of a key that is wrapped for a key file; docs/format/keys.md draws it. None of it ever changes.
const (
	fileMagic = "holdfast-file-key-1 "
	infoFile  = "holdfast 1 key file"
	fileSalt  = 32
	fileBody  = fileSalt + len(payload1) + len(Master{}) + 16
)

// WrapFile encrypts m with the content of a key file.
func WrapFile(m Master, file []byte) ([]byte, error) {
	const op = "wrap master key"
	if m.IsZero() {
		return nil, errs.Text(op, "", errs.Bug, "the key was never set")
	}
	if err := CheckFile(file); err != nil {
		return nil, errs.Wrap(op, "", err)
	}
	body := make([]byte, fileSalt, fileBody)
	_, _ = rand.Read(body) // never fails (crypto/rand)
	id := m.ID()
	aead := fileCipher(file, body)
	body = aead.Seal(body, make([]byte, aead.NonceSize()), append([]byte(payload1), m[:]...), id[:])
	return append(firstLine(fileMagic, id, body), body...), nil
}

// CheckFile tells whether b can be the content of a key file.
func CheckFile(b []byte) error {
	if len(b) == FileSize {
		return nil
	}
	return errs.Text("use key file", "", errs.Invalid, fmt.Sprintf("it has %d bytes, and a key file has %d", len(b), FileSize)).
		WithNext("Name the key file that belongs to the store; a copy that was cut or edited opens nothing.")
}

// UnwrapFile decrypts what WrapFile made. errs.Denied: the key file is another one. errs.Corrupt: the blob is damaged.
// errs.Invalid: this is no key file.
func UnwrapFile(blob, file []byte) (Master, error) {
	const op = "unwrap master key"
	if err := CheckFile(file); err != nil {
		return Master{}, errs.Wrap(op, "", err)
	}
	id, body, err := inspect(blob, fileMagic)
	if err == nil && len(body) != fileBody {
		err = damaged("its length is wrong")
	}
	if err != nil {
		return Master{}, err
	}
	aead := fileCipher(file, body[:fileSalt])
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), body[fileSalt:], id[:])
	if err != nil { // the checksum was right, so it is the key that is wrong
		return Master{}, errs.Text(op, "", errs.Denied, "the key file is not the one that opens this store").
			WithNext("Name the right key file, or open the store with its passphrase or its recovery kit.")
	}
	return payload(plain, id)
}

// fileCipher returns the cipher of one wrapped key. The salt is new for every wrap, so the key is used once, and the
// nonce may be zeros.
func fileCipher(file, salt []byte) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, file, salt, infoFile, 32)
	if err != nil { // as in Master.derive
		panic("keys: HKDF: " + err.Error())
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("keys: AES-256: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("keys: GCM: " + err.Error())
	}
	return aead
}

// Inspect tells what can be told of a wrapped key without opening it: what opens it, and the public identifier of the
// master key in it. errs.Corrupt: it is damaged.
func Inspect(blob []byte) (Form, [8]byte, error) {
	if strings.HasPrefix(string(blob), fileMagic) {
		id, _, err := inspect(blob, fileMagic)
		return ByFile, id, err
	}
	id, _, err := inspect(blob, wrapMagic)
	return ByPassphrase, id, err
}

// inspect checks the first line of a wrapped key, and returns the identifier in it and what follows the line.
func inspect(blob []byte, magic string) (id [8]byte, body []byte, err error) {
	lineLen := len(magic) + 16 + 1 + 8 + 1
	if len(blob) > maxBlob || len(blob) < lineLen || !strings.HasPrefix(string(blob), magic) {
		return id, nil, damaged("this is not a wrapped master key")
	}
	if _, err := hex.Decode(id[:], blob[len(magic):len(magic)+16]); err != nil {
		return id, nil, damaged("the key's identifier is not hexadecimal")
	}
	body = blob[lineLen:]
	if string(blob[:lineLen]) != string(firstLine(magic, id, body)) {
		return id, nil, damaged("the checksum does not match")
	}
	return id, body, nil
}

// firstLine begins a wrapped key. The checksum covers the identifier and what follows: neither age nor GCM can tell a
// damaged file from a wrong secret, and a person who is told the wrong one of the two loses a day.
func firstLine(magic string, id [8]byte, body []byte) []byte {
	sum := crc32.Update(crc32.Checksum(id[:], castagnoli), castagnoli, body)
	return fmt.Appendf(nil, "%s%x %08x\n", magic, id[:], sum)
}

// payload takes the master key out of what a wrapped key holds.
func payload(plain []byte, id [8]byte) (Master, error) {
	rest, ok := strings.CutPrefix(string(plain), payload1)
	if !ok || len(rest) != len(Master{}) {
		return Master{}, damaged("what is encrypted is not a master key")
	}
	m := Master([]byte(rest))
	if m.ID() != id {
		return Master{}, damaged("the key is not the one its first line names")
	}
	return m, nil
}

// damaged is the error for a wrapped key that is not as it was written.
func damaged(why string) error {
	return errs.Text("unwrap master key", "", errs.Corrupt, why).WithNext(
		"Put the file below keys/ back from a copy of the store, or open the store in another way: the recovery kit always does.")
}
