package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

var noon = time.Date(2026, 9, 14, 12, 0, 0, 0, time.UTC)

// lister is a fixed list of points, and of records that cannot be read.
type lister struct {
	points []*chunkstore.Point
	bad    []error
}

func (l lister) Points(context.Context) ([]*chunkstore.Point, []error) { return l.points, l.bad }

// pointOf makes a point; its disks are only numbers.
func pointOf(id, vm string, when time.Time, disks ...int) *chunkstore.Point {
	p := &chunkstore.Point{ID: chunkstore.PointID(id), Time: when, Labels: map[string]string{appliance.LabelVM: vm}}
	for _, n := range disks {
		p.Disks = append(p.Disks, chunkstore.Disk{Number: n})
	}
	return p
}

func damaged(id string) error {
	return errs.Text("read point", id, errs.Corrupt, "the record is damaged").WithNext("Restore from another.")
}

func TestResolvePoint(t *testing.T) {
	l := lister{points: []*chunkstore.Point{
		pointOf("aa00000000000001", "web", noon.Add(-48*time.Hour)),
		pointOf("aa00000000000002", "db", noon.Add(-24*time.Hour)),
		pointOf("bb00000000000003", "web", noon.Add(-1500*time.Millisecond)),
		pointOf("bb00000000000004", "web", noon.Add(time.Hour)), // the clock was set back
	}, bad: []error{damaged("cc00000000000005"), damaged("bb00000000000006")}}
	for text, want := range map[string]string{
		"aa00000000000001": "1", "AA00000000000002": "2", "bb00000000000003": "3",
		"web@latest": "4", "web@-0m": "3", "web@-1m": "1", "web@-1d": "1", "web@2026-09-14": "4", "web@2026-09-14T11": "3",
		"web@2026-09-14T11:59:58": "3", "web@2026-09-14T11:59:58.5": "3", "web@2026-09-14T11-59-58Z": "3", "db@2026": "2",
	} {
		p, err := ResolvePoint(t.Context(), l, text, noon)
		if err != nil || !strings.HasSuffix(string(p.ID), want) {
			t.Errorf("%s: %v, %v; want %s", text, p, err, want)
		}
	}
	for text, want := range map[string]errs.Kind{
		"aa": errs.Invalid, "": errs.Invalid, "dd": errs.NotFound, "web": errs.NotFound, "xx@latest": errs.NotFound, "web@-2d1h": errs.Invalid,
		"cc": errs.Corrupt, "cc00000000000005": errs.Corrupt, "bb00000000000006": errs.Corrupt, "bb0": errs.Invalid, "damaged": errs.NotFound,
		"web@-3d": errs.NotFound, "web@12": errs.Invalid, "web@2026-09-14T12:00:00+02:00": errs.Invalid,
	} {
		p, err := ResolvePoint(t.Context(), l, text, noon)
		if !errs.Is(err, want) || errs.NextStep(err) == "" && want != errs.Invalid {
			t.Errorf("%q: %v, %v, next %q; want %v", text, p, err, errs.NextStep(err), want)
		}
	}
	broken := errs.New("list points", "", errs.Denied, errors.New("no permission"))
	if _, err := ResolvePoint(t.Context(), lister{bad: []error{broken}}, "aa", noon); !errs.Is(err, errs.Denied) {
		t.Errorf("a list that cannot be read: %v", err)
	}
	if _, err := ResolvePoint(t.Context(), lister{}, "web@latest", noon); !strings.Contains(errs.NextStep(err), "holds no points yet") {
		t.Errorf("an empty store: %v, %q", err, errs.NextStep(err))
	}
}

func TestManyMachinesAreNotAllNamed(t *testing.T) {
	var l lister
	for _, vm := range strings.Fields("a b c d e f g h i j") {
		l.points = append(l.points, pointOf("aa00000000000001", vm, noon))
	}
	_, err := ResolvePoint(t.Context(), l, "x@latest", noon)
	if next := errs.NextStep(err); !strings.HasSuffix(next, "a, b, c, d, e, f, g, h, ….") {
		t.Errorf("next step %q", next)
	}
}

func TestLastHolding(t *testing.T) {
	points := []*chunkstore.Point{
		pointOf("01", "web", noon, 0, 1), pointOf("02", "web", noon, 1), pointOf("03", "db", noon, 0), pointOf("04", "web", noon, 2),
	}
	for _, tc := range []struct {
		vm   string
		disk int
		want chunkstore.PointID
	}{{"web", 0, "01"}, {"web", 1, "02"}, {"web", 2, "04"}, {"web", 3, ""}, {"db", 0, "03"}, {"x", 0, ""}} {
		var got chunkstore.PointID
		if p := LastHolding(points, tc.vm, tc.disk); p != nil {
			got = p.ID
		}
		if got != tc.want {
			t.Errorf("%s disk %d: %q, want %q", tc.vm, tc.disk, got, tc.want)
		}
	}
}
