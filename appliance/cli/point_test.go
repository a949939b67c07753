package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestPointForms names points in every way there is.
func TestPointForms(t *testing.T) {
	b := newBox(t)
	file := b.disk("disk.raw", 1, 64<<10)
	at := func(s string) time.Time {
		when, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	ids := map[string]string{}
	for _, p := range []struct{ key, vm, time string }{
		{"a1", "web", "2026-09-10T02:00:00Z"}, {"a2", "web", "2026-09-14T02:00:05Z"}, {"a3", "web", "2026-09-14T02:30:00Z"},
		{"a4", "web", "2026-09-15T01:00:00Z"}, {"b1", "a@b/c", "2026-09-12T00:00:00Z"}, {"c1", "x@latest", "2026-09-13T00:00:00Z"},
	} {
		b.now = at(p.time)
		ids[p.key] = b.imports(file, p.vm).Point
	}
	b.now = at("2026-09-15T02:00:00Z")
	for text, want := range map[string]string{
		ids["a1"]: "a1", strings.ToUpper(ids["a1"]): "a1", ids["b1"][:15]: "b1",
		"web@latest": "a4", "web@2026-09-14": "a3", "web@2026-09-14T02": "a3", "web@2026-09-14T02:00": "a2", "web@2026-09-14T02-00-05Z": "a2",
		"web@2026-09-14T02:00:05Z": "a2", "web@2026": "a4", "web@-0h": "a4", "web@-1h": "a4", "web@-61m": "a3", "web@-1d": "a1", "web@-23h": "a3", "web@-3d": "a1",
		"a@b/c@latest": "b1", "a@b/c@2026-09-12": "b1", "x@latest@latest": "c1", "x@latest@-1d": "c1",
	} {
		var p struct {
			Point  string
			VM     string
			Time   string
			Labels map[string]string
			Disks  []any
		}
		if b.json(&p, "point", "show", text); p.Point != ids[want] {
			t.Errorf("%s is %s of %s at %s, want %s", text, p.Point, p.VM, p.Time, ids[want])
		}
	}
	for _, tc := range []struct {
		text string
		code int
		word string
	}{
		{"", exitUsage, "holdfast point list"}, {"zzz", exitNotFound, "no such point"}, {"web", exitNotFound, "web@latest"},
		{"web@-2w", exitNotFound, "Its oldest is of 2026-09-10"}, {"web@2025", exitNotFound, "Its oldest"}, {"db@latest", exitNotFound, "a@b/c, web, x@latest"},
		{"x@latest", exitNotFound, "no machine of that name"}, {"web@yesterday", exitUsage, "yesterday"}, {"web@", exitUsage, "neither"},
		{"web@-3y", exitUsage, "an age is"}, {"web@-d", exitUsage, "an age is"}, {"web@-99999d", exitUsage, "an age is"}, {"@latest", exitNotFound, "no such point"},
	} {
		b.fails(tc.code, []string{"point", "show", tc.text}, tc.word)
	}
	b.ambiguous()
}

// ambiguous makes points until two begin alike.
func (b *box) ambiguous() {
	b.t.Helper()
	file := b.path("disk.raw")
	seen := map[byte]bool{}
	for _, id := range b.points() {
		seen[id[0]] = true
	}
	for range 17 {
		id := b.imports(file, "many").Point
		if seen[id[0]] {
			b.fails(exitUsage, []string{"point", "show", id[:1]}, "points begin with it", "Give more digits")
			b.fails(exitUsage, []string{"point", "rm", id[:1]}, "points begin with it")
			b.ok("point", "show", id)
			return
		}
		seen[id[0]] = true
	}
	b.t.Error("17 points with different first digits")
}

// TestExitCodes walks the table: every kind has its documented code and its advice.
func TestExitCodes(t *testing.T) {
	want := map[errs.Kind]int{
		errs.Bug: 1, errs.Invalid: 2, errs.NotFound: 3, errs.Exists: 4, errs.Denied: 7, errs.Busy: 4, errs.Transient: 9, errs.Stale: 4,
		errs.NoSpace: 1, errs.Corrupt: 6, errs.Unsupported: 1, errs.Canceled: 130,
	}
	for _, k := range errs.Kinds {
		err := errs.Wrap("outer", "", errs.New("inner", "thing", k, nil))
		code, listed := want[k]
		if got := exitCode(t.Context(), err); !listed || got != code {
			t.Errorf("%v: %d, want %d", k, got, code)
		}
		if next := nextStep(err); !strings.HasSuffix(next, ".") || len(next) < 20 {
			t.Errorf("%v: next step %q", k, next)
		}
	}
	late, cancel := contextDone(t)
	defer cancel()
	if got := exitCode(t.Context(), errs.Wrap("wait", "", late.Err())); got != exitTimeout {
		t.Errorf("a limit of ours that passed: %d", got)
	}
	if got := exitCode(late, errs.Wrap("wait", "", late.Err())); got != exitInterrupted {
		t.Errorf("the caller's own limit: %d", got)
	}
	if got := exitCode(t.Context(), &partial{code: exitPartial, text: "x", next: "y"}); got != exitPartial {
		t.Errorf("partial: %d", got)
	}
}
