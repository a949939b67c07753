package scrub

import (
	"testing"
	"time"
)

var t0 = time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)

func TestRate(t *testing.T) {
	const day = 24 * time.Hour
	p := Plan{Period: 30 * day, Limit: 64 << 20}
	for _, c := range []struct {
		what   string
		after  time.Duration
		left   int64
		rate   int64
		inTime bool
	}{
		{"a small store", 0, 10 << 30, least, true},
		{"a large store", 0, 20 << 40, 18853080, true},
		{"a store that is too large", 0, 500 << 40, 64 << 20, false},
		{"half of it, late", 12 * day, 10 << 40, 64 << 20, false},
		{"half of it, in time", 6 * day, 10 << 40, 16967772, true},
		{"overdue", 20 * day, 1, 64 << 20, false},
		{"overdue, and done", 20 * day, 0, 64 << 20, true},
	} {
		if rate, ok := p.Rate(t0, t0.Add(c.after), c.left); rate != c.rate || ok != c.inTime {
			t.Errorf("%s: %d bytes a second, in time %v, want %d, %v", c.what, rate, ok, c.rate, c.inTime)
		}
	}
	if !p.Next(t0).Equal(t0.Add(15*day)) || p.Late(t0, t0.Add(15*day)) || !p.Late(t0, t0.Add(15*day+1)) {
		t.Error("a pass takes half a period")
	}
}

// TestPacer: however reads come, as much is read in a time as the rate says, and time that passed is not saved up.
func TestPacer(t *testing.T) {
	p, now := Pacer{Rate: 1 << 20}, t0
	read := func(n int64, takes time.Duration) {
		now = now.Add(takes)
		now = now.Add(p.Read(n, now))
	}
	for range 1000 {
		read(10<<10, time.Millisecond)
	}
	if took, want := now.Sub(t0), time.Duration(float64(1000*10<<10)/(1<<20)*float64(time.Second)); took < want-time.Second/10 || took > want+time.Second/10 {
		t.Errorf("10 MiB took %v, want %v", took, want)
	}
	before := now
	now = now.Add(time.Hour)
	read(1<<20, 0)
	if took := now.Sub(before) - time.Hour; took < 900*time.Millisecond {
		t.Errorf("after an hour, 1 MiB took %v", took)
	}
}
