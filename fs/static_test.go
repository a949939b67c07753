package fs

import (
	"context"
	"errors"
	"testing"
	"time"
)

// leaf is the least a file can be. The suite in fs/fstest reads real ones through a Static.
type leaf struct{ id ID }

func (l leaf) ID() ID { return l.id }
func (l leaf) Attr(context.Context) (Attr, error) {
	return Attr{ID: l.id, Kind: KindFile, Nlink: 1}, nil
}
func (l leaf) ReadAt(context.Context, []byte, int64) (n int, _ error) { return 0, nil }

func TestPathIDs(t *testing.T) {
	// These numbers are inode numbers and file handles that clients hold across restarts: they never change.
	for text, want := range map[string]ID{"": 14695981039346656037, "/": 12638123428881205758, "/a": 564752086074186029} {
		if got := PathID(text); got != want {
			t.Errorf("PathID(%q) = %d, want %d", text, got, want)
		}
	}
}

func TestStatic(t *testing.T) {
	ctx, when := t.Context(), time.Unix(1_700_000_000, 5)
	sub := NewStaticDir(PathID("/sub"), when, Entry{Name: "inside", Node: leaf{12}})
	root := NewStaticDir(PathID("/"), when, Entry{Name: "b", Node: leaf{11}, Cookie: 77}, Entry{Name: "sub", Node: sub})
	away := errors.New("away")
	tree := NewStatic(root, func(context.Context) (Space, error) { return Space{TotalBytes: 9}, away })

	if tree.Root() != root {
		t.Error("Root is not the root")
	}
	for _, id := range []ID{root.ID(), sub.ID(), 11, 12} {
		if n, err := tree.Node(ctx, id); err != nil || n.ID() != id {
			t.Errorf("Node(%d) = %v, %v", id, n, err)
		}
	}
	if _, err := tree.Node(ctx, 13); StatusOf(err) != StatusStale {
		t.Errorf("Node of a foreign ID: %v", err)
	}
	if s, err := tree.Space(ctx); s.TotalBytes != 9 || err != away {
		t.Errorf("Space %+v, %v", s, err)
	}
	a, err := root.Attr(ctx)
	if err != nil || a.Kind != KindDir || a.Perm != 0o755 || a.UID != OwnerID || a.GID != OwnerID || a.Nlink != 3 ||
		!a.Mtime.Equal(when) {
		t.Errorf("root: %+v, %v", a, err)
	}
	if n, err := root.Lookup(ctx, "sub"); err != nil || n != sub {
		t.Errorf("Lookup: %v, %v", n, err)
	}
	if _, err := root.Lookup(ctx, "inside"); StatusOf(err) != StatusNotFound {
		t.Errorf("Lookup of what lies elsewhere: %v", err)
	}
	var got []Entry
	err = root.List(ctx, 0, func(e Entry) bool { got = append(got, e); return true })
	if err != nil || len(got) != 2 || got[0].Name != "b" || got[0].Cookie != 1 || got[1].Cookie != 2 {
		t.Errorf("List %+v, %v", got, err)
	}
}
