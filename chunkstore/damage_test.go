package chunkstore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// damaged is a store of three points on the real disk, and which of its files each of them needs.
type damaged struct {
	dir    string
	o      Options
	points []*Point
	want   [][]byte
	needs  []map[string]bool // by point: names of packs and of its record
}

func newDamaged(t *testing.T) *damaged {
	s, dir, o := newStore(t, Options{PackSize: 200 << 10})
	d := &damaged{dir: dir, o: o}
	a, b := noise(1, 300<<10), noise(2, 250<<10)
	c := slices.Concat(a[:128<<10], noise(3, 150<<10))
	for i, data := range [][]byte{a, b, c} {
		p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
		if err != nil {
			t.Fatal(err)
		}
		d.points, d.want = append(d.points, p), append(d.want, data)
		d.needs = append(d.needs, map[string]bool{pointName(p.ID): true})
		root := p.Disks[0].Root
		d.needs[i][packName(pack.Meta, root.Place.Pack)] = true
		err = s.tree(p.Disks[0]).Walk(t.Context(), func(_ int64, l manifest.Leaf) error {
			for _, e := range l {
				if !e.IsZero() {
					d.needs[i][packName(pack.Data, e.Place.Pack)] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return d
}

// look opens the store and reads everything. It fails the test if a point that does not need the file is hurt, or if
// Verify and reading do not agree, and returns how many points were.
func (d *damaged) look(t *testing.T, file, what string) int {
	t.Helper()
	r, err := OpenReader(t.Context(), d.dir, d.o)
	if err != nil {
		t.Fatalf("%s: the store does not open: %v", what, err)
	}
	defer r.Close()
	hurt := 0
	for i, p := range d.points {
		faults := int64(0)
		read, err := r.Point(t.Context(), p.ID)
		if err == nil {
			var got []byte
			faults = checkVerify(t, r, []*Point{read}, -1).FaultCount
			if got, err = readImage(t.Context(), r, read, 0); err == nil && !bytes.Equal(got, d.want[i]) {
				t.Fatalf("%s: point %d reads as something else", what, i)
			}
			if (err != nil) != (faults > 0) {
				t.Fatalf("%s: point %d has %d faults and reads with %v", what, i, faults, err)
			}
		}
		if err == nil {
			continue
		}
		hurt++
		if !d.needs[i][file] {
			t.Fatalf("%s: point %d does not need it, and fails: %v", what, i, err)
		}
		gone := errs.Is(err, errs.NotFound) && strings.HasPrefix(file, pointPrefix)
		if !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Unsupported) && !errs.Is(err, errs.Invalid) && !errs.Is(err, errs.Denied) && !gone {
			t.Fatalf("%s: point %d: %v", what, i, err)
		}
	}
	return hurt
}

// with replaces a file while f runs; nil deletes it. What is found meanwhile is forgotten, and with it what healed it.
func (d *damaged) with(t *testing.T, file string, content []byte, f func()) {
	t.Helper()
	name := filepath.Join(d.dir, file)
	old, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if content == nil {
		err = os.Remove(name)
	} else {
		err = os.WriteFile(name, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	f()
	if err := os.WriteFile(name, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(d.dir, quarantinePrefix)); err != nil {
		t.Fatal(err)
	}
}

// needers counts the points that need a file.
func (d *damaged) needers(file string) (n int) {
	for _, needs := range d.needs {
		if needs[file] {
			n++
		}
	}
	return n
}

// TestDamage flips bytes in every region of every file that points consist of, cuts it and deletes it.
func TestDamage(t *testing.T) {
	d := newDamaged(t)
	rng := rand.New(rand.NewPCG(1, 1))
	flips := 12
	if raceEnabled || testing.Short() {
		flips = 4
	}
	for _, file := range files(t, d.dir) {
		if file == superblockName || file == keyName {
			continue
		}
		t.Run(file, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(d.dir, file))
			if err != nil {
				t.Fatal(err)
			}
			need, found := d.needers(file), 0
			places := []int{0, 5, 20, 60, 64, 70, 100, 130, len(b) - 1, len(b) - 100, len(b) - 130}
			for range flips {
				places = append(places, rng.IntN(len(b)))
			}
			for _, at := range places {
				bad := slices.Clone(b)
				bad[at%len(b)] ^= byte(1 << rng.IntN(8))
				d.with(t, file, bad, func() {
					if d.look(t, file, "a flipped byte") > 0 {
						found++
					}
				})
			}
			if found < len(places)/2 && need > 0 {
				t.Errorf("of %d flips only %d hurt a point", len(places), found)
			}
			for _, c := range []struct {
				what    string
				content []byte
			}{{"cut to half", b[:len(b)/2]}, {"cut to nothing", []byte{}}, {"cut in its header", b[:30]}, {"deleted", nil}} {
				d.with(t, file, c.content, func() {
					if hurt := d.look(t, file, c.what); need > 0 && hurt == 0 || c.content == nil && hurt != need {
						t.Errorf("%s: %d of the %d points that need it are hurt", c.what, hurt, need)
					}
					d.goOn(t, c.what)
				})
			}
		})
	}
}

// goOn opens the damaged store for writing and stores the lost content again, with the index as it was and without.
func (d *damaged) goOn(t *testing.T, what string) {
	t.Helper()
	for _, index := range []string{d.o.IndexDir, filepath.Join(memoryDir(t), "index")} {
		o := d.o
		o.IndexDir = index
		s, err := Open(t.Context(), d.dir, o)
		if err != nil {
			t.Fatalf("%s: the store does not open for writing: %v", what, err)
		}
		for i, data := range d.want {
			p, err := tryBackup(t.Context(), s, "again", &bytesSource{data: data}, nil)
			if err != nil {
				t.Fatalf("%s: storing disk %d again: %v", what, i, err)
			}
			if got, err := readImage(t.Context(), s.Reader, p, 0); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: disk %d was stored again and cannot be read: %v", what, i, err)
			}
			if err := s.RemovePoint(t.Context(), p.ID); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestDamagedSuperblock: any change is noticed, or changes nothing.
func TestDamagedSuperblock(t *testing.T) {
	d := newDamaged(t)
	b, err := os.ReadFile(filepath.Join(d.dir, superblockName))
	if err != nil {
		t.Fatal(err)
	}
	open := func() error {
		r, err := OpenReader(t.Context(), d.dir, d.o)
		if err == nil {
			_ = r.Close()
		}
		return err
	}
	accepted := 0
	for at := range b {
		bad := slices.Clone(b)
		bad[at] ^= 0x20
		d.with(t, superblockName, bad, func() {
			switch err := open(); {
			case err == nil:
				accepted++
				d.look(t, superblockName, "flipped, and accepted")
			case !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Unsupported) && !errs.Is(err, errs.Denied) || errs.NextStep(err) == "":
				t.Errorf("byte %d flipped: %v", at, err)
			}
		})
	}
	if accepted > 200 { // the case of field names and of hexadecimal digits, which mean the same
		t.Errorf("%d of %d flips were accepted", accepted, len(b))
	}
	for n := range b {
		d.with(t, superblockName, b[:n], func() {
			if err := open(); !errs.Is(err, errs.Corrupt) {
				t.Errorf("cut to %d bytes: %v", n, err)
			}
		})
	}
	d.with(t, superblockName, nil, func() {
		if err := open(); !errs.Is(err, errs.NotFound) {
			t.Error("deleted:", err)
		}
	})
}

// TestDamagedKey: it costs the passphrase; the kit still opens everything.
func TestDamagedKey(t *testing.T) {
	d := newDamaged(t)
	b, err := os.ReadFile(filepath.Join(d.dir, keyName))
	if err != nil {
		t.Fatal(err)
	}
	byPassphrase := d.o
	byPassphrase.Unlock = WithPassphrase(func() ([]byte, error) { return passphrase, nil })
	flipped := slices.Clone(b)
	flipped[len(b)-5] ^= 1
	for what, content := range map[string][]byte{"flipped": flipped, "cut": b[:len(b)/2], "empty": {}, "deleted": nil} {
		d.with(t, keyName, content, func() {
			if _, err := OpenReader(t.Context(), d.dir, byPassphrase); err == nil || !sensible(err) {
				t.Errorf("%s: opening by passphrase: %v", what, err)
			}
			d.look(t, keyName, "key "+what)
		})
	}
}

// TestVerifyNamesEveryPoint: a chunk that three points share is damaged for all three, and read once.
func TestVerifyNamesEveryPoint(t *testing.T) {
	s, dir, _ := realStore(t, Options{Cutter: "fixed-64k"})
	var points []*Point
	for i := range 3 {
		data := slices.Concat(noise(1, 128<<10), noise(uint64(i+10), 64<<10))
		p, err := tryBackup(t.Context(), s, "x", &bytesSource{data: data}, nil)
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, p, p) // the same disk twice: a whole tree that is met again
	}
	clean := checkVerify(t, s.Reader, points, 0)
	if clean.Chunks != 5 || clean.Pages != 3 {
		t.Errorf("%d chunks and %d pages were read, want 5 and 3: once each", clean.Chunks, clean.Pages)
	}
	name := filepath.Join(dir, packName(pack.Data, 1))
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[64+64+500]++
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(t.Context(), dir, Options{Unlock: WithMaster(testKey)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	v := checkVerify(t, r, points, -1)
	if v.FaultCount != 6 || v.Chunks != 5 {
		t.Errorf("%d faults with %d chunks read, want one for each of 6 disks with 5", v.FaultCount, v.Chunks)
	}
	for _, f := range v.Faults {
		if f.Off != 0 || !errs.Is(f.Err, errs.Corrupt) {
			t.Errorf("fault %+v", f)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Verify(ctx, points, nil); !errs.Is(err, errs.Canceled) {
		t.Error("cancelled:", err)
	}
}
