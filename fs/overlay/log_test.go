package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// writtenLog returns a disk with an overlay whose log has a snapshot and some batches, and the log's content.
func writtenLog(t *testing.T) (*disk.Crash, Base, []byte) {
	t.Helper()
	d, base := disk.NewCrash(), Base(memBase{make([]byte, 40*blockSize)})
	o, err := Create(ctx, d, "/o", base, Options{Identity: "a", compactAfter: 4})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		if err := o.WriteAt(ctx, []byte("data"), int64(i)*3*blockSize, true); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 { // the last batch takes several sectors
		if err := o.WriteAt(ctx, []byte("x"), int64(100+2*i)*blockSize, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	log, err := disk.ReadFile(d, "/o/"+logName, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return d, base, log
}

// withLog returns a copy of a disk with another map log.
func withLog(t *testing.T, d *disk.Crash, log []byte) *disk.Crash {
	t.Helper()
	c := d.Clone(1)
	if err := disk.Publish(c, "/o/"+logName, log); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestLogDamage flips bits all over the log: each is found, named and not repaired.
func TestLogDamage(t *testing.T) {
	d, base, log := writtenLog(t)
	c, err := readLog(bytes.NewReader(log))
	if err != nil || c.torn || c.header.snapshotSectors == 0 || c.end < c.header.snapshotSectors+3 {
		t.Fatalf("the log to be damaged is %+v, %v", c, err)
	}
	for at := range int(c.end) * sectorSize {
		bad := bytes.Clone(log)
		bad[at] ^= 1 << (at % 8)
		if _, err := readLog(bytes.NewReader(bad)); err == nil {
			t.Fatalf("byte %d of sector %d is damaged and nobody notices", at%sectorSize, at/sectorSize)
		}
		if at%97 != 0 {
			continue
		}
		_, err := Open(ctx, withLog(t, d, bad), "/o", base, Options{Identity: "a"})
		if !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "/o/"+logName) || errs.NextStep(err) == "" {
			t.Fatalf("damage at %d: %v", at, err)
		}
	}
}

// TestLogTorn: whatever of the last batch did not arrive, the batch is cut off; a sector missing before is damage.
func TestLogTorn(t *testing.T) {
	d, base, log := writtenLog(t)
	whole, err := readLog(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	last := whole.end - 1 // first sector of the last batch
	for !bytes.Equal(log[last*sectorSize+16:][:4], make([]byte, 4)) {
		last--
	}
	if whole.end-last < 2 {
		t.Fatal("the last batch has one sector only")
	}
	for missing := 1; missing < 1<<(whole.end-last); missing++ {
		torn := bytes.Clone(log)
		for i := range whole.end - last {
			if missing>>i&1 == 1 {
				clear(torn[(last+i)*sectorSize:][:sectorSize])
			}
		}
		c, err := readLog(bytes.NewReader(torn))
		if err != nil || c.end != last || c.seq != whole.seq-1 || c.torn == (missing == 1<<(whole.end-last)-1) {
			t.Fatalf("missing %b: %v, %+v", missing, err, c)
		}
		disk := withLog(t, d, torn)
		o, err := Open(ctx, disk, "/o", base, Options{Identity: "a"})
		if err != nil {
			t.Fatalf("missing %b: %v", missing, err)
		}
		if err := o.WriteAt(ctx, []byte("more"), 7*blockSize, true); err != nil {
			t.Fatal(err)
		}
		if o, err = Open(ctx, disk.Clone(0), "/o", base, Options{Identity: "a"}); err != nil {
			t.Fatalf("missing %b, after one more write: %v", missing, err)
		}
		got := make([]byte, 4)
		if _, err := o.ReadAt(ctx, got, 7*blockSize); err != nil || string(got) != "more" {
			t.Errorf("read %q, %v", got, err)
		}
	}
	for at := int64(1); at < last; at++ {
		bad := bytes.Clone(log)
		clear(bad[at*sectorSize:][:sectorSize])
		if _, err := readLog(bytes.NewReader(bad)); err == nil {
			t.Errorf("sector %d of %d is lost and nobody notices", at, last)
		}
	}
	for cut := range whole.header.snapshotSectors {
		if _, err := readLog(bytes.NewReader(log[:(1+cut)*sectorSize])); err == nil {
			t.Errorf("a log cut to %d sectors passes", 1+cut)
		}
	}
}

func TestHeader(t *testing.T) {
	h := header{identity: "point 7, disk 2", baseSize: 12345, segmentBytes: 1 << 40, snapshotSectors: 9}
	got, err := decodeHeader(h.encode())
	if err != nil || got != h {
		t.Errorf("%+v, %v", got, err)
	}
	newer := h.encode()
	newer[12] = 2
	fixHeader(newer)
	if _, err := decodeHeader(newer); !errors.Is(err, errUnsupported) {
		t.Errorf("a newer version: %v", err)
	}
	if err := logError("x", fmt.Errorf("%w", errUnsupported)); !errs.Is(err, errs.Unsupported) {
		t.Error(err)
	}
	for _, bad := range []header{{baseSize: -1, segmentBytes: blockSize}, {segmentBytes: 5}, {segmentBytes: blockSize, snapshotSectors: -1}} {
		if _, err := decodeHeader(bad.encode()); err == nil {
			t.Errorf("%+v passes", bad)
		}
	}
	for _, none := range [][]byte{nil, []byte("short"), make([]byte, 4096)} {
		if _, err := readLog(bytes.NewReader(none)); err == nil {
			t.Errorf("%d bytes that are no log pass", len(none))
		}
	}
}

// TestEntriesRejected: a batch whose checksum is right and whose content is not ours.
func TestEntriesRejected(t *testing.T) {
	leaf := appendEntry(nil, entry{kind: entryLeaf, a: 1, words: &[leafWords]uint64{}})
	two := bytes.Clone(leaf)
	two[100] = 3 // a state that does not exist
	for name, p := range map[string][]byte{
		"no kind": {0, 1}, "unknown kind": {99, 1}, "no number": {byte(entrySize)}, "no count": {byte(entryData), 1},
		"count 0": {byte(entryData), 1, 0}, "long number": {byte(entrySize), 0x81, 0}, "short leaf": leaf[:100],
		"bad state": two, "too large": appendEntry(nil, entry{kind: entrySize, a: maxSize + 1}),
		"past the end": appendEntry(nil, entry{kind: entryZero, a: maxBlocks - 1, b: 2}),
		"far leaf":     appendEntry(nil, entry{kind: entryLeaf, a: maxBlocks / leafBlocks, words: &[leafWords]uint64{}}),
	} {
		if err := decodeEntries(p, func(entry) error { return nil }); err == nil {
			t.Errorf("%s passes", name)
		}
		log := append((&header{segmentBytes: blockSize}).encode(), appendSectors(nil, 1, p)...)
		if _, err := readLog(bytes.NewReader(log)); err == nil {
			t.Errorf("%s passes in a log", name)
		}
	}
}

// TestSnapshot: what a snapshot says is the state it was made from, and it takes no more than the bits would.
func TestSnapshot(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 5))
		st := mapState{size: 5 * leafBlocks * blockSize, baseLimit: 777}
		for range []int{3, 200, 20000}[seed%3] {
			st.blocks.set(r.Int64N(5*leafBlocks-100), 1+r.Int64N(100), state(r.IntN(numStates)))
		}
		st.blocks.set(2*leafBlocks, leafBlocks, stateData)
		h := header{identity: "a", segmentBytes: blockSize}
		log, size := []byte(nil), 0
		for i, p := range st.snapshot() {
			log = appendSectors(log, uint64(i)+1, p)
			h.snapshotSectors += sectors(p)
			size += len(p)
		}
		c, err := readLog(io.MultiReader(bytes.NewReader(h.encode()), bytes.NewReader(log)))
		if err != nil {
			t.Fatal(err)
		}
		if size > 5*(leafByteCount+16)+64 {
			t.Errorf("seed %d: %d bytes for five leaves", seed, size)
		}
		if c.state.size != st.size || c.state.baseLimit != st.baseLimit || c.state.blocks.data != st.blocks.data {
			t.Fatalf("seed %d: %+v", seed, c.state)
		}
		for at := int64(0); at < 5*leafBlocks; at++ {
			a, _ := st.blocks.run(at, 1)
			if b, _ := c.state.blocks.run(at, 1); a != b {
				t.Fatalf("seed %d: block %d is %d, was %d", seed, at, b, a)
			}
		}
	}
}

// TestMissingSegment: data that the map knows and the folder lacks is damage, with the file's name.
func TestMissingSegment(t *testing.T) {
	d, base, _ := writtenLog(t)
	for _, damage := range []func(*disk.Crash) error{
		func(c *disk.Crash) error { return c.Remove("/o/" + segmentName(0)) },
		func(c *disk.Crash) error {
			f, err := c.OpenRW("/o/" + segmentName(0))
			if err != nil {
				return err
			}
			return f.Truncate(5 * blockSize)
		},
	} {
		c := d.Clone(1)
		if err := damage(c); err != nil {
			t.Fatal(err)
		}
		_, err := Open(ctx, c, "/o", base, Options{Identity: "a"})
		if !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), segmentName(0)) {
			t.Errorf("%v", err)
		}
	}
}
