package rpc

import (
	"net/netip"
	"testing"
)

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }

func TestCacheForgetsQuietPeers(t *testing.T) {
	c := newCache()
	finish := func(call *Call) {
		v, e := c.begin(call)
		if v != verdictRun || e == nil {
			t.Fatalf("verdict %d", v)
		}
		c.finish(call.Peer, e, []byte("reply"))
	}
	for i := range cachePeers {
		finish(&Call{XID: 1, Peer: addr(i)})
	}
	if v, _ := c.begin(&Call{XID: 1, Peer: addr(0)}); v != verdictReplay {
		t.Error("the first peer was forgotten")
	}
	finish(&Call{XID: 1, Peer: addr(cachePeers)})
	if len(c.peers) != cachePeers {
		t.Errorf("%d peers are remembered", len(c.peers))
	}
	if v, _ := c.begin(&Call{XID: 1, Peer: addr(1)}); v != verdictRun {
		t.Error("the quietest peer was not forgotten")
	}
	if v, _ := c.begin(&Call{XID: 1, Peer: addr(0)}); v != verdictReplay {
		t.Error("a busy peer was forgotten")
	}
}

func TestCacheNeverForgetsRunningCalls(t *testing.T) {
	c := newCache()
	for i := range cacheEntries {
		if v, e := c.begin(&Call{XID: uint32(i), Peer: addr(1)}); v != verdictRun || e == nil {
			t.Fatal("not noted")
		}
	}
	if v, e := c.begin(&Call{XID: 1 << 20, Peer: addr(1)}); v != verdictRun || e != nil {
		t.Error("a running call gave way")
	}
	if v, _ := c.begin(&Call{XID: 3, Peer: addr(1)}); v != verdictDrop {
		t.Error("a running call was forgotten")
	}
	p := c.peers[addr(1)]
	c.finish(addr(1), p.order[7], []byte("reply"))
	if v, e := c.begin(&Call{XID: 1 << 20, Peer: addr(1)}); v != verdictRun || e == nil {
		t.Error("no room was made")
	}
	if len(p.order) != cacheEntries || len(p.byKey) != cacheEntries {
		t.Errorf("%d in order, %d by key", len(p.order), len(p.byKey))
	}
}

func TestCacheKeepsNoLargeReply(t *testing.T) {
	c := newCache()
	call := &Call{XID: 1, Peer: addr(1)}
	_, e := c.begin(call)
	c.finish(call.Peer, e, make([]byte, cacheReply+1))
	if v, _ := c.begin(call); v != verdictRun {
		t.Errorf("verdict %d", v)
	}
}
