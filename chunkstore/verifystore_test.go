package chunkstore

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// blocksLost returns the blocks of a disk that cannot be read, and fails the test if one reads as something else.
func blocksLost(t *testing.T, r *Reader, p *Point, want []byte) (lost []bool) {
	t.Helper()
	img, err := r.Image(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	lost = make([]bool, (len(want)+chunk.Grid-1)/chunk.Grid)
	for i := range lost {
		part := want[i*chunk.Grid : min(len(want), (i+1)*chunk.Grid)]
		got := make([]byte, len(part))
		n, err := img.ReadAt(t.Context(), got, int64(i)*chunk.Grid)
		if lost[i] = n < len(part); lost[i] {
			if !errs.Is(err, errs.Corrupt) {
				t.Fatalf("block %d: %v", i, err)
			}
		} else if !bytes.Equal(got, part) {
			t.Fatalf("block %d reads as something else", i)
		}
	}
	return lost
}

// agree tells whether faults name what cannot be read of a disk: each block that is lost, and no range in which none is.
// A range is a chunk's, of which one frame may be lost and others not.
func agree(faults []Fault, p *Point, lost []bool) bool {
	for _, f := range faults {
		if f.Point == p.ID && f.Off >= 0 {
			first, last := min(int(f.Off/chunk.Grid), len(lost)), min(int((f.Off+f.Len+chunk.Grid-1)/chunk.Grid), len(lost))
			if first < last && !slices.Contains(lost[first:last], true) {
				return false
			}
		}
	}
	for i, named := range blocksNamed(faults, p, len(lost)*chunk.Grid) {
		if lost[i] && !named {
			return false
		}
	}
	return true
}

// blocksNamed returns the blocks of a disk that faults name.
func blocksNamed(faults []Fault, p *Point, size int) []bool {
	named := make([]bool, (size+chunk.Grid-1)/chunk.Grid)
	for _, f := range faults {
		if f.Point == p.ID && f.Off >= 0 {
			for i := f.Off / chunk.Grid; i < min(int64(len(named)), (f.Off+f.Len+chunk.Grid-1)/chunk.Grid); i++ {
				named[i] = true
			}
		}
	}
	return named
}

// verified looks at the damaged store. It fails the test if a verification names other ranges than those that cannot be
// read, or names nothing of the file. It returns the objects that were named.
func (d *damaged) verified(t *testing.T, file, what string) (objects []string) {
	t.Helper()
	r, err := OpenReader(t.Context(), d.dir, d.o)
	if err != nil {
		t.Fatalf("%s: the store does not open: %v", what, err)
	}
	defer r.Close()
	v, err := r.VerifyStore(t.Context(), VerifyOptions{})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for _, f := range v.Faults {
		objects = append(objects, f.Object)
		if f.Point != "" && f.Off < 0 || f.Err == nil || f.Object != file && !strings.HasPrefix(file, "index") {
			t.Fatalf("%s: fault %+v", what, f)
		}
		if f.Spot.Kind == pack.Data && !strings.Contains(f.Err.Error(), f.Spot.ID.String()) && f.Err != errRuins && f.Point != "" {
			t.Fatalf("%s: the error does not name the chunk %s: %v", what, f.Spot.ID, f.Err)
		}
	}
	for i, p := range d.points {
		if p, err = r.Point(t.Context(), p.ID); err != nil {
			if file != pointName(d.points[i].ID) {
				t.Fatalf("%s: point %d: %v", what, i, err)
			}
			continue
		}
		lost := blocksLost(t, r, p, d.want[i])
		if !agree(v.Faults, p, lost) {
			t.Fatalf("%s: of point %d are lost\n%v, named are\n%v", what, i, lost, blocksNamed(v.Faults, p, len(d.want[i])))
		}
		if slices.Contains(lost, true) && !d.needs[i][file] {
			t.Fatalf("%s: point %d does not need the file, and is hurt", what, i)
		}
		one, err := r.Verify(t.Context(), []*Point{p}, nil)
		if err != nil || !agree(one.Faults, p, lost) {
			t.Fatalf("%s: verifying point %d alone names other ranges: %+v, %v", what, i, one.Faults, err)
		}
	}
	d.quick(t, r, v, what)
	return objects
}

// quick: the quick look names nothing that the thorough one does not.
func (d *damaged) quick(t *testing.T, r *Reader, thorough Verified, what string) {
	t.Helper()
	v, err := r.VerifyStore(t.Context(), VerifyOptions{Quick: true})
	if err != nil || v.FaultCount > thorough.FaultCount || v.Bytes != 0 {
		t.Fatalf("%s: a quick look finds %d faults, a thorough one %d, reading %d bytes; %v", what, v.FaultCount, thorough.FaultCount, v.Bytes, err)
	}
	for _, f := range v.Faults {
		if !slices.ContainsFunc(thorough.Faults, func(g Fault) bool { return f.Point == g.Point && f.Off == g.Off && f.Object == g.Object }) {
			t.Fatalf("%s: only the quick look finds %+v", what, f)
		}
	}
}

// TestEveryBitIsFoundAndNamed flips one bit at a time in every file of a store: it is found, the file is named, and the
// ranges of the disks that cannot be read, and no others, are named.
func TestEveryBitIsFoundAndNamed(t *testing.T) {
	d := newDamaged(t)
	d.more(t)
	d.o.IndexDir = filepath.Join(memoryDir(t), "none")
	if v := d.verified(t, "", "the whole store"); len(v) > 0 {
		t.Fatalf("a good store has faults in %q", v)
	}
	places := 70
	if raceEnabled || testing.Short() {
		places = 25
	}
	for _, file := range files(t, d.dir) {
		if file == superblockName { // TestDamagedSuperblock
			continue
		}
		t.Run(file, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(d.dir, file))
			if err != nil {
				t.Fatal(err)
			}
			step := len(b)/places + 1
			for at := 0; at < len(b); at++ {
				dense := at < 200 || at > len(b)-330 // headers, a first group; the end of the directory and the trailer
				if at%step != 0 && !(dense && at%3 == 0) {
					continue
				}
				bad := slices.Clone(b)
				bad[at] ^= 1 << (at % 8)
				d.with(t, file, bad, func() {
					if objects := d.verified(t, file, "a flipped bit"); !slices.Contains(objects, file) {
						t.Fatalf("a flipped bit in byte %d of %d was not found: %q", at, len(b), objects)
					}
				})
			}
			for _, c := range [][]byte{b[:len(b)/2], b[:len(b)-1], {}, append(slices.Clone(b), 0)} {
				d.with(t, file, c, func() {
					if objects := d.verified(t, file, "another length"); !slices.Contains(objects, file) {
						t.Fatalf("cut to %d of %d bytes was not found", len(c), len(b))
					}
				})
			}
			if strings.HasPrefix(file, "data/") || strings.HasPrefix(file, "meta/") {
				d.with(t, file, nil, func() {
					if objects := d.verified(t, file, "deleted"); d.needers(file) > 0 && !slices.Contains(objects, file) {
						t.Fatal("a missing pack was not found")
					}
				})
			}
		})
	}
}

// more adds what a store in use has besides points: keys, locks, and chunks that no point needs.
func (d *damaged) more(t *testing.T) {
	t.Helper()
	s := reopen(t, d.dir, d.o)
	if _, err := s.LockPoint(t.Context(), d.points[0].ID, time.Now().Add(time.Hour), "a test"); err != nil {
		t.Fatal(err)
	}
	if err := s.AddKey(t.Context(), "node", Secret{KeyFile: keys.NewFile()}); err != nil {
		t.Fatal(err)
	}
	if err := s.AddKey(t.Context(), "master", secretPhrase("p")); err != nil && !errs.Is(err, errs.Exists) {
		t.Fatal(err)
	}
	p, err := tryBackup(t.Context(), s, "gone", &bytesSource{data: noise(77, 100<<10)}, nil)
	if err == nil {
		err = s.RemovePoint(t.Context(), p.ID)
	}
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestIndexIsVerified: damage to the index is found while nobody has it open, and hits no point.
func TestIndexIsVerified(t *testing.T) {
	d := newDamaged(t)
	if v := d.verified(t, "index", "the whole store"); len(v) > 0 {
		t.Fatalf("a good store has faults in %q", v)
	}
	tables, err := filepath.Glob(filepath.Join(d.o.IndexDir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables %q, %v", tables, err)
	}
	b, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := os.WriteFile(tables[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := d.verified(t, "index", "a damaged index"); !slices.Equal(v, []string{"index"}) {
		t.Errorf("faults in %q", v)
	}
	s := reopen(t, d.dir, d.o) // which makes a new one, and holds it
	if v := d.verified(t, "index", "an index in use"); len(v) > 0 {
		t.Errorf("faults in %q", v)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// firstChunk returns the bytes of the first chunk of the first point.
func (d *damaged) firstChunk(t *testing.T) int64 {
	t.Helper()
	r := openedReader(t, disk.OS{}, d.dir, d.o.Unlock)
	l, err := r.tree(d.points[0].Disks[0]).Leaf(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return int64(l[0].End) * chunk.Grid
}

// TestVerifyQuickIsQuick: it reads no frame, and still finds what is missing.
func TestVerifyQuickIsQuick(t *testing.T) {
	d := newDamaged(t)
	file := packName(pack.Data, 1)
	b, err := os.ReadFile(filepath.Join(d.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	quick := func(content []byte) (v Verified) {
		t.Helper()
		d.with(t, file, content, func() {
			r := openedReader(t, disk.OS{}, d.dir, d.o.Unlock)
			if v, err = r.VerifyQuick(t.Context(), d.points, nil); err != nil {
				t.Fatal(err)
			}
		})
		return v
	}
	frame := slices.Clone(b)
	frame[64+64+300] ^= 1
	if v := quick(frame); v.FaultCount != 0 || v.Bytes != 0 || v.Chunks == 0 {
		t.Errorf("a quick look at a rotten frame: %+v", v)
	}
	header := slices.Clone(b)
	header[64+20] ^= 1
	if v := quick(header); v.FaultCount != 2 || v.Faults[0].Off != 0 || v.Faults[0].Len != d.firstChunk(t) || v.Faults[1].Point != d.points[2].ID {
		t.Errorf("a quick look at a rotten header: %+v", v)
	}
	if v := quick(nil); v.FaultCount == 0 {
		t.Error("a quick look does not see that a pack is gone")
	}
}
