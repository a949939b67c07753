// Package retention decides until when a restore point may not be removed, whatever the machine's clock says.
//
// Terms. A Lock says until when a point stays. A Reading is what the machine's clocks show: the wall clock, which anybody
// with enough rights can set, and the boot-time clock, which counts from the machine's start, also while it sleeps, and
// cannot be set (clock_gettime(2), CLOCK_BOOTTIME). A Clock is the time that a store believes, and what it needs to
// believe the next reading.
//
// Invariants:
//
//  1. A lock is only ever extended.
//  2. Believed time is never ahead of the wall clock: a clock that was set back keeps locks shut for longer, which harms
//     nobody. While the machine runs it is never further ahead than the boot-time clock went, plus a drift of a
//     thousandth: setting the wall clock forward opens nothing.
//  3. Over a stop of the machine nobody can tell how long it was. A gap of up to a day is believed, and no more in all
//     than a day plus the time that was seen to pass since a person last confirmed the clock, so that many short stops
//     are not one long one. What is beyond is not believed until a person confirms it.
//
// This is no defence against somebody who owns the disk: docs/format/retention.md says what it is good for.
package retention

import (
	"time"
)

// Believed gaps and drift.
const (
	// Gap is how much of a jump over a stop is believed.
	Gap = 24 * time.Hour
	// driftDivisor is how much faster than the boot-time clock the wall clock may run: a thousandth. A quartz is off by a
	// fiftieth of that, and NTP slews by half of it at most.
	driftDivisor = 1000
)

// Lock says until when a point may not be removed. Its JSON is a stored format.
type Lock struct {
	Point  string    `json:"point"`
	Until  time.Time `json:"until"`
	Set    time.Time `json:"set"` // believed time
	Reason string    `json:"reason,omitempty"`
}

// Holds tells whether the point may not be removed yet.
func (l Lock) Holds(now time.Time) bool { return now.Before(l.Until) }

// Reading is what the machine's clocks show.
type Reading struct {
	Wall   time.Time
	BootID string        // of this start of the machine
	Boot   time.Duration // since then
}

// Clock is the time that a store believes. Its JSON is a stored format. The zero value believes the first reading.
type Clock struct {
	Seen   time.Time     `json:"seen"` // believed time at the reading
	BootID string        `json:"boot_id"`
	Boot   time.Duration `json:"boot"`
	// Watched and Jumped count, since a person last confirmed the clock: the time that was seen to pass while the
	// machine ran, and what was believed over stops.
	Watched time.Duration `json:"watched"`
	Jumped  time.Duration `json:"jumped"`
	// Doubt is by how much the wall clock was ahead of what is believed, at the reading.
	Doubt time.Duration `json:"doubt"`
}

// Next returns the clock after a reading.
func (c Clock) Next(r Reading) Clock {
	n := c
	n.BootID, n.Boot = r.BootID, r.Boot
	if c.Seen.IsZero() {
		n.Seen = r.Wall.UTC()
		return n
	}
	ahead := r.Wall.Sub(c.Seen)
	if r.BootID == c.BootID && r.Boot >= c.Boot {
		passed := r.Boot - c.Boot
		n.Watched += passed
		n.Seen = c.Seen.Add(min(max(ahead, 0), passed+passed/driftDivisor))
	} else if jump := max(ahead, 0); jump <= Gap && c.Jumped+jump <= Gap+c.Watched {
		n.Jumped += jump
		n.Seen = c.Seen.Add(jump)
	} // else nothing of the jump is believed: a person has to look
	if ahead < 0 {
		n.Seen = r.Wall.UTC()
	}
	n.Doubt = max(0, r.Wall.Sub(n.Seen))
	return n
}

// Doubtful tells whether the wall clock is so far ahead of what is believed that a person has to confirm it.
func (c Clock) Doubtful() bool { return c.Doubt > time.Minute }

// Confirmed returns the clock after a person has said that the wall clock is right.
func (c Clock) Confirmed(r Reading) Clock {
	return Clock{Seen: r.Wall.UTC(), BootID: r.BootID, Boot: r.Boot}
}
