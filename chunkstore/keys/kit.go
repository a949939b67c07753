package keys

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The secret rows of a kit hold 50 bytes: version, the store's UUID, the master key, one byte of checksum over all
// three. Each row shows 10 of them as four groups of four characters and a fifth group that checks the row, so that a
// mistake made while typing is found in the row where it was made. None of this ever changes within version 1.
const (
	kitVersion  = 1
	kitRows     = 5
	kitRowBytes = 10
	kitRowChars = 20 // 16 of data, 4 of check
	maxKit      = 64 << 10
)

// kitAlphabet leaves out I, L, O and U: the first three look like digits on paper, the last makes words.
var kitAlphabet = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

const kitPage = `HOLDFAST RECOVERY KIT

Made %s
Store %s
Key   %s

This page opens the backup store named above without its passphrase.
Whoever holds this page and the store can read every backup in it.
Print it, keep it in a safe place away from the store, and delete the file.
Without this page and without the passphrase nobody can read the backups,
not even the makers of Holdfast.

To get disks back on any Linux machine, with the holdfast program and the
store at hand:

    holdfast recover --kit FILE STORE

FILE is this page, as a file or typed from paper. Other commands take
--kit FILE too, in place of the passphrase.

The five rows below are all that is needed of this page. Spaces, line ends
and small letters do not matter. The last group of each row checks the row,
so that a typing mistake is found and its row is named.

`

// FormatKit writes the recovery kit: a plain text page that says what it is, how it is used, and holds the key.
func FormatKit(m Master, storeUUID [16]byte, made time.Time) []byte {
	id := m.ID()
	out := fmt.Appendf(nil, kitPage, made.UTC().Format("2006-01-02 15:04 UTC"), uuidString(storeUUID), hex.EncodeToString(id[:]))
	data := make([]byte, 0, kitRows*kitRowBytes)
	data = append(data, kitVersion)
	data = append(data, storeUUID[:]...)
	data = append(data, m[:]...)
	data = append(data, kitSum(data))
	for i := range kitRows {
		s := kitRow(i, data[i*kitRowBytes:(i+1)*kitRowBytes])
		out = fmt.Appendf(out, "    %d: %s %s %s %s  %s\n", i+1, s[0:4], s[4:8], s[8:12], s[12:16], s[16:20])
	}
	return out
}

func uuidString(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// kitSum checks the page as a whole: the rows of two kits cannot be mixed unnoticed, but for one time in 256.
func kitSum(data []byte) byte {
	h := sha256.Sum256(data)
	return h[0]
}

// kitRow spells row i (from 0): 16 characters of data and 4 of check. The row's number is part of what is checked, so
// exchanged rows are found.
func kitRow(i int, data []byte) string {
	sum := crc32.Update(crc32.Checksum([]byte{byte(i)}, castagnoli), castagnoli, data)
	var check [4]byte
	binary.BigEndian.PutUint32(check[:], sum) // 20 bits of it are shown
	return kitAlphabet.EncodeToString(data) + kitAlphabet.EncodeToString(check[:])[:4]
}

// ParseKit reads a recovery kit, whole or only its five rows, and returns the key and the store it belongs to.
// Whitespace, case, line ends and the letters that look like digits do not matter. errs.Invalid names the row at fault.
func ParseKit(page []byte) (Master, [16]byte, error) {
	const op = "read recovery kit"
	invalid := func(next, why string, args ...any) (Master, [16]byte, error) {
		return Master{}, [16]byte{}, errs.Text(op, "", errs.Invalid, fmt.Sprintf(why, args...)).WithNext(next)
	}
	if len(page) > maxKit {
		return invalid("Name the file that holds the recovery kit.", "the file is too large to be a recovery kit")
	}
	var rows [kitRows]string
	for line := range bytes.FieldsFuncSeq(page, func(r rune) bool { return r == '\n' || r == '\r' }) {
		n, text, ok := kitLine(string(line))
		if !ok {
			continue
		}
		if rows[n] != "" && rows[n] != text {
			return invalid("Leave one kit in the file.", "row %d is there twice", n+1)
		}
		rows[n] = text
	}
	data := make([]byte, 0, kitRows*kitRowBytes)
	for i, row := range rows {
		compare := fmt.Sprintf("Compare row %d with the printed page.", i+1)
		if row == "" {
			return invalid("Copy all five rows, each with its number and colon.", "row %d is missing", i+1)
		}
		if len(row) != kitRowChars {
			return invalid(compare, "row %d has %d characters instead of %d", i+1, len(row), kitRowChars)
		}
		part, err := kitAlphabet.DecodeString(row[:16])
		if err != nil || kitRow(i, part) != row {
			return invalid(compare, "there is a typing mistake in row %d", i+1)
		}
		data = append(data, part...)
	}
	last := len(data) - 1
	if kitSum(data[:last]) != data[last] {
		return invalid("Compare all rows with the printed page.", "the rows do not belong together")
	}
	if data[0] != kitVersion {
		return Master{}, [16]byte{}, errs.Text(op, "", errs.Unsupported, "the kit was made by a newer Holdfast").WithNext(
			"Use a newer holdfast program.")
	}
	return Master(data[17:last]), [16]byte(data[1:17]), nil
}

// kitLine recognises a secret row, "N: characters", and returns its index and its characters in the spelling of
// kitAlphabet.
func kitLine(line string) (row int, text string, ok bool) {
	number, text, found := strings.Cut(strings.Map(kitRune, line), ":")
	if !found || len(number) != 1 || number[0] < '1' || number[0] >= '1'+kitRows {
		return 0, "", false
	}
	return int(number[0] - '1'), text, true
}

// kitRune spells a character as kitAlphabet does, or drops it.
func kitRune(r rune) rune {
	switch {
	case r == ' ' || r == '\t' || r == '-':
		return -1
	case r == 'o' || r == 'O':
		return '0'
	case r == 'i' || r == 'I' || r == 'l' || r == 'L':
		return '1'
	case 'a' <= r && r <= 'z':
		return r - 'a' + 'A'
	}
	return r
}
