package cli

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestDamageIsToldAndHeals: from the verification that finds it to the backup that heals it, every command that shows a
// point says how much of it is damaged.
//
// Long: one story, told in order.
func TestDamageIsToldAndHeals(t *testing.T) {
	b := newBox(t)
	first := b.imports(b.disk("a.raw", 1, 2*mib), "web")
	other := b.imports(b.disk("b.raw", 2, mib), "db")
	packs, err := filepath.Glob(b.path("store/data/*/*.pack"))
	if err != nil || len(packs) != 2 {
		t.Fatal(packs, err)
	}
	damage(t, packs[0], 300_000)
	status := func() (s statusJSON) {
		b.json(&s, "store", "status")
		return s
	}
	if s := status(); s.Damage.Chunks != 0 || s.Scrub.Verified != nil {
		t.Errorf("before anybody looked: %+v", s)
	}
	b.fails(exitCorrupt, []string{"store", "verify"}, "1 fault found", "heals old points too")
	s := status()
	if s.Damage.Chunks != 1 || s.Damage.Points != 1 || s.Damage.Bytes == 0 || s.Scrub.Verified == nil || s.Scrub.Verified.Faults != 1 ||
		s.Scrub.Verified.Found != 1 || !strings.HasPrefix(s.Scrub.Verified.Objects[0], "data/") {
		t.Errorf("%+v, %+v", s, s.Scrub.Verified)
	}
	for _, args := range [][]string{{"store", "status"}, {"point", "list"}, {"point", "show", first.Point}} {
		if out := b.ok(args...); !strings.Contains(out, "DAMAGED") {
			t.Errorf("%v does not say it:\n%s", args, out)
		}
	}
	var list []pointJSON
	b.json(&list, "point", "list")
	for _, p := range list {
		if hit := p.Hurt > 0; hit != (p.Point == first.Point) || hit && p.Hurt != s.Damage.Bytes || hit == (p.Since == "") {
			t.Errorf("%+v", p)
		}
	}
	if out := b.ok("point", "show", other.Point); strings.Contains(out, "DAMAGED") {
		t.Errorf("a good point is told to be hit:\n%s", out)
	}
	again := b.imports(b.path("a.raw"), "web")
	for _, p := range []string{first.Point, again.Point} {
		if got, want := b.sha256(p), sum(t, b.path("a.raw")); got != want {
			t.Errorf("point %s is not healed", p)
		}
	}
	if s := status(); s.Damage.Chunks != 0 || s.Damage.Points != 0 || s.Damage.Healed != 1 {
		t.Errorf("healed: %+v", s.Damage)
	}
	if out := b.ok("store", "verify"); !strings.Contains(out, "No damage was found") || !strings.Contains(out, "Healed: 1 chunk or page") {
		t.Errorf("healed:\n%s", out)
	}
	list = nil
	b.json(&list, "point", "list")
	for _, p := range list {
		if p.Hurt > 0 || p.Since != "" {
			t.Errorf("what is healed is still told: %+v", p)
		}
	}
}
