package overlay

import (
	"encoding/binary"
	"errors"
)

// entryKind says what an entry of a batch changes. Stored: never change.
type entryKind uint8

const (
	entryData      entryKind = 1 // blocks are in the segments: first block, count
	entryZero      entryKind = 2 // blocks read as zeros: first block, count
	entryLeaf      entryKind = 3 // all states of one leaf: its number, then 4096 bytes
	entrySize      entryKind = 4 // the image has grown: its size
	entryTruncate  entryKind = 5 // the image has shrunk: its size
	entryBaseLimit entryKind = 6 // the base is visible up to here: an offset
)

// entry is one change of the map. a and b are what the kind says.
type entry struct {
	kind  entryKind
	a, b  int64
	words *[leafWords]uint64 // entryLeaf only
}

func appendEntry(to []byte, e entry) []byte {
	to = append(to, byte(e.kind))
	to = binary.AppendUvarint(to, uint64(e.a))
	switch e.kind {
	case entryData, entryZero:
		to = binary.AppendUvarint(to, uint64(e.b))
	case entryLeaf:
		for _, w := range e.words {
			to = binary.LittleEndian.AppendUint64(to, w)
		}
	}
	return to
}

var errEntry = errors.New("an entry of the batch makes no sense")

// decodeEntries calls visit for each entry of a batch. Every number has one encoding only.
func decodeEntries(p []byte, visit func(entry) error) error {
	for len(p) > 0 {
		e := entry{kind: entryKind(p[0])}
		p = p[1:]
		var ok bool
		if e.a, p, ok = uvarint(p, maxSize); !ok {
			return errEntry
		}
		switch e.kind {
		case entryData, entryZero:
			if e.b, p, ok = uvarint(p, maxBlocks); !ok || e.b == 0 || e.a+e.b > maxBlocks {
				return errEntry
			}
		case entryLeaf:
			if len(p) < leafByteCount || e.a >= maxBlocks/leafBlocks {
				return errEntry
			}
			e.words = new([leafWords]uint64)
			for i := range e.words {
				w := binary.LittleEndian.Uint64(p[8*i:])
				if w&(w>>1)&lowBits != 0 {
					return errEntry
				}
				e.words[i] = w
			}
			p = p[leafByteCount:]
		case entrySize, entryTruncate, entryBaseLimit:
		default:
			return errEntry
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// uvarint reads a number of at most limit.
func uvarint(p []byte, limit int64) (int64, []byte, bool) {
	v, n := binary.Uvarint(p)
	if n <= 0 || v > uint64(limit) || n > 1 && p[n-1] == 0 {
		return 0, nil, false
	}
	return int64(v), p[n:], true
}

// mapState is all that the map log keeps: where each block is, how long the image is, and how far the base still
// counts (a shrink hides what lies beyond it for good).
type mapState struct {
	blocks    blockMap
	size      int64
	baseLimit int64
}

// apply makes one change, from the log or before it goes there.
func (m *mapState) apply(e entry) error {
	switch e.kind {
	case entryData:
		m.blocks.set(e.a, e.b, stateData)
	case entryZero:
		m.blocks.set(e.a, e.b, stateZero)
	case entryLeaf:
		m.blocks.setLeaf(e.a, e.words)
	case entrySize:
		m.size = e.a
	case entryTruncate:
		m.truncate(e.a)
	case entryBaseLimit:
		m.baseLimit = e.a
	}
	return nil
}

// truncate makes size the end of the image and forgets all beyond it.
func (m *mapState) truncate(size int64) {
	first, _ := blocks(size+blockSize-1, size+blockSize-1)
	m.blocks.set(first, maxBlocks-first, stateBase)
	m.size, m.baseLimit = size, min(m.baseLimit, size)
}

// snapshot encodes the whole state as batches, each small enough to be read back.
func (m *mapState) snapshot() [][]byte {
	var s snapshotWriter
	s.add(entry{kind: entryBaseLimit, a: m.baseLimit})
	s.add(entry{kind: entrySize, a: m.size})
	var run entry // open run, may go on in the next leaf
	flush := func() {
		if run.b > 0 {
			s.add(run)
		}
		run = entry{}
	}
	for i := range m.blocks.leaves {
		l, start := &m.blocks.leaves[i], int64(i)*leafBlocks
		if l.runs(maxLeafRuns) == maxLeafRuns {
			flush()
			s.add(entry{kind: entryLeaf, a: int64(i), words: l.words})
			continue
		}
		for at := int64(0); at < leafBlocks; {
			st := l.at(at)
			n, _ := l.run(at, st)
			if kind := entryKind(st); run.b > 0 && (run.kind != kind || run.a+run.b != start+at) || st == stateBase {
				flush()
			}
			if st != stateBase {
				if run.b == 0 {
					run = entry{kind: entryKind(st), a: start + at}
				}
				run.b += n
			}
			at += n
		}
	}
	flush()
	return append(s.done, s.open)
}

// maxLeafRuns: from here on a leaf is written as it is, because as runs it would be longer.
const maxLeafRuns = leafByteCount / 8

// runs counts the runs of equal states in a leaf, up to limit.
func (l *leaf) runs(limit int) (n int) {
	for at := int64(0); at < leafBlocks && n < limit; n++ {
		got, _ := l.run(at, l.at(at))
		at += got
	}
	return n
}

type snapshotWriter struct {
	done [][]byte
	open []byte
}

func (s *snapshotWriter) add(e entry) {
	const longest = 1 + binary.MaxVarintLen64 + leafByteCount
	if len(s.open)+longest > maxBatchPayload {
		s.done, s.open = append(s.done, s.open), nil
	}
	s.open = appendEntry(s.open, e)
}
