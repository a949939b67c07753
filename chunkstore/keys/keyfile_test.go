package keys

import (
	"bytes"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// testFile is the content of a key file.
var testFile = bytes.Repeat([]byte{0xa5, 0x01}, FileSize/2)

func wrapFile(t *testing.T) []byte {
	t.Helper()
	blob, err := WrapFile(testMaster, testFile)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func TestWrapFile(t *testing.T) {
	blob := wrapFile(t)
	if m, err := UnwrapFile(blob, testFile); err != nil || m != testMaster {
		t.Errorf("UnwrapFile: %v", err)
	}
	if again := wrapFile(t); bytes.Equal(blob, again) {
		t.Error("two wraps are the same")
	}
	other := NewFile()
	if m, err := UnwrapFile(blob, other); !errs.Is(err, errs.Denied) || errs.NextStep(err) == "" || !m.IsZero() {
		t.Errorf("another key file: %v", err)
	}
	for _, n := range []int{0, 1, FileSize - 1, FileSize + 1, 4096} {
		if _, err := UnwrapFile(blob, make([]byte, n)); !errs.Is(err, errs.Invalid) || errs.NextStep(err) == "" {
			t.Errorf("a key file of %d bytes opens: %v", n, err)
		}
		if _, err := WrapFile(testMaster, make([]byte, n)); !errs.Is(err, errs.Invalid) {
			t.Errorf("a key file of %d bytes is taken: %v", n, err)
		}
	}
	if _, err := WrapFile(Master{}, testFile); !errs.Is(err, errs.Bug) {
		t.Errorf("no key: %v", err)
	}
	if a, b := NewFile(), NewFile(); len(a) != FileSize || bytes.Equal(a, b) {
		t.Errorf("new files: %d bytes, equal %v", len(a), bytes.Equal(a, b))
	}
}

// TestWrapFileDamage changes and cuts every byte: with the right key file all of it is damage, never a wrong key file.
func TestWrapFileDamage(t *testing.T) {
	blob := wrapFile(t)
	for i := range blob {
		b := bytes.Clone(blob)
		b[i] ^= 1 << (i % 8)
		for what, bad := range map[string][]byte{"flipped": b, "cut": blob[:i]} {
			if _, err := UnwrapFile(bad, testFile); !errs.Is(err, errs.Corrupt) || errs.NextStep(err) == "" {
				t.Errorf("byte %d %s: %v", i, what, err)
			}
			if _, _, err := Inspect(bad); !errs.Is(err, errs.Corrupt) {
				t.Errorf("byte %d %s, inspected: %v", i, what, err)
			}
		}
	}
	if _, err := UnwrapFile(append(bytes.Clone(blob), 'x'), testFile); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a byte too many: %v", err)
	}
}

// TestHostileFileBlobs have a right first line.
func TestHostileFileBlobs(t *testing.T) {
	blob := wrapFile(t)
	id, body := testMaster.ID(), blob[len(blob)-fileBody:]
	remade := func(id [8]byte, body []byte) []byte { return append(firstLine(fileMagic, id, body), body...) }
	for name, c := range map[string]struct {
		blob []byte
		want errs.Kind
	}{
		"nothing":                  {remade(id, nil), errs.Corrupt},
		"too long":                 {remade(id, append(bytes.Clone(body), 0)), errs.Corrupt},
		"another key's identifier": {remade([8]byte{1}, body), errs.Denied},
		"another salt":             {remade(id, append(make([]byte, fileSalt), body[fileSalt:]...)), errs.Denied},
	} {
		if m, err := UnwrapFile(c.blob, testFile); !errs.Is(err, c.want) || !m.IsZero() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInspect(t *testing.T) {
	byPassphrase, err := Wrap(testMaster, []byte("x"), testWork)
	if err != nil {
		t.Fatal(err)
	}
	for want, blob := range map[Form][]byte{ByPassphrase: byPassphrase, ByFile: wrapFile(t)} {
		if form, id, err := Inspect(blob); form != want || id != testMaster.ID() || err != nil || form.String() == "" {
			t.Errorf("%v: %v %x %v", want, form, id, err)
		}
	}
	if _, err := Unwrap(wrapFile(t), []byte("x")); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a passphrase opens what a key file wraps: %v", err)
	}
	if _, err := UnwrapFile(byPassphrase, testFile); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a key file opens what a passphrase wraps: %v", err)
	}
}

// TestWrapFileVector opens a key wrapped long ago.
func TestWrapFileVector(t *testing.T) {
	if m, err := UnwrapFile(readVector(t, "wrapped-file.key"), testFile); err != nil || m != testMaster {
		t.Error(err)
	}
}
