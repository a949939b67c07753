package rpc

import (
	"testing"
	"time"
)

// TestStaleTimers: a timer that was stopped too late finds a call that ended, or the next one in the same object, and
// answers neither. Without a connection an answer would panic.
func TestStaleTimers(t *testing.T) {
	p := &pending{}
	p.overdue()
	p.late.due = time.Now().Add(time.Hour)
	p.overdue()
	if p.late.answered {
		t.Error("answered")
	}
}
