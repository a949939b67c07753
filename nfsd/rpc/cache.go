package rpc

import (
	"hash/maphash"
	"net/netip"
	"sync"
)

// cache remembers the replies of Once procedures, because a client repeats a call with the same XID after a reconnect
// and after every time-out (RFC 1813, section 4.5): a rename that ran twice would answer "no such file". A repeat of a
// running call is dropped, a repeat of a finished one gets the same bytes again. The memory is lost at a restart.
type cache struct {
	mu    sync.Mutex
	seed  maphash.Seed
	peers map[netip.Addr]*peerCache
	tick  uint64 // grows with every use, to find the peer that was quiet the longest
}

const (
	cachePeers   = 256
	cacheEntries = 1024
	// cacheArgs is how much of the arguments goes into the key: enough for handles and names.
	cacheArgs = 256
	// cacheReply is the largest reply kept; every Once reply is smaller.
	cacheReply = 4096
)

type cacheKey struct {
	xid, program, procedure uint32
	args                    uint64
}

type cacheEntry struct {
	key   cacheKey
	reply []byte // nil while the call runs
}

type peerCache struct {
	byKey map[cacheKey]*cacheEntry
	order []*cacheEntry // oldest first
	used  uint64
}

// verdict is what begin says about a call.
type verdict int

const (
	verdictRun    verdict = iota // not seen before: run it, then finish
	verdictDrop                  // runs already: no answer
	verdictReplay                // done: send the bytes
)

func newCache() *cache {
	return &cache{seed: maphash.MakeSeed(), peers: map[netip.Addr]*peerCache{}}
}

// begin looks a call up and notes it as running. entry is nil when the call is not remembered.
func (c *cache) begin(call *Call) (verdict, *cacheEntry) {
	key := cacheKey{xid: call.XID, program: call.Program, procedure: call.Procedure,
		args: maphash.Bytes(c.seed, call.Args[:min(len(call.Args), cacheArgs)])}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peer(call.Peer)
	if e, ok := p.byKey[key]; ok {
		if e.reply == nil {
			return verdictDrop, nil
		}
		return verdictReplay, e
	}
	if !p.makeRoom() {
		return verdictRun, nil
	}
	e := &cacheEntry{key: key}
	p.byKey[key] = e
	p.order = append(p.order, e)
	return verdictRun, e
}

// finish keeps the reply of a call. A reply too large to keep is forgotten.
func (c *cache) finish(peer netip.Addr, e *cacheEntry, reply []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(reply) <= cacheReply {
		e.reply = append([]byte{}, reply...)
		return
	}
	if p := c.peers[peer]; p != nil && p.byKey[e.key] == e {
		delete(p.byKey, e.key)
	}
	e.reply = []byte{}
}

// peer returns the memory of one client, forgetting the client that was quiet the longest if there are too many.
func (c *cache) peer(addr netip.Addr) *peerCache {
	c.tick++
	p := c.peers[addr]
	if p == nil {
		if len(c.peers) >= cachePeers {
			var oldest netip.Addr
			used := c.tick
			for a, q := range c.peers {
				if q.used < used {
					oldest, used = a, q.used
				}
			}
			delete(c.peers, oldest)
		}
		p = &peerCache{byKey: map[cacheKey]*cacheEntry{}}
		c.peers[addr] = p
	}
	p.used = c.tick
	return p
}

// makeRoom forgets the oldest finished call if there are too many. It reports false when all of them are running: the
// next call then goes without a memory rather than making one of these run twice.
func (p *peerCache) makeRoom() bool {
	if len(p.order) < cacheEntries {
		return true
	}
	for i, e := range p.order {
		if e.reply != nil {
			copy(p.order[i:], p.order[i+1:])
			p.order = p.order[:len(p.order)-1]
			if p.byKey[e.key] == e {
				delete(p.byKey, e.key)
			}
			return true
		}
	}
	return false
}
