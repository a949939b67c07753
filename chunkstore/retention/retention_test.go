package retention

import (
	"math/rand/v2"
	"testing"
	"time"
)

var begin = time.Date(2026, 9, 14, 12, 0, 0, 0, time.UTC)

// machine is a machine whose clocks a test moves.
type machine struct {
	real time.Time     // what nobody can change
	off  time.Duration // of the wall clock
	boot time.Time
	id   string
}

func (m *machine) reading() Reading {
	return Reading{Wall: m.real.Add(m.off), BootID: m.id, Boot: m.real.Sub(m.boot)}
}

func (m *machine) stop(d time.Duration) {
	m.real = m.real.Add(d)
	m.boot, m.id = m.real, m.id+"+"
}

func newMachine() *machine { return &machine{real: begin, boot: begin.Add(-time.Hour), id: "a"} }

// Long: one table of histories.
func TestClock(t *testing.T) {
	const hour, day = time.Hour, 24 * time.Hour
	for _, c := range []struct {
		name   string
		moves  func(m *machine, look func())
		want   time.Duration // believed, after begin
		doubts bool
	}{
		{"time goes by", func(m *machine, look func()) { m.real = m.real.Add(5 * hour) }, 5 * hour, false},
		{"set forward while it runs", func(m *machine, look func()) { m.off = 100 * day }, 0, true},
		{"set forward, and time goes by", func(m *machine, look func()) { m.off = 100 * day; m.real = m.real.Add(hour) }, hour + hour/driftDivisor, true},
		{"set forward in many small steps", func(m *machine, look func()) {
			for range 1000 {
				m.off += time.Minute
				look()
			}
		}, 0, true},
		{"set back", func(m *machine, look func()) { m.off = -3 * day }, -3 * day, false},
		{"set back and forward again", func(m *machine, look func()) { m.off = -3 * day; look(); m.off = 0 }, -3 * day, true},
		{"off for a night", func(m *machine, look func()) { m.stop(12 * hour) }, 12 * hour, false},
		{"off for a week", func(m *machine, look func()) { m.stop(7 * day) }, 0, true},
		{"off for a night, with the clock set forward", func(m *machine, look func()) { m.off = 30 * day; m.stop(12 * hour) }, 0, true},
		{"many short stops with the clock set forward", func(m *machine, look func()) {
			for range 40 {
				m.off += 23 * hour
				m.stop(time.Minute)
				look()
			}
		}, 23*hour + time.Minute, true},
		{"off every night for a month", func(m *machine, look func()) {
			for range 30 {
				m.real = m.real.Add(12 * hour)
				look()
				m.stop(12 * hour)
				look()
			}
		}, 30 * day, false},
		{"another machine", func(m *machine, look func()) { m.id = "b"; m.boot = m.real.Add(-1000 * hour) }, 0, false},
		{"a clock that runs fast", func(m *machine, look func()) {
			for range 100 {
				m.real, m.off = m.real.Add(hour), m.off+hour/20000
				look()
			}
		}, 100*hour + 100*hour/20000, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine()
			clock := Clock{}.Next(m.reading())
			look := func() { clock = clock.Next(m.reading()) }
			c.moves(m, look)
			look()
			if got := clock.Seen.Sub(begin); got != c.want || clock.Doubtful() != c.doubts {
				t.Errorf("believes %v after the beginning, want %v; doubt %v, want doubts %v", got, c.want, clock.Doubt, c.doubts)
			}
			clock = clock.Confirmed(m.reading())
			if look(); !clock.Seen.Equal(m.reading().Wall) || clock.Doubtful() {
				t.Errorf("confirmed, it believes %v at %v", clock.Seen, m.reading().Wall)
			}
		})
	}
}

// TestNoHistoryOpensALockEarly moves clocks at random and holds what is believed against what really passed: never more
// than a day and twice the time that was watched ahead.
func TestNoHistoryOpensALockEarly(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := newMachine()
		clock := Clock{}.Next(m.reading())
		var watched time.Duration
		for range 100 {
			d := time.Duration(r.Int64N(int64(30 * time.Hour)))
			switch r.IntN(5) {
			case 0:
				m.off += time.Duration(r.Int64N(int64(100 * time.Hour)))
			case 1:
				m.off -= time.Duration(r.Int64N(int64(100 * time.Hour)))
			case 2:
				m.stop(d)
			default:
				m.real = m.real.Add(d)
				watched += d
			}
			clock = clock.Next(m.reading())
			limit := begin.Add(Gap + 2*watched + watched/driftDivisor)
			if clock.Seen.After(limit) || clock.Seen.After(m.reading().Wall) {
				t.Fatalf("seed %d: believes %v; really %v, on the wall %v, watched %v", seed, clock.Seen, m.real, m.reading().Wall, watched)
			}
		}
	}
}

func TestReadMovesOn(t *testing.T) {
	a, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Read()
	if err != nil || a.BootID == "" || a.BootID != b.BootID || b.Boot <= 0 || b.Boot < a.Boot {
		t.Errorf("%+v, then %+v, %v", a, b, err)
	}
}

func TestLockHolds(t *testing.T) {
	l := Lock{Until: begin}
	if !l.Holds(begin.Add(-1)) || l.Holds(begin) {
		t.Error("a lock holds until its time, and not at it")
	}
}
