package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend/local"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// testKey is the key of stores that makeStore makes.
var testKey = func() (k keys.Master) {
	for i := range k {
		k[i] = byte(i + 1)
	}
	return k
}()

// keyName is the object with the passphrase that Create was given.
const keyName = "keys/master.age"

// fixedSuperblock is that of stores that makeStore makes.
func fixedSuperblock() Superblock {
	id := testKey.ID()
	s := Superblock{
		Format: storeFormat, Version: storeVersion, Created: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC),
		KeyID: fmt.Sprintf("%x", id), Digest: digestHMAC, Cutter: "fixed-64k", Compression: "zstd",
	}
	for i := range s.UUID {
		s.UUID[i] = byte(0x50 + i)
	}
	return s
}

// makeStore makes a store with testKey, which Create would draw, and without a wrapped key.
func makeStore(t testing.TB, d disk.Disk, dir string, s Superblock) {
	t.Helper()
	raw, err := s.encode(testKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := local.New(d, dir).Put(context.Background(), superblockName, raw); err != nil {
		t.Fatal(err)
	}
}

// noise returns n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 99))
	for i := 0; i < n; i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], rng.Uint64())
		copy(b[i:], word[:])
	}
	return b
}

// tryBackup makes a point of one disk, number 0, under a name.
func tryBackup(ctx context.Context, s *Store, label string, src Source, parent *Parent) (*Point, error) {
	x := s.Begin(time.Now(), map[string]string{"name": label}, nil)
	defer x.Abort()
	if err := x.Ingest(ctx, 0, src, parent, nil); err != nil {
		return nil, err
	}
	return x.Commit(ctx)
}

// readImage reads a whole disk.
func readImage(ctx context.Context, r *Reader, p *Point, number int) ([]byte, error) {
	img, err := r.Image(p, number)
	if err != nil {
		return nil, err
	}
	got := make([]byte, img.Size())
	if n, err := img.ReadAt(ctx, got, 0); n != len(got) || err != nil && len(got) > 0 {
		return got[:n], err
	}
	return got, nil
}

// checkPoints demands that every point listed reads as want has it under its name, and that those in must are listed.
func checkPoints(t *testing.T, r *Reader, want map[string][]byte, must ...string) {
	t.Helper()
	points, bad := r.Points(t.Context())
	if len(bad) > 0 {
		t.Fatal("points that cannot be read:", bad)
	}
	listed := map[string]bool{}
	for _, p := range points {
		name := p.Labels["name"]
		listed[name] = true
		got, err := readImage(t.Context(), r, p, 0)
		if content, known := want[name]; err != nil || !known || !bytes.Equal(got, content) {
			t.Fatalf("point %q (known: %v) is not what was stored: %v", name, known, err)
		}
	}
	for _, m := range must {
		if !listed[m] {
			t.Fatalf("point %q was acknowledged and is gone", m)
		}
	}
	checkVerify(t, r, points, 0)
}

func checkVerify(t *testing.T, r *Reader, points []*Point, faults int64) Verified {
	t.Helper()
	v, err := r.Verify(t.Context(), points, nil)
	if err != nil {
		t.Fatal(err)
	}
	if faults == 0 && v.FaultCount > 0 {
		t.Fatalf("%d faults, first: %+v", v.FaultCount, v.Faults[0])
	}
	return v
}

// logText gathers what a store logs.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logText) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logText) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// copyFolder copies an index folder, open or not, leaving holes as holes: badger's files are mostly holes.
func copyFolder(t testing.TB, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if os.IsNotExist(err) {
			continue // badger removes files while we look
		}
		if err == nil {
			err = writeSparse(filepath.Join(to, e.Name()), b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func writeSparse(name string, b []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for at := 0; at < len(b); at += 4096 {
		part := b[at:min(len(b), at+4096)]
		if isZero(part) {
			continue
		}
		if _, err := f.WriteAt(part, int64(at)); err != nil {
			return err
		}
	}
	return f.Truncate(int64(len(b)))
}

// files lists the files of a store on the real disk but those of the index, relative to it.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		if d.IsDir() {
			if rel == "index" {
				return filepath.SkipDir
			}
			return nil
		}
		if rel != lockName {
			out = append(out, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sensible tells whether an error has a kind that somebody chose, and is not an end of file that slipped through.
func sensible(err error) bool {
	return err != nil && !errs.Is(err, errs.Bug) && err != io.EOF
}

// memoryDir returns a folder for an index, in memory if the machine offers that: the tests here open hundreds of indexes,
// and what an index does on a real disk is tested where it is written.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "holdfast-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
