package qcow2

import (
	"container/list"
	"sync"
)

// cache keeps the values used last, within a number of bytes. It has no single flight: two readers that miss the same
// key at once both load it, which costs a second load and nothing else. Values are never changed once put.
type cache[K comparable, V any] struct {
	maxBytes int
	size     func(V) int

	mu    sync.Mutex // guards all below; nothing is called with it held but size
	bytes int
	order *list.List // of cached[K, V]; front is the one used last
	byKey map[K]*list.Element
}

type cached[K comparable, V any] struct {
	key   K
	value V
}

func newCache[K comparable, V any](maxBytes int, size func(V) int) *cache[K, V] {
	return &cache[K, V]{maxBytes: maxBytes, size: size, order: list.New(), byKey: make(map[K]*list.Element)}
}

func (c *cache[K, V]) get(key K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(cached[K, V]).value, true
}

// put adds a value unless the key is there already, and drops the values used longest ago. The value just put stays
// even when it alone is above the bound.
func (c *cache[K, V]) put(key K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byKey[key]; ok {
		return
	}
	c.byKey[key] = c.order.PushFront(cached[K, V]{key, v})
	c.bytes += c.size(v) + cacheOverhead
	for c.bytes > c.maxBytes && c.order.Len() > 1 {
		last := c.order.Back()
		old := c.order.Remove(last).(cached[K, V])
		delete(c.byKey, old.key)
		c.bytes -= c.size(old.value) + cacheOverhead
	}
}

// cacheOverhead is about what an entry costs beside its value; it keeps caches of tiny values within their bound.
const cacheOverhead = 160
