package keys

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// testMaster is 00 01 02 … 1f.
var testMaster = func() (m Master) {
	for i := range m {
		m[i] = byte(i)
	}
	return m
}()

// TestVectors freezes the derivations: a change here makes every store unreadable.
func TestVectors(t *testing.T) {
	digest, sign, point, id := testMaster.DigestKey(), testMaster.SignKey(), testMaster.PointKey(), testMaster.ID()
	pack := testMaster.PackKey([16]byte{0xF0, 15: 0x0F})
	zero := testMaster.PackKey([16]byte{})
	for _, v := range []struct {
		name string
		got  []byte
		want string
	}{
		{"digest", digest[:], "7c948b64e1cfc384b72a38fa7022e5b024e9e82a1a38b276b1e1080b60bbb957"},
		{"sign", sign[:], "dcd8b59dfbe439832c04d331b8299ff5b987523ebf9103ba59e053e6acc0c93a"},
		{"pack", pack[:], "0db843a58dd5e1c4a2c1a23b443e9c2533cfb8571f3ba98ebd0100e88b32aa3e"},
		{"pack of the zero UUID", zero[:], "189a51b87a004cffd8e16bc60d03ab011b25d30a496a86b57c8936aaa8ee9c56"},
		{"point", point[:], "61ba0d055d27cc41167aa3a14b0f5d547ca7d829658e31ea7a6e1437d636824a"},
		{"id", id[:], "f37c08cb698b35b0"},
	} {
		if got := hex.EncodeToString(v.got); got != v.want {
			t.Errorf("%s: %s, want %s", v.name, got, v.want)
		}
	}
}

func TestNew(t *testing.T) {
	a, err := New()
	if err != nil {
		t.Fatal(err)
	}
	b, err := New()
	if err != nil || a == b || a.IsZero() || b.IsZero() {
		t.Errorf("two new keys: %v, %v", a, err)
	}
	if !(Master{}).IsZero() {
		t.Error("the zero key is not zero")
	}
}

// TestNeverPrinted formats a key in all the ways a careless caller may.
func TestNeverPrinted(t *testing.T) {
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "key", testMaster, "p", &testMaster)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "key", testMaster, "p", &testMaster)
	js, err := json.Marshal(struct{ K Master }{testMaster})
	if err != nil {
		t.Fatal(err)
	}
	outs := []string{logged.String(), string(js), testMaster.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U"} {
		outs = append(outs, fmt.Sprintf(verb, testMaster), fmt.Sprintf(verb, &testMaster), fmt.Sprintf(verb, struct{ K Master }{testMaster}))
	}
	for _, out := range outs {
		for _, leak := range []string{"0d0e0f", "0D0E0F", "13 14 15", "13,14,15", "0xd, 0xe", "1101 1110", "15 16 17"} {
			if strings.Contains(out, leak) {
				t.Errorf("shows the key: %s", out)
			}
		}
		if !strings.Contains(out, "master key ") {
			t.Errorf("does not name the key: %s", out)
		}
	}
}

// testLineLen is the length of the first line of a key wrapped by a passphrase.
const testLineLen = len(wrapMagic) + 16 + 1 + 8 + 1

const testWork = 4 // so that a flip of every byte takes no time

func TestWrap(t *testing.T) {
	blob, err := Wrap(testMaster, []byte("correct horse"), testWork)
	if err != nil {
		t.Fatal(err)
	}
	if len(blob) > maxBlob/4 {
		t.Errorf("a wrapped key has %d bytes", len(blob))
	}
	if m, err := Unwrap(blob, []byte("correct horse")); err != nil || m != testMaster {
		t.Errorf("Unwrap: %v", err)
	}
	for _, pass := range []string{"wrong", "correct horse ", ""} {
		m, err := Unwrap(blob, []byte(pass))
		if !errs.Is(err, errs.Denied) || errs.NextStep(err) == "" || !m.IsZero() {
			t.Errorf("passphrase %q: %v", pass, err)
		}
	}
	again, err := Wrap(testMaster, []byte("correct horse"), testWork)
	if err != nil || bytes.Equal(blob, again) {
		t.Errorf("two wraps are the same: %v", err)
	}
}

func TestWrapRefuses(t *testing.T) {
	if _, err := Wrap(testMaster, nil, testWork); !errs.Is(err, errs.Invalid) {
		t.Errorf("no passphrase: %v", err)
	}
	if _, err := Wrap(Master{}, []byte("x"), testWork); !errs.Is(err, errs.Bug) {
		t.Errorf("no key: %v", err)
	}
	for _, work := range []int{-1, 0, MaxWork + 1} {
		if _, err := Wrap(testMaster, []byte("x"), work); !errs.Is(err, errs.Invalid) {
			t.Errorf("work %d: %v", work, err)
		}
	}
}

// TestDefaultWork pays the default price once.
func TestDefaultWork(t *testing.T) {
	blob, err := Wrap(testMaster, []byte("x"), Work)
	if err != nil {
		t.Fatal(err)
	}
	if w, ok := workOf(blob[testLineLen:]); !ok || w != Work {
		t.Errorf("work %d, %v", w, ok)
	}
	if m, err := Unwrap(blob, []byte("x")); err != nil || m != testMaster {
		t.Error(err)
	}
}

// TestWrapDamage changes and cuts every byte: with the right passphrase all of it is damage, never a wrong passphrase.
func TestWrapDamage(t *testing.T) {
	blob, err := Wrap(testMaster, []byte("x"), testWork)
	if err != nil {
		t.Fatal(err)
	}
	for i := range blob {
		b := bytes.Clone(blob)
		b[i] ^= 1 << (i % 8)
		if _, err := Unwrap(b, []byte("x")); !errs.Is(err, errs.Corrupt) || errs.NextStep(err) == "" {
			t.Errorf("byte %d: %v", i, err)
		}
		if _, err := Unwrap(blob[:i], []byte("x")); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
	for _, b := range [][]byte{append(bytes.Clone(blob), 'x'), append(bytes.Clone(blob), make([]byte, maxBlob)...)} {
		if _, err := Unwrap(b, []byte("x")); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

// TestHostileBlobs are well-formed: their first line is right.
func TestHostileBlobs(t *testing.T) {
	blob, err := Wrap(testMaster, []byte("x"), testWork)
	if err != nil {
		t.Fatal(err)
	}
	id, file := testMaster.ID(), blob[testLineLen:]
	remade := func(id [8]byte, file string) []byte { return append(firstLine(wrapMagic, id, []byte(file)), file...) }
	header := string(file[:bytes.Index(file, []byte(" 4\n"))])
	for _, c := range []struct {
		name string
		blob []byte
		want errs.Kind
	}{
		{"too much work", remade(id, strings.Replace(string(file), " 4\n", " 21\n", 1)), errs.Unsupported},
		{"work without bound", remade(id, strings.Replace(string(file), " 4\n", " 99999999999999999999\n", 1)), errs.Corrupt},
		{"negative work", remade(id, strings.Replace(string(file), " 4\n", " -4\n", 1)), errs.Corrupt},
		{"no age file", remade(id, "hello"), errs.Corrupt},
		{"another recipient", remade(id, strings.Replace(string(file), "-> scrypt", "-> X25519", 1)), errs.Corrupt},
		{"two recipients, the second with much work", remade(id, header+" 4\n"+strings.Repeat("A", 43)+"\n-> scrypt AAAA 30\n"), errs.Corrupt},
		{"another key's identifier", remade([8]byte{1}, string(file)), errs.Corrupt},
		{"cut", remade(id, string(file[:len(file)-20])), errs.Corrupt},
	} {
		if m, err := Unwrap(c.blob, []byte("x")); !errs.Is(err, c.want) || !m.IsZero() {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestWrapVector opens a key wrapped long ago.
func TestWrapVector(t *testing.T) {
	blob := readVector(t, "wrapped.key")
	if m, err := Unwrap(blob, []byte("correct horse battery staple")); err != nil || m != testMaster {
		t.Error(err)
	}
}
