package chunkstore

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/disk"
)

// The vectors in testdata are described in its README, for whoever writes a second reader. They are never written again
// for a version that was released; a new version of a format adds its own.
var writeVectors = flag.Bool("write-vectors", false, "write testdata anew; only for a version that was never released")

// goldenDisk is the content of the disks in the committed store: version 0 or 1 of disk 0, and disk 3.
func goldenDisk(number, version int) []byte {
	b := make([]byte, 150_001)
	if number == 3 {
		b = make([]byte, 4096)
	}
	for i := range b {
		if i < 70_000 || i >= 140_000 {
			b[i] = byte(i>>7 + i&3 + number)
		}
		if version == 1 && i >= 66_000 && i < 66_500 {
			b[i] = 0xee
		}
	}
	return b
}

var goldenPoints = []PointID{"00000000000000a0", "00000000000000a1"}

func goldenTime(n int) time.Time {
	return time.Date(2026, 11, 24, 12, n, 0, 123456789, time.UTC)
}

// vectorPoint is the point of testdata/point.
var vectorPoint = &Point{
	ID: "0123456789abcdef", Time: time.Date(2026, 11, 24, 12, 0, 0, 123456789, time.UTC),
	Labels: map[string]string{"vm": "web", "a": "ü"}, Config: []byte{0, 1, 2, 0xff},
	Disks: []Disk{
		{Number: 0, Cutter: "fixed-64k", Digest: digestHMAC, Root: manifest.Root{
			Size: 5 << 30, Data: 65536, Level: 2, Digest: chunk.Digest{0: 1, 15: 2, 31: 3},
			Place: chunk.Place{Pack: 7, Offset: 4, Stored: 300},
		}},
		{Number: 9, Cutter: "fixed-64k", Digest: digestHMAC, Root: manifest.Root{Size: 1}},
	},
}

// TestWriteVectors does nothing unless asked to.
func TestWriteVectors(t *testing.T) {
	if !*writeVectors {
		t.Skip("only with -write-vectors")
	}
	dir := "testdata/store"
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	makeStore(t, disk.OS{}, dir, fixedSuperblock())
	wrapped, err := keys.Wrap(testKey, passphrase, testWork)
	if err != nil {
		t.Fatal(err)
	}
	record, err := sealPoint(testKey.PointKey(), vectorNonce, vectorPoint)
	if err != nil {
		t.Fatal(err)
	}
	quarantined := sealQuarantine(testKey.PointKey(), vectorNonce, vectorQuarantineName, vectorQuarantine)
	for name, content := range map[string][]byte{
		filepath.Join(dir, keyName): wrapped, "testdata/point": record, "testdata/quarantine": quarantined,
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := reopen(t, dir, Options{Unlock: WithMaster(testKey), IndexDir: filepath.Join(memoryDir(t), "index")})
	var parent *Parent
	for version, id := range goldenPoints {
		x := s.Begin(goldenTime(version), map[string]string{"vm": "web"}, []byte("config"))
		x.point.ID = id
		for _, number := range []int{0, 3} {
			if err := x.Ingest(t.Context(), number, &bytesSource{data: goldenDisk(number, version)}, parent, nil); err != nil {
				t.Fatal(err)
			}
			parent = nil
		}
		p, err := x.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		parent = &Parent{p, p.Disks[0]}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(dir, lockName))
}

// TestGoldenStore opens the store in testdata, which every version has to read, by key and by passphrase.
func TestGoldenStore(t *testing.T) {
	dir := "testdata/store"
	for name, unlock := range map[string]Unlock{
		"key": WithMaster(testKey), "passphrase": WithPassphrase(func() ([]byte, error) { return passphrase, nil }),
	} {
		t.Run(name, func(t *testing.T) {
			before := files(t, dir)
			r, err := OpenReader(t.Context(), dir, Options{Unlock: unlock})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			points, bad := r.Points(t.Context())
			if len(bad) > 0 || len(points) != len(goldenPoints) {
				t.Fatalf("%d points, %v", len(points), bad)
			}
			for version, p := range points {
				if p.ID != goldenPoints[version] || !p.Time.Equal(goldenTime(version)) || p.Labels["vm"] != "web" || string(p.Config) != "config" {
					t.Errorf("point %+v", p)
				}
				for _, number := range []int{0, 3} {
					got, err := readImage(t.Context(), r, p, number)
					if err != nil || !bytes.Equal(got, goldenDisk(number, version)) {
						t.Errorf("disk %d of point %s: %v", number, p.ID, err)
					}
				}
			}
			if v := checkVerify(t, r, points, 0); v.Chunks != 5 || v.Disks != 4 {
				t.Errorf("verified %+v", v)
			}
			if after := files(t, dir); fmt.Sprint(after) != fmt.Sprint(before) || len(after) < 8 {
				t.Errorf("reading left %v where there was %v", after, before)
			}
		})
	}
}

// TestSuperblockVector: these bytes never change.
func TestSuperblockVector(t *testing.T) {
	want, err := os.ReadFile("testdata/store/superblock")
	if err != nil {
		t.Fatal(err)
	}
	got, err := fixedSuperblock().encode(testKey)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}

// TestPointVector: these bytes never change, and say this.
func TestPointVector(t *testing.T) {
	want, err := os.ReadFile("testdata/point")
	if err != nil {
		t.Fatal(err)
	}
	p, err := decodePoint(testKey.PointKey(), vectorPoint.ID, want)
	if err != nil || fmt.Sprint(p) != fmt.Sprint(vectorPoint) {
		t.Fatalf("%v\n got %+v\nwant %+v", err, p, vectorPoint)
	}
	got, err := sealPoint(testKey.PointKey(), [12]byte(want[16:28]), vectorPoint)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, encoding gives other bytes:\n got %x\nwant %x", err, got, want)
	}
}
