package folder

import (
	"bytes"
	"encoding/hex"
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The examples of docs/format/folder.md. They must stay readable for ever.
var markVectors = []struct {
	m   mark
	hex string
}{
	{mark{kind: fs.KindDir, tree: 0x0102030405060708, id: 1, perm: 0o755, uid: 36, gid: 36},
		"010200008b6c70b808070605040302010100000000000000ed01000024000000240000000000000000000000"},
	{mark{kind: fs.KindFile, exclusive: true, tree: 1, id: 2, perm: 0o660, uid: 36, gid: 107, verifier: [8]byte{1, 2, 3}},
		"01010100974163b001000000000000000200000000000000b0010000240000006b0000000102030000000000"},
	{mark{kind: fs.KindFile, graft: true, tree: 1, id: 3, perm: 0o660, uid: 36, gid: 36, key: "disk1"},
		"01010205d747822401000000000000000300000000000000b0010000240000002400000000000000000000006469736b31"},
}

func TestMarkVectors(t *testing.T) {
	for _, v := range markVectors {
		want, err := hex.DecodeString(v.hex)
		must(t, err)
		if got := v.m.encode(); !bytes.Equal(got, want) {
			t.Errorf("%+v is written %x", v.m, got)
		}
		if m, err := decodeMark(want); err != nil || m != v.m {
			t.Errorf("%s is read %+v, %v", v.hex, m, err)
		}
		for i := range want {
			for bit := range 8 {
				bad := bytes.Clone(want)
				bad[i] ^= 1 << bit
				if m, err := decodeMark(bad); err == nil {
					t.Errorf("byte %d, bit %d turned: read %+v", i, bit, m)
				}
			}
		}
	}
}

// TestNoAttributes: a file system without them is named as what it is.
func TestNoAttributes(t *testing.T) {
	f, err := os.Open("/proc/version")
	must(t, err)
	defer f.Close()
	_, _, err = readMark(f)
	if wantKind(t, "read mark", err, errs.Unsupported); errs.NextStep(err) == "" {
		t.Error("nobody is told what to do")
	}
}

// FuzzMark: what can be read is what would be written.
func FuzzMark(f *testing.F) {
	for _, v := range markVectors {
		f.Add(v.m.encode())
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMark(b); err == nil && !bytes.Equal(m.encode(), b) {
			t.Errorf("%x is read %+v", b, m)
		}
	})
}
