package overlay

import "math/bits"

// state says where the bytes of a block are. The numbers are stored in leaves of the map log: never change.
type state uint8

const (
	stateBase state = 0 // in the base, as far as that is still visible; zeros beyond
	stateData state = 1 // in the segment
	stateZero state = 2 // nowhere: the block reads as zeros
	numStates       = 3
)

const (
	blockSize     = 4096
	leafBlocks    = 16384                   // blocks in a leaf: 64 MiB of the image in 4 KiB of states
	wordBlocks    = 32                      // blocks in a word, two bits each
	leafWords     = leafBlocks / wordBlocks // words in a leaf
	lowBits       = 0x5555555555555555      // the bits that are set for stateData
	highBits      = lowBits << 1            // the bits that are set for stateZero
	maxSize       = 1 << 46                 // 64 TiB; bounds the table of leaves
	maxBlocks     = maxSize / blockSize
	leafByteCount = leafWords * 8
)

// blockMap holds one state per block in two levels. A leaf whose blocks are all in one state takes no memory of its
// own, so that discarding a whole disk is cheap. It knows nothing of sizes or files. The caller locks.
type blockMap struct {
	leaves []leaf // grown on demand; all beyond is stateBase
	data   int64  // blocks in stateData
}

type leaf struct {
	words   *[leafWords]uint64 // nil: all blocks are in state uniform
	nData   int32
	nZero   int32
	uniform state
}

// fill returns the word in which all blocks are in state s.
func fill(s state) uint64 { return lowBits * uint64(s) }

func blocks(off, end int64) (first, count int64) {
	first = off / blockSize
	return first, (end+blockSize-1)/blockSize - first
}

// wordMask covers the blocks [from, to) of a word.
func wordMask(from, to int64) uint64 {
	return (^uint64(0) >> (64 - 2*(to-from))) << (2 * from)
}

// set puts count blocks from first on into state s and returns how many of them were in stateData before.
func (m *blockMap) set(first, count int64, s state) (wasData int64) {
	end := first + count
	if need := (end + leafBlocks - 1) / leafBlocks; need > int64(len(m.leaves)) {
		if s == stateBase { // beyond the table all is stateBase already
			end = min(end, int64(len(m.leaves))*leafBlocks)
		} else {
			m.grow(need)
		}
	}
	for first < end {
		l, from := &m.leaves[first/leafBlocks], first%leafBlocks
		to := min(leafBlocks, from+end-first)
		before := l.nData
		wasData += l.set(from, to, s)
		m.data += int64(l.nData - before)
		first += to - from
	}
	return wasData
}

// grow makes room for n leaves, a good part more than asked for so that a growing file does not copy the table often.
func (m *blockMap) grow(n int64) {
	if n <= int64(cap(m.leaves)) {
		m.leaves = m.leaves[:n]
		return
	}
	bigger := make([]leaf, n, min(n+n/4+16, maxBlocks/leafBlocks))
	copy(bigger, m.leaves)
	m.leaves = bigger
}

func (l *leaf) set(from, to int64, s state) (wasData int64) {
	if l.words == nil && l.uniform == s {
		if s == stateData {
			return to - from
		}
		return 0
	}
	if from == 0 && to == leafBlocks {
		wasData = int64(l.nData)
		*l = uniformLeaf(s)
		return wasData
	}
	if l.words == nil {
		l.words = new([leafWords]uint64)
		for i := range l.words {
			l.words[i] = fill(l.uniform)
		}
	}
	for from < to {
		w, in := &l.words[from/wordBlocks], from%wordBlocks
		n := min(wordBlocks-in, to-from)
		mask := wordMask(in, in+n)
		oldData, oldZero := bits.OnesCount64(*w&mask&lowBits), bits.OnesCount64(*w&mask&highBits)
		*w = *w&^mask | fill(s)&mask
		l.nData -= int32(oldData)
		l.nZero -= int32(oldZero)
		wasData += int64(oldData)
		switch s {
		case stateData:
			l.nData += int32(n)
		case stateZero:
			l.nZero += int32(n)
		}
		from += n
	}
	if n, is := l.onlyState(); is {
		*l = uniformLeaf(n)
	}
	return wasData
}

// setLeaf replaces all states of leaf i; words belongs to the map from here on.
func (m *blockMap) setLeaf(i int64, words *[leafWords]uint64) {
	if i >= int64(len(m.leaves)) {
		m.grow(i + 1)
	}
	l := leaf{words: words}
	for _, w := range words {
		l.nData += int32(bits.OnesCount64(w & lowBits))
		l.nZero += int32(bits.OnesCount64(w & highBits))
	}
	if s, is := l.onlyState(); is {
		l = uniformLeaf(s)
	}
	m.data += int64(l.nData - m.leaves[i].nData)
	m.leaves[i] = l
}

func uniformLeaf(s state) leaf {
	l := leaf{uniform: s}
	switch s {
	case stateData:
		l.nData = leafBlocks
	case stateZero:
		l.nZero = leafBlocks
	}
	return l
}

// onlyState tells the state that all blocks of the leaf share, if they do.
func (l *leaf) onlyState() (state, bool) {
	switch {
	case l.nData == leafBlocks:
		return stateData, true
	case l.nZero == leafBlocks:
		return stateZero, true
	case l.nData == 0 && l.nZero == 0:
		return stateBase, true
	}
	return 0, false
}

func (l *leaf) at(i int64) state {
	if l.words == nil {
		return l.uniform
	}
	return state(l.words[i/wordBlocks] >> (2 * (i % wordBlocks)) & 3)
}

// run returns the state of block first and how many blocks from there on share it, at most limit (which is > 0).
func (m *blockMap) run(first, limit int64) (state, int64) {
	if first/leafBlocks >= int64(len(m.leaves)) {
		return stateBase, limit
	}
	s := m.leaves[first/leafBlocks].at(first % leafBlocks)
	n := int64(0)
	for n < limit {
		at := first + n
		if at/leafBlocks >= int64(len(m.leaves)) {
			if s == stateBase {
				return s, limit
			}
			break
		}
		got, whole := m.leaves[at/leafBlocks].run(at%leafBlocks, s)
		n += got
		if !whole {
			break
		}
	}
	return s, min(n, limit)
}

// run counts the blocks in state s from block i of the leaf on, and tells whether they reach its end.
func (l *leaf) run(i int64, s state) (n int64, whole bool) {
	if l.words == nil {
		if l.uniform != s {
			return 0, false
		}
		return leafBlocks - i, true
	}
	start := i
	for i < leafBlocks {
		in := i % wordBlocks
		diff := (l.words[i/wordBlocks] ^ fill(s)) >> (2 * in)
		if diff != 0 {
			i += int64(bits.TrailingZeros64(diff)) / 2
			return min(i, leafBlocks) - start, false
		}
		i += wordBlocks - in
	}
	return leafBlocks - start, true
}

// notData counts the blocks of a range that are not in stateData.
func (m *blockMap) notData(first, count int64) (n int64) {
	for count > 0 {
		s, got := m.run(first, count)
		if s != stateData {
			n += got
		}
		first, count = first+got, count-got
	}
	return n
}

// lastData returns the end of the last block in stateData below limit, as a block number, or 0 when there is none.
func (m *blockMap) lastData(from, limit int64) (end int64) {
	for at := from; at < limit; {
		s, n := m.run(at, limit-at)
		if s == stateData {
			end = at + n
		}
		at += n
	}
	return end
}
