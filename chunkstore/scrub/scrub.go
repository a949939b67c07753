// Package scrub decides when a store is read again to find damage before it is needed, and how fast.
//
// Terms. A pass reads every pack once, in the order of their numbers. A Plan says within what period each pack is read.
//
// A pass takes half a period, or less if the store is small, and the next one begins half a period after it did. So the
// time between two looks at a pack is at most a period, wherever in a pass it is met, also for packs that come to be behind
// the place where the pass is.
//
// The package does no I/O and knows no store. A Pacer belongs to one goroutine.
package scrub

import "time"

// Plan says how a store is scrubbed.
type Plan struct {
	Period time.Duration // within which every pack is read
	Limit  int64         // bytes a second that are not exceeded
}

// least is how fast is read at least, in bytes a second: a small store is done in minutes.
const least = 2 << 20

// Next returns when the pass after one that began at a time begins.
func (p Plan) Next(began time.Time) time.Time { return began.Add(p.Period / 2) }

// Late tells whether a pass has taken so long that it no longer waits for others.
func (p Plan) Late(began, now time.Time) bool { return now.Sub(began) > p.Period/2 }

// Rate returns how fast to read, in bytes a second, so that what is left is read in time, and whether that will do.
func (p Plan) Rate(began, now time.Time, left int64) (rate int64, inTime bool) {
	until := p.Next(began).Add(-p.Period / 20).Sub(now) // some time in hand, for what stands in the way
	if until <= 0 {
		return p.Limit, left == 0
	}
	rate = max(int64(float64(left)/until.Seconds()), least)
	return min(rate, p.Limit), rate <= p.Limit
}

// Pacer spreads reads.
type Pacer struct {
	Rate int64 // bytes a second
	debt time.Duration
	last time.Time
}

// grain is the shortest time that is waited.
const grain = 20 * time.Millisecond

// Read notes that n bytes were read, and returns how long to wait now. What was waited, or took its time otherwise, is
// taken into account by the next call.
func (p *Pacer) Read(n int64, now time.Time) time.Duration {
	if !p.last.IsZero() {
		p.debt = max(-grain, p.debt-now.Sub(p.last))
	}
	p.last = now
	p.debt += time.Duration(float64(n) / float64(max(p.Rate, 1)) * float64(time.Second))
	if p.debt < grain {
		return 0
	}
	return p.debt
}
