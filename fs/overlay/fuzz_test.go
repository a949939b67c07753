package overlay

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/fuzztest"
)

// fixHeader makes the checksum of a sector right, whatever it says.
func fixHeader(b []byte) { binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli)) }

// TestCorpus: a fuzz target without seeds would pass and test nothing.
func TestCorpus(t *testing.T) {
	for _, target := range []string{"FuzzReadLog", "FuzzEntries"} {
		if files, err := os.ReadDir("testdata/fuzz/" + target); err != nil || len(files) < 3 {
			t.Errorf("the corpus of %s has %d files, %v", target, len(files), err)
		}
	}
}

// FuzzReadLog: no input makes the reader panic or take much memory; checksums are made right first, so that the fuzzer
// reaches what lies behind them. What is read can be written as a snapshot and reads the same again.
func FuzzReadLog(f *testing.F) {
	f.Fuzz(func(t *testing.T, log []byte) {
		log = bytes.Clone(log)
		for at := 0; at+sectorSize <= len(log); at += sectorSize {
			if s := log[at:][:sectorSize]; !allZero(s) {
				fixHeader(s)
			}
		}
		var c *logContent
		var err error
		// A log's batch may name the last block there can be: the table of leaves then reaches that far.
		fuzztest.Bounded(t, len(log), 2*maxBlocks/leafBlocks*24+maxBatchPayload, 64, func() {
			c, err = readLog(bytes.NewReader(log))
		})
		if err != nil {
			return
		}
		again := (&header{segmentBytes: blockSize}).encode()
		for i, p := range c.state.snapshot() {
			again = appendSectors(again, uint64(i)+1, p)
		}
		d, err := readLog(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("a snapshot of what was read does not read: %v", err)
		}
		if d.state.size != c.state.size || d.state.blocks.data != c.state.blocks.data {
			t.Fatal("a snapshot of what was read reads as something else")
		}
	})
}

// FuzzEntries: what decodes encodes to the same bytes.
func FuzzEntries(f *testing.F) {
	f.Fuzz(func(t *testing.T, p []byte) {
		var again []byte
		err := decodeEntries(p, func(e entry) error {
			again = appendEntry(again, e)
			return nil
		})
		if err == nil && !bytes.Equal(p, again) {
			t.Fatalf("%x decodes and encodes to %x", p, again)
		}
	})
}
