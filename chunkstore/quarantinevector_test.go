package chunkstore

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend/local"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/quarantine"
	"github.com/holdfast-backup/holdfast/internal/disk"
)

var vectorNonce = [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

// vectorQuarantine is the record of testdata/quarantine.
var vectorQuarantine = &quarantine.Record{
	Kind: uint8(pack.Data), Number: 7, Lost: time.Unix(1795521600, 5).UTC(),
	Entries: []quarantine.Entry{
		{ID: chunk.ID{0: 1, 15: 2}, Offset: 4, Stored: 300, Since: time.Unix(1795521601, 0).UTC()},
		{ID: chunk.ID{0: 3, 15: 4}, Offset: 4, Stored: 300, Since: time.Unix(1795521602, 0).UTC(), Healed: chunk.Place{Pack: 9, Offset: 16, Stored: 301}},
	},
}

const vectorQuarantineName = "quarantine/data-00000007"

// TestGoldenQuarantine: encoding gives the bytes in testdata, and they are read back.
func TestGoldenQuarantine(t *testing.T) {
	want, err := os.ReadFile("testdata/quarantine")
	if err != nil {
		t.Fatal(err)
	}
	if name := quarantineName(packKey{pack.Data, 7}); name != vectorQuarantineName {
		t.Errorf("its name is %s", name)
	}
	if got := sealQuarantine(testKey.PointKey(), vectorNonce, vectorQuarantineName, vectorQuarantine); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	dir := filepath.Join(t.TempDir(), "store")
	makeStore(t, disk.OS{}, dir, fixedSuperblock())
	b := local.New(disk.OS{}, dir)
	if err := b.Put(t.Context(), vectorQuarantineName, want); err != nil {
		t.Fatal(err)
	}
	r := fresh(t, dir, Options{Unlock: WithMaster(testKey)})
	if got, err := r.loadQuarantine(t.Context(), packKey{pack.Data, 7}); err != nil || !reflect.DeepEqual(got, vectorQuarantine) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := b.Put(t.Context(), "quarantine/data-00000008", want); err != nil {
		t.Fatal(err)
	}
	if _, err := r.loadQuarantine(t.Context(), packKey{pack.Data, 8}); err == nil {
		t.Error("the record of one pack is taken for that of another")
	}
	for _, bad := range []string{"quarantine/data-7", "quarantine/x-00000007", "quarantine/data-0000000g", "quarantine/data-00000007.x"} {
		if key, ok := quarantineKey(bad); ok {
			t.Errorf("%s is taken for that of %v", bad, key)
		}
	}
}
