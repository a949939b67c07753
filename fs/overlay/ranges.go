package overlay

import "sync"

// ranges gives out exclusive ranges of blocks, so that of two writers of one block each keeps what the other wrote
// beside it. Few are held at a time (the protocol layers bound their calls in flight), so a list is enough.
type ranges struct {
	mu   sync.Mutex // guards held
	free sync.Cond
	held []span
}

// span is a range of blocks.
type span struct{ first, end int64 }

func newRanges() *ranges {
	r := &ranges{}
	r.free.L = &r.mu
	return r
}

func (r *ranges) taken(s span) bool {
	for _, h := range r.held {
		if s.first < h.end && h.first < s.end {
			return true
		}
	}
	return false
}

// lock waits until no range that overlaps s is held, and holds s.
func (r *ranges) lock(s span) {
	r.mu.Lock()
	for r.taken(s) {
		r.free.Wait()
	}
	r.held = append(r.held, s)
	r.mu.Unlock()
}

// tryLock holds s unless a range that overlaps it is held.
func (r *ranges) tryLock(s span) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken(s) {
		return false
	}
	r.held = append(r.held, s)
	return true
}

func (r *ranges) unlock(s span) {
	r.mu.Lock()
	for i := range r.held {
		if r.held[i] == s {
			last := len(r.held) - 1
			r.held[i] = r.held[last]
			r.held = r.held[:last]
			break
		}
	}
	r.mu.Unlock()
	r.free.Broadcast()
}
