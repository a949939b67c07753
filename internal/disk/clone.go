package disk

import "maps"

// sectorSize is the grain at which a device writes all or nothing.
const sectorSize = 512

// change is one unsynced change of a file's content.
type change struct {
	seq  uint64
	kind changeKind
	off  int64 // for a truncation the new size
	n    int64 // punches only
	data []byte
}

type changeKind uint8

const (
	changeWrite changeKind = iota
	changeTruncate
	changePunch
)

// apply makes the whole change.
func (ch *change) apply(to *content) {
	switch ch.kind {
	case changeWrite:
		to.write(ch.data, ch.off)
	case changeTruncate:
		to.truncate(ch.off)
	case changePunch:
		to.zero(ch.off, ch.n)
	}
}

// change makes a change of names for callers and remembers it as unsynced.
func (c *Crash) change(ch nameChange) {
	c.seq++
	ch.seq = c.seq
	ch.apply(func(n *inode) map[string]*inode { return n.entries })
	c.names = append(c.names, ch)
}

// apply makes the change in the names that namesOf returns for a folder, unless it no longer applies there: the node
// to be moved or removed is not at its place, or the name to be made is taken.
func (ch *nameChange) apply(namesOf func(*inode) map[string]*inode) {
	if ch.fromDir != nil {
		if from := namesOf(ch.fromDir); from == nil || from[ch.from] != ch.node {
			return
		}
	}
	if ch.toDir != nil {
		to := namesOf(ch.toDir)
		if to == nil || ch.mustBeFree && to[ch.to] != nil {
			return
		}
		to[ch.to] = ch.node
	}
	if ch.fromDir != nil {
		delete(namesOf(ch.fromDir), ch.from)
	}
}

// SyncDir implements Disk. What changes in this folder rest on is made durable with them: a file moved here through
// another folder is here afterwards.
func (c *Crash) SyncDir(name string) error {
	return c.aroundSync(func() error {
		dir, err := c.find("open", name)
		if err != nil {
			return err
		}
		needed := map[*inode]bool{}
		keep := make([]bool, len(c.names))
		for i := len(c.names) - 1; i >= 0; i-- {
			ch := &c.names[i]
			keep[i] = ch.fromDir == dir || ch.toDir == dir || needed[ch.node]
			if keep[i] {
				needed[ch.node] = true
			}
		}
		var rest []nameChange
		for i := range c.names {
			if !keep[i] {
				rest = append(rest, c.names[i])
				continue
			}
			ch := c.names[i]
			ch.mustBeFree = false // what held the name may be gone only by a change that stays unsynced elsewhere
			ch.apply(func(n *inode) map[string]*inode { return n.kept })
		}
		c.names = rest
		return nil
	})
}

// Clone returns a new disk as a power cut at this moment might have left this one. All that was synced is on it. Of the
// unsynced writes of each file any subset of sectors is, of the unsynced truncations, punches and changes of names any
// subset, applied in their order; a change that no longer applies is skipped. The same seed and history give the same
// disk. Seed 0 loses everything unsynced and seed 1 loses nothing; the others draw, some of them keeping little and
// some keeping most. This disk goes on as it was.
func (c *Crash) Clone(seed uint64) *Crash {
	c.mu.Lock()
	defer c.mu.Unlock()
	fate := newFate(seed)

	kept := map[*inode]map[string]*inode{} // names of the surviving tree, still with our own nodes
	namesOf := func(n *inode) map[string]*inode {
		if !n.isDir() {
			return nil
		}
		if kept[n] == nil {
			kept[n] = maps.Clone(n.kept)
		}
		return kept[n]
	}
	for i := range c.names {
		if fate.survives(c.names[i].seq, 0) {
			c.names[i].apply(namesOf)
		}
	}
	out := &Crash{lastID: c.lastID, seq: c.seq}
	done := map[*inode]*inode{}
	var copyNode func(n *inode) *inode
	copyNode = func(n *inode) *inode {
		if done[n] != nil {
			return done[n]
		}
		m := &inode{id: n.id}
		done[n] = m
		if !n.isDir() {
			m.live = n.survivor(fate)
			m.saved = m.live.clone()
			return m
		}
		m.entries = map[string]*inode{}
		for name, child := range namesOf(n) {
			m.entries[name] = copyNode(child)
		}
		m.kept = maps.Clone(m.entries)
		return m
	}
	out.root = copyNode(c.root)
	return out
}

// survivor returns the content of a file after a power cut.
func (n *inode) survivor(fate fate) content {
	s := n.saved.clone()
	for i := range n.unsynced {
		ch := &n.unsynced[i]
		switch {
		case fate.all(ch.seq):
			ch.apply(&s)
		case fate.none(ch.seq):
		case ch.kind == changeTruncate:
			if fate.survives(ch.seq, 0) {
				ch.apply(&s)
			}
		case ch.kind == changePunch:
			ch.punchSome(&s, fate)
		default:
			ch.writeSome(&s, fate)
		}
	}
	return s
}

// writeSome applies the sectors of a write that survive. The size is metadata and survives by itself: a file may be
// long and hold zeros where the data never arrived.
func (ch *change) writeSome(to *content, fate fate) {
	for at := 0; at < len(ch.data); {
		off := ch.off + int64(at)
		end := min(len(ch.data), at+int(sectorSize-off%sectorSize))
		if fate.survives(ch.seq, off/sectorSize+1) {
			to.write(ch.data[at:end], off)
		}
		at = end
	}
	if fate.survives(ch.seq, 0) {
		to.size = max(to.size, ch.off+int64(len(ch.data)))
	}
}

// punchSome frees the pages of a punch that survive.
func (ch *change) punchSome(to *content, fate fate) {
	for i := range to.pages {
		if fate.survives(ch.seq, i) {
			from, end := max(ch.off, i*pageSize), min(ch.off+ch.n, (i+1)*pageSize)
			to.zero(from, end-from)
		}
	}
}

// fate decides what survives one power cut. Every decision is a hash of the seed and of what is decided, so that it
// does not depend on the order in which maps are walked.
type fate struct {
	seed uint64
	odds uint64 // chances in 8 to survive, for whatever is decided by itself
}

func newFate(seed uint64) fate {
	switch seed {
	case 0:
		return fate{seed, 0}
	case 1:
		return fate{seed, 8}
	}
	return fate{seed, []uint64{1, 4, 4, 7}[mix(seed)%4]}
}

func (f fate) survives(seq uint64, part int64) bool {
	return mix(f.seed^mix(seq^mix(uint64(part))))%8 < f.odds
}

// all and none: real disks often keep or lose a write as a whole, so two of four do not get their sectors drawn.
func (f fate) all(seq uint64) bool  { return f.odds == 8 || f.odds > 0 && mix(f.seed+seq)%4 == 0 }
func (f fate) none(seq uint64) bool { return f.odds == 0 || f.odds < 8 && mix(f.seed+seq)%4 == 1 }

// mix is the finalizer of splitmix64: every bit of the result depends on every bit of x.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
