package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

// later is a time that no run of this test will see.
const later = "2099-12-31"

func TestLockedPoint(t *testing.T) {
	b := newBox(t)
	var i imported
	b.json(&i, "disk", "import", b.disk("disk", 1, mib), "--vm", "web")
	if out := b.ok("store", "clock"); !strings.Contains(out, "Nothing was ever locked") {
		t.Error(out)
	}
	var l map[string]string
	b.json(&l, "point", "lock", "web@latest", "--until", later, "--reason", "the auditor asked for it")
	if want := "2100-01-01T00:00:00Z"; l["point"] != i.Point || l["locked_until"] != want {
		t.Errorf("%v, want until %s", l, want)
	}
	b.fails(exitDenied, []string{"point", "rm", i.Point}, "locked until 2100-01-01T00:00:00Z", "the auditor asked for it")
	b.fails(exitDenied, []string{"point", "lock", i.Point, "--until", "2098-01-01"}, "cannot be shortened")
	b.fails(exitUsage, []string{"point", "lock", i.Point}, "--until", "--for")
	b.fails(exitUsage, []string{"point", "lock", i.Point, "--for", "5y"}, "h, d or w")
	b.fails(exitUsage, []string{"point", "lock", i.Point, "--until", "tomorrow"}, "2027-01-31")
	b.fails(exitUsage, []string{"point", "lock", i.Point, "--until", "2020-01-01"}, "not in the future")
	for _, args := range [][]string{{"point", "list"}, {"point", "show", i.Point}} {
		if out := b.ok(args...); !strings.Contains(out, "2100-01-01T00:00:00Z") {
			t.Errorf("%q does not show the lock:\n%s", args, out)
		}
	}
	var c clockJSON
	if b.json(&c, "store", "clock"); c.Believed == "" || c.Doubtful {
		t.Errorf("%+v", c)
	}
	b.json(&c, "store", "clock", "--confirm")
	var all []chunkstore.AuditEntry
	b.json(&all, "store", "audit")
	var what []string
	for _, e := range all {
		what = append(what, e.What)
	}
	if got, want := strings.Join(what, ", "), "lock point, refused to remove locked point, confirm clock"; got != want {
		t.Errorf("audit: %s, want %s", got, want)
	}
}

// TestANodeThatHoldsTheStoreIsAsked: as long as a node has it, the node changes it; and only if it is the same store.
func TestANodeThatHoldsTheStoreIsAsked(t *testing.T) {
	b := newBox(t)
	held, err := chunkstore.Open(t.Context(), b.store, chunkstore.Options{
		Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return []byte(passphrase), nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	point := b.node.points[0].Point
	b.node.store = api.StoreInfo{UUID: "another"}
	b.fails(exitConflict, []string{"point", "rm", point}, "another process writes to the store")
	b.node.store.UUID = held.Superblock().UUID.String()
	b.node.calls = nil
	b.ok("point", "rm", point)
	b.ok("point", "lock", point, "--until", later)
	now := time.Date(2026, 9, 14, 2, 0, 0, 0, time.UTC)
	b.node.store.Believed = &now
	b.ok("store", "clock", "--confirm")
	got := strings.Join(b.node.calls, "; ")
	for _, want := range []string{"RemovePoint[" + point + "]", "LockPoint[{Point:" + point + " Until:2100-01-01 00:00:00 +0000 UTC Reason:}]", "ConfirmClock"} {
		if !strings.Contains(got, want) {
			t.Errorf("the node was asked %q, not %q", got, want)
		}
	}
}
