package chunkstore

import (
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/storetest"
	"github.com/holdfast-backup/holdfast/internal/disk"
)

// TestStoreInABucket runs a whole store over what an S3-compatible service offers: made, written by a session that dies
// and by others, read, collected, made compact, verified, its passphrase changed, its index lost.
func TestStoreInABucket(t *testing.T) {
	bucket := storetest.NewBucket()
	o := Options{
		Disk: disk.NewCrash(), backend: bucket, IndexDir: filepath.Join(memoryDir(t), "index"), PackSize: 300 << 10,
		Unlock: WithPassphrase(func() ([]byte, error) { return passphrase, nil }),
	}
	if _, err := Create(t.Context(), "/store", passphrase, testWork, o); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, "/store", o)
	want := map[string][]byte{"a": prose(1, 3<<20), "gone": prose(2, 2<<20)}
	killed := s.Begin(goldenTime(1), nil, nil)
	if err := killed.Ingest(t.Context(), 0, &bytesSource{data: noise(9, 500<<10)}, nil, nil); err != nil {
		t.Fatal(err)
	}
	_ = s.lock.Close() // as a kill does
	_ = s.index.Close()
	s = reopen(t, "/store", o)
	for name, data := range want {
		if _, err := tryBackup(t.Context(), s, name, &bytesSource{data: data}, nil); err != nil {
			t.Fatal(err)
		}
	}
	checkPoints(t, s.Reader, want, "a", "gone")
	removeNamed(t, s, "gone")
	// Whole packs come back; parts of them do not, for objects have no holes.
	if res, err := s.Collect(t.Context(), CollectOptions{}); err != nil || res.PacksRemoved == 0 || res.PacksShrunk != 0 {
		t.Errorf("collection: %+v, %v", res, err)
	}
	if res := mustCompact(t, s, CompactOptions{}); res.Packs == 0 {
		t.Errorf("nothing was made compact: %+v", res)
	}
	if err := s.ChangeKey(t.Context(), "master", Secret{Passphrase: []byte("another"), Work: testWork}); err != nil {
		t.Error(err)
	}
	checkPoints(t, s.Reader, want, "a")
	checkStore(t, s.Reader)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o.Unlock = WithPassphrase(func() ([]byte, error) { return []byte("another"), nil })
	o.IndexDir = filepath.Join(memoryDir(t), "new")
	before := bucket.Puts()
	s = reopen(t, "/store", o)
	checkPoints(t, s.Reader, want, "a")
	x := s.Begin(goldenTime(2), map[string]string{"name": "a"}, nil)
	if err := x.Ingest(t.Context(), 0, &bytesSource{data: want["a"]}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Commit(t.Context()); err != nil || x.Stats().NewBytes != 0 {
		t.Errorf("with a new index: %+v, %v", x.Stats(), err)
	}
	if n := bucket.Puts() - before; n > 8 {
		t.Errorf("a backup of nothing new took %d requests that write", n)
	}
}

// removeNamed removes the points of a name, and waits until nobody reads them.
func removeNamed(t *testing.T, s *Store, name string) {
	t.Helper()
	points, _ := s.Points(t.Context())
	for _, p := range points {
		if p.Labels["name"] != name {
			continue
		}
		if err := s.RemovePoint(t.Context(), p.ID); err != nil {
			t.Fatal(err)
		}
		untilReleased(t, s, p.ID)
	}
}
