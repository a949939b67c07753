package errs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestKindNamesAreTotalAndDistinct(t *testing.T) {
	seen := map[string]bool{}
	for i, k := range Kinds {
		if int(k) != i {
			t.Errorf("Kinds[%d] = %d: kinds are numbered in order and never change", i, k)
		}
		n := k.String()
		if n == "" || n == "unknown kind" || seen[n] {
			t.Errorf("kind %d has the name %q", k, n)
		}
		seen[n] = true
	}
	if Kind(200).String() != "unknown kind" {
		t.Error("a foreign kind must not pass for a known one")
	}
}

func TestOutermostKindWins(t *testing.T) {
	inner := New("read pack", "7", Corrupt, errors.New("bad tag"))
	outer := New("open point", "p1", Transient, fmt.Errorf("page: %w", inner))
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{inner, Corrupt}, {outer, Transient}, {fmt.Errorf("x: %w", inner), Corrupt}, {Wrap("list", "", inner), Corrupt},
		{errors.New("plain"), Bug}, {context.Canceled, Canceled}, {fmt.Errorf("w: %w", syscall.ENOSPC), NoSpace},
		{fs.ErrNotExist, NotFound}, {&fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, Denied},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
	if Is(nil, Bug) {
		t.Error("nil has a kind")
	}
	if Wrap("x", "", nil) != nil {
		t.Error("Wrap(nil) must be nil")
	}
}

func TestNextStepAndText(t *testing.T) {
	inner := Text("open store", "/s", Denied, "wrong passphrase").WithNext("Give the right one.")
	err := Wrap("list points", "", inner)
	if got := NextStep(err); got != "Give the right one." {
		t.Errorf("NextStep = %q", got)
	}
	if got, want := err.Error(), "list points: open store /s: wrong passphrase"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if NextStep(errors.New("x")) != "" || New("a", "b", Stale, nil).Error() != "a b: stale" {
		t.Error("no next step, no cause: text must still be a sentence")
	}
}
