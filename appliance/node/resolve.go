package node

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Lister lists restore points; chunkstore's Reader does.
type Lister interface {
	Points(ctx context.Context) ([]*chunkstore.Point, []error)
}

// VMOf returns the name of the machine a point belongs to.
func VMOf(p *chunkstore.Point) string { return p.Labels[appliance.LabelVM] }

// ResolvePoint finds the point that a text names: an ID, a unique prefix of one, or VM@when, where when is "latest", the
// beginning of a time in UTC ("2026-09-14", "2026-09-14T02": the newest point in it), or an age ("-3d": the newest
// point at least that old; units m, h, d, w).
func ResolvePoint(ctx context.Context, l Lister, text string, now time.Time) (*chunkstore.Point, error) {
	const op = "find point"
	if text == "" {
		return nil, errs.Text(op, "", errs.Invalid, "no point was named").WithNext("See `holdfast point list`.")
	}
	points, bad := l.Points(ctx)
	if points == nil && len(bad) > 0 {
		return nil, bad[0]
	}
	if i := strings.LastIndex(text, "@"); i > 0 {
		return resolveWhen(points, text[:i], text[i+1:], now)
	}
	prefix := strings.ToLower(text)
	var found *chunkstore.Point
	var damaged error
	var ids []string
	for _, p := range points {
		if strings.HasPrefix(string(p.ID), prefix) {
			found, ids = p, append(ids, string(p.ID))
		}
	}
	for _, err := range bad {
		var e *errs.Error
		if errors.As(err, &e) && strings.HasPrefix(e.Subject, prefix) { // the subject of a bad record is its ID
			damaged, ids = err, append(ids, e.Subject)
		}
	}
	switch {
	case len(ids) == 1 && damaged != nil:
		return nil, damaged
	case len(ids) == 1:
		return found, nil
	case len(ids) > 1:
		return nil, errs.Text(op, text, errs.Invalid, fmt.Sprintf("%d points begin with it", len(ids))).
			WithNext("Give more digits: " + strings.Join(ids[:min(len(ids), 5)], ", ") + ".")
	}
	next := "See `holdfast point list`."
	for _, p := range points {
		if VMOf(p) == text {
			next = "To name the newest point of that machine write " + text + "@latest."
		}
	}
	return nil, errs.Text(op, text, errs.NotFound, "there is no such point").WithNext(next)
}

func resolveWhen(points []*chunkstore.Point, vm, when string, now time.Time) (*chunkstore.Point, error) {
	const op = "find point"
	var of []*chunkstore.Point // oldest first, as listed
	names := map[string]bool{}
	for _, p := range points {
		names[VMOf(p)] = true
		if VMOf(p) == vm {
			of = append(of, p)
		}
	}
	if len(of) == 0 {
		return nil, errs.Text(op, vm+"@"+when, errs.NotFound, "no machine of that name has a point").WithNext(known(names))
	}
	match, err := matcher(when, now)
	if err != nil {
		return nil, err
	}
	for i := len(of) - 1; i >= 0; i-- {
		if match(of[i].Time) {
			return of[i], nil
		}
	}
	return nil, errs.Text(op, vm+"@"+when, errs.NotFound, "the machine has no point of that time").
		WithNext(fmt.Sprintf("Its oldest is of %s, its newest of %s.", stamp(of[0].Time), stamp(of[len(of)-1].Time)))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func known(names map[string]bool) string {
	if len(names) == 0 {
		return "The store holds no points yet: make one with `holdfast backup run VM`, or of an image with `holdfast disk import FILE --vm NAME`."
	}
	var list []string
	for n := range names {
		list = append(list, n)
	}
	sort.Strings(list)
	if len(list) > 8 {
		list = append(list[:8], "…")
	}
	return "The machines with points are: " + strings.Join(list, ", ") + "."
}

// matcher understands the part behind "@".
func matcher(when string, now time.Time) (func(time.Time) bool, error) {
	if when == "latest" {
		return func(time.Time) bool { return true }, nil
	}
	if age, ok := strings.CutPrefix(when, "-"); ok {
		d, err := parseAge(age)
		if err != nil {
			return nil, err
		}
		return func(t time.Time) bool { return !t.After(now.Add(-d)) }, nil
	}
	prefix := strings.TrimSuffix(when, "Z")
	if len(prefix) < 4 || strings.Trim(prefix, "0123456789-:T.") != "" {
		return nil, errs.Text("read time", when, errs.Invalid, "this is neither latest nor a time nor an age").
			WithNext("Write VM@latest, VM@2026-09-14T02 or VM@-3d.")
	}
	return func(t time.Time) bool {
		return strings.HasPrefix(t.UTC().Format("2006-01-02T15:04:05.000000000"), prefix) ||
			strings.HasPrefix(strings.TrimSuffix(appliance.PathTime(t), "Z"), prefix)
	}, nil
}

func parseAge(s string) (time.Duration, error) {
	units := map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	if len(s) >= 2 {
		unit, ok := units[s[len(s)-1]]
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 16)
		if ok && err == nil {
			return time.Duration(n) * unit, nil
		}
	}
	return 0, errs.Text("read age", "-"+s, errs.Invalid, "an age is a number with m, h, d or w behind it, as in -3d")
}

// LastHolding returns the newest point of a machine that holds a disk, or nil.
func LastHolding(points []*chunkstore.Point, vm string, number int) *chunkstore.Point {
	for i := len(points) - 1; i >= 0; i-- {
		if VMOf(points[i]) != vm {
			continue
		}
		if _, err := points[i].Disk(number); err == nil {
			return points[i]
		}
	}
	return nil
}
