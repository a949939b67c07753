package rpc

import (
	"context"
	"sync"
)

// turn is the right to write to a connection. Those who wait get it in their order, but a small reply passes the bulk
// ones: behind 32 MiB of guest data on a slow network a host's monitor would wait for seconds.
type turn struct {
	mu    sync.Mutex // guards what follows
	taken bool
	small []chan struct{} // those who wait, longest first
	bulk  []chan struct{}
	ahead int // small replies that passed a waiting bulk one since the last of those
}

// maxAhead small replies may pass before a bulk one has its turn: nobody waits for ever.
const maxAhead = 16

// take waits for the turn. It fails only when ctx ends, which is the end of the connection: nobody waits then.
func (t *turn) take(ctx context.Context, bulk bool) error {
	t.mu.Lock()
	if !t.taken {
		t.taken = true
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	if bulk {
		t.bulk = append(t.bulk, mine)
	} else {
		t.small = append(t.small, mine)
	}
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pass gives the turn to the next one.
func (t *turn) pass() {
	t.mu.Lock()
	defer t.mu.Unlock()
	var next *[]chan struct{}
	switch {
	case len(t.bulk) > 0 && (len(t.small) == 0 || t.ahead >= maxAhead):
		next, t.ahead = &t.bulk, 0
	case len(t.small) > 0:
		next = &t.small
		if len(t.bulk) > 0 {
			t.ahead++
		}
	default:
		t.taken = false
		return
	}
	close((*next)[0])
	*next = (*next)[1:]
}
