package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"google.golang.org/protobuf/proto"
)

// TestWhatAKillLeaves: files that badger was making or removing when it was killed do not cost the index.
func TestWhatAKillLeaves(t *testing.T) {
	s := makeSample(t, 2_000, false)
	half := bytes.Repeat([]byte{0x5a}, 5_000)
	for _, c := range []struct {
		what, name string
		content    []byte
	}{
		{"a memtable's log without a size", "00009.mem", nil},
		{"a memtable's log without a header", "00009.mem", make([]byte, 2*small.memTable)},
		{"a value log without a size", "000009.vlog", nil},
		{"a value log without a header", "000009.vlog", make([]byte, 2<<20)},
		{"an old value log that lost its size, but not its name", "000000.vlog", nil},
		{"a table without a size", "000077.sst", nil},
		{"half a table", "000077.sst", half},
		{"half a manifest", "MANIFEST-REWRITE", half[:3]},
		{"half a list of keys", "REWRITE-KEYREGISTRY", half[:3]},
		{"half a state file", stateName + ".tmp", half[:3]},
	} {
		dir := filepath.Join(t.TempDir(), "index")
		copyFolder(t, s.dir, dir)
		name := filepath.Join(dir, c.name)
		if _, err := os.Stat(name); err == nil {
			t.Fatalf("%s is there already", c.name)
		}
		must(t, os.WriteFile(name, c.content, 0o600))
		if s.check(t, dir, c.what) {
			t.Errorf("%s: begun anew", c.what)
		}
	}
}

// TestKilledWithinTheManifest cuts the note that a table was made, at every length: the log of its memtable is still
// there then.
func TestKilledWithinTheManifest(t *testing.T) {
	s := makeSample(t, 1_000, false)
	change, err := proto.Marshal(&pb.ManifestChangeSet{Changes: []*pb.ManifestChange{{
		Id: 77, Op: pb.ManifestChange_CREATE, EncryptionAlgo: pb.EncryptionAlgo_aes,
	}}})
	must(t, err)
	note := binary.BigEndian.AppendUint32(nil, uint32(len(change)))
	note = append(binary.BigEndian.AppendUint32(note, crc32.Checksum(change, castagnoli)), change...)
	manifest, err := os.ReadFile(filepath.Join(s.dir, badger.ManifestFilename))
	must(t, err)
	for n := 0; n < len(note); n += step() {
		dir := filepath.Join(t.TempDir(), "index")
		copyFolder(t, s.dir, dir)
		must(t, os.WriteFile(filepath.Join(dir, badger.ManifestFilename), append(manifest, note[:n]...), 0o600))
		if s.check(t, dir, fmt.Sprintf("%d bytes of a note", n)) {
			t.Errorf("%d bytes of a note: begun anew", n)
		}
	}
}

// TestKilledWithinATransaction cuts the last transaction at every byte. It was not acknowledged, so that nothing is
// lost, and all of the others must be there.
func TestKilledWithinATransaction(t *testing.T) {
	s := sample{filepath.Join(t.TempDir(), "index"), 500, 0}
	x := open(t, s.dir, small)
	defer mustClose(t, x)
	load(t, x, s.entries, 100, damageSeed)
	logs, err := filepath.Glob(filepath.Join(s.dir, "*.mem"))
	must(t, err)
	if len(logs) != 1 {
		t.Fatalf("logs %v, want one", logs)
	}
	used := func() int {
		b, err := os.ReadFile(logs[0])
		must(t, err)
		return len(bytes.TrimRight(b, "\x00"))
	}
	before := used()
	must(t, x.MarkPack(1, s.entries))
	after := used()
	if after-before < 50 {
		t.Fatalf("the transaction has %d bytes", after-before)
	}
	for cut := before; cut <= after; cut += step() {
		dir := filepath.Join(t.TempDir(), "index")
		copyFolder(t, s.dir, dir)
		log := filepath.Join(dir, filepath.Base(logs[0]))
		b, err := os.ReadFile(log)
		must(t, err)
		clear(b[cut:])
		must(t, os.WriteFile(log, b, 0o600))
		rewriteState(t, dir, func(s *state) { s.acked-- })
		if s.check(t, dir, fmt.Sprintf("cut at %d of %d", cut-before, after-before)) {
			t.Errorf("cut at %d of %d: begun anew", cut-before, after-before)
		}
	}
}

// TestOlderAsidesGo: also when nothing is moved aside, and whatever else has a name like theirs stays.
func TestOlderAsidesGo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	mustClose(t, open(t, dir, small))
	want := []string{"-5", "007", "20", "7x", "folder"}
	for _, name := range append(want, "3", "19") {
		must(t, os.MkdirAll(filepath.Join(dir+asideMark+name, "below"), 0o700))
	}
	mustClose(t, open(t, dir, small))
	for i, got := range asides(t, dir) {
		if i >= len(want) || got != dir+asideMark+want[i] {
			t.Fatalf("left: %v, want %v", asides(t, dir), want)
		}
	}
	if got := asides(t, dir); len(got) != len(want) {
		t.Errorf("left: %v, want %v", got, want)
	}
}
