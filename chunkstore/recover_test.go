package chunkstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/cut"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// realStore makes a store with testKey on the real disk and opens it.
func realStore(t testing.TB, o Options) (*Store, string, Options) {
	t.Helper()
	return realStoreIn(t, t.TempDir(), o)
}

func realStoreIn(t testing.TB, parent string, o Options) (*Store, string, Options) {
	t.Helper()
	dir := filepath.Join(parent, "store")
	super := fixedSuperblock()
	if super.Cutter = o.Cutter; o.Cutter == "" {
		super.Cutter = cut.Default
	}
	makeStore(t, disk.OS{}, dir, super)
	o.Unlock, o.IndexDir = WithMaster(testKey), filepath.Join(memoryDir(t), "index")
	return reopen(t, dir, o), dir, o
}

func reopen(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestPacksThatAreNotOurs: files among the packs that cannot be used, unsealed or sealed, do not keep the store shut, are
// left where they are, and their numbers are not given out again.
func TestPacksThatAreNotOurs(t *testing.T) {
	other := fixedSuperblock()
	other.UUID[0]++
	_, foreign := onePack(t, other)
	_, ours := onePack(t, fixedSuperblock())
	headless := slices.Clone(ours)
	clear(headless[:64])
	newer := slices.Clone(ours)
	newer[4] = 99
	binary.LittleEndian.PutUint32(newer[60:], crc32.Checksum(newer[:60], crc32.MakeTable(crc32.Castagnoli)))
	for name, content := range map[string][]byte{
		"foreign": foreign, "headless": headless, "newer": newer, "renamed": ours,
	} {
		for _, suffix := range []string{"", ".open"} {
			t.Run(name+suffix, func(t *testing.T) {
				s, dir, o := realStore(t, Options{})
				first, err := tryBackup(t.Context(), s, "first", &bytesSource{data: noise(1, 99<<10)}, nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = s.Close()
				file := filepath.Join(dir, packName(1, 0x29))
				if err := os.WriteFile(file+suffix, content, 0o600); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					s = reopen(t, dir, o)
					p, err := tryBackup(t.Context(), s, "second", &bytesSource{data: noise(uint64(s.last), 200<<10)}, nil)
					if err != nil {
						t.Fatal(err)
					}
					if at := p.Disks[0].Root.Place.Pack; at <= 0x29 {
						t.Errorf("pack %x was given out although %x is taken", at, 0x29)
					}
					checkVerify(t, s.Reader, []*Point{first, p}, 0)
					_ = s.Close()
				}
				_, errSealed := os.Stat(file)
				_, errOpen := os.Stat(file + ".open")
				if errSealed != nil && errOpen != nil {
					t.Error("the file was removed")
				}
			})
		}
	}
}

// onePack returns the name and bytes of the only data pack of a new store.
func onePack(t *testing.T, super Superblock) (string, []byte) {
	dir := filepath.Join(t.TempDir(), "store")
	makeStore(t, disk.OS{}, dir, super)
	s := reopen(t, dir, Options{Unlock: WithMaster(testKey), IndexDir: filepath.Join(memoryDir(t), "index")})
	if _, err := tryBackup(t.Context(), s, "x", &bytesSource{data: noise(5, 200<<10)}, nil); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	name := filepath.Join(dir, packName(1, 1))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return name, b
}

// TestIndexOfAnotherHistory: an index that knows the store as it went on before its folder was put back from a copy, in
// which the same pack numbers now belong to other packs. Nothing in it may be built upon.
func TestIndexOfAnotherHistory(t *testing.T) {
	d := disk.NewCrash()
	makeStore(t, d, "/store", fixedSuperblock())
	o := faultOptions(t, d)
	fork := d.Clone(1)
	want := map[string][]byte{"ours": noise(1, 500<<10), "theirs": slices.Concat(noise(1, 130<<10), noise(2, 400<<10))}

	s := reopen(t, "/store", o)
	if _, err := tryBackup(t.Context(), s, "ours", &bytesSource{data: want["ours"]}, nil); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()

	there := faultOptions(t, fork) // the same store, on another machine with its own index
	s = reopen(t, "/store", there)
	if _, err := tryBackup(t.Context(), s, "theirs", &bytesSource{data: want["theirs"]}, nil); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()

	o.Disk = fork
	s = reopen(t, "/store", o)
	x := s.Begin(time.Now(), map[string]string{"name": "ours"}, nil)
	if err := x.Ingest(t.Context(), 0, &bytesSource{data: want["ours"]}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkPoints(t, s.Reader, want, "ours", "theirs")
	if st := x.Stats(); st.KnownBytes == 0 || st.NewBytes == 0 {
		t.Errorf("the story does not meet both chunks that are there and chunks that are not: %+v", st)
	}
	// What was stored again is known from now on.
	x = s.Begin(time.Now(), nil, nil)
	if err := x.Ingest(t.Context(), 0, &bytesSource{data: want["ours"]}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if st := x.Stats(); st.NewBytes != 0 {
		t.Errorf("stored once more: %+v", st)
	}
	x.Abort()
}

// TestMissingPackHeals: after a pack was lost, a backup that brings its bytes stores them again, although the index, and
// a parent, still name the lost one.
func TestMissingPackHeals(t *testing.T) {
	s, dir, _ := realStore(t, Options{})
	data := noise(1, 300<<10)
	first, err := tryBackup(t.Context(), s, "first", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, packName(1, 1))); err != nil {
		t.Fatal(err)
	}
	second, err := tryBackup(t.Context(), s, "second", &bytesSource{data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readImage(t.Context(), s.Reader, second, 0); err != nil || !bytes.Equal(got, data) {
		t.Fatal("the new point:", err)
	}
	r, err := OpenReader(t.Context(), dir, Options{Unlock: WithMaster(testKey)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := readImage(t.Context(), r, first, 0); !errs.Is(err, errs.Corrupt) {
		t.Error("the point that lost its pack:", err)
	}
	// One that cannot be read and one that can have the same chunks: the cache must keep them apart.
	if got, err := readImage(t.Context(), r, second, 0); err != nil || !bytes.Equal(got, data) {
		t.Fatal("the new point, beside the old one:", err)
	}
	v := checkVerify(t, r, []*Point{first, second}, -1)
	for _, f := range v.Faults {
		if f.Point != first.ID {
			t.Error("a fault of the sound point:", f.Err)
		}
	}
	if v.FaultCount == 0 {
		t.Error("Verify does not miss the pack")
	}
}

// TestReuse: chunks that a run stored before it was given up or killed are found by the next one.
func TestReuse(t *testing.T) {
	const size = 6 << 20
	data := noise(1, size)
	for name, cut := range map[string]func(t *testing.T, d *disk.Crash, s *Store, x *Session) *disk.Crash{
		"aborted": func(t *testing.T, d *disk.Crash, s *Store, x *Session) *disk.Crash {
			x.Abort()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return d
		},
		"killed":    func(t *testing.T, d *disk.Crash, _ *Store, _ *Session) *disk.Crash { return d.Clone(1) },
		"power cut": func(t *testing.T, d *disk.Crash, _ *Store, _ *Session) *disk.Crash { return d.Clone(0) },
	} {
		t.Run(name, func(t *testing.T) {
			d := disk.NewCrash()
			makeStore(t, d, "/store", fixedSuperblock())
			o := faultOptions(t, d)
			o.PackSize = 1 << 20
			s := reopen(t, "/store", o)
			x := s.Begin(time.Now(), nil, nil)
			half := slices.Clone(data)
			clear(half[size/2:])
			if err := x.Ingest(t.Context(), 0, &bytesSource{data: half}, nil, nil); err != nil {
				t.Fatal(err)
			}
			o.Disk = cut(t, d, s, x)
			if name != "aborted" {
				o.IndexDir = filepath.Join(memoryDir(t), "index") // the first process of this test still has the other
			}
			s = reopen(t, "/store", o)
			x = s.Begin(time.Now(), map[string]string{"name": "whole"}, nil)
			if err := x.Ingest(t.Context(), 0, &bytesSource{data: data}, nil, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := x.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			checkPoints(t, s.Reader, map[string][]byte{"whole": data}, "whole")
			// A power cut loses what was not synced: at most the open pack, 1 MiB.
			lost := int64(0)
			if name == "power cut" {
				lost = o.PackSize + 64<<10
			}
			if st := x.Stats(); st.NewBytes > size/2+lost || st.KnownBytes < size/2-lost {
				t.Errorf("of %d bytes, half of which were stored before: %+v", size, st)
			}
		})
	}
}

// TestSessionsThatEnded take nothing more.
func TestSessionsThatEnded(t *testing.T) {
	s, _, _ := realStore(t, Options{})
	src := &bytesSource{data: noise(1, 50<<10)}
	for name, end := range map[string]func(x *Session){
		"abort":  func(x *Session) { x.Abort() },
		"commit": func(x *Session) { _, _ = x.Commit(t.Context()) },
	} {
		x := s.Begin(time.Now(), nil, nil)
		if err := x.Ingest(t.Context(), 0, src, nil, nil); err != nil {
			t.Fatal(err)
		}
		end(x)
		if err := x.Ingest(t.Context(), 1, src, nil, nil); !errs.Is(err, errs.Bug) {
			t.Errorf("Ingest after %s: %v", name, err)
		}
		if _, err := x.Commit(t.Context()); !errs.Is(err, errs.Bug) {
			t.Errorf("Commit after %s: %v", name, err)
		}
		x.Abort() // does nothing
	}
	x := s.Begin(time.Now(), nil, make([]byte, pointMaxSize))
	if err := x.Ingest(t.Context(), 0, src, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Commit(t.Context()); !errs.Is(err, errs.Invalid) {
		t.Error("a record that cannot be read back:", err)
	}
	points, bad := s.Points(t.Context())
	if len(points) != 1 || len(bad) > 0 {
		t.Errorf("%d points, %v", len(points), bad)
	}
	status, err := s.Status(t.Context())
	if err != nil || status.OpenPacks > 0 {
		t.Errorf("%d unfinished packs are left, %v", status.OpenPacks, err)
	}
}
