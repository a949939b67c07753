package quarantine

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func id(n int) (d chunk.ID) {
	d[0], d[15] = byte(n), 1
	return d
}

func at(n int) chunk.Place { return chunk.Place{Pack: 7, Offset: uint32(n), Stored: 100} }

// TestModel plays records against a map.
func TestModel(t *testing.T) {
	type key struct {
		id     chunk.ID
		offset uint32
	}
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := &Record{Kind: 1, Number: 7}
		want := map[key]chunk.Place{}
		for range 60 {
			n, p := id(rng.IntN(6)), at(rng.IntN(8))
			k := key{n, p.Offset}
			switch rng.IntN(4) {
			case 0, 1:
				_, had := want[k]
				if news, err := r.Add(n, p, time.Unix(5, 0)); err != nil || news == had {
					t.Fatalf("seed %d: adding says %v, %v", seed, news, err)
				}
				if !had {
					want[k] = chunk.Place{}
				}
			case 2:
				to, count := chunk.Place{Pack: 9, Offset: rng.Uint32(), Stored: 1}, 0
				for k, healed := range want {
					if k.id == n && healed.IsZero() {
						want[k] = to
						count++
					}
				}
				if got := r.Heal(map[chunk.ID]chunk.Place{n: to}); got != count {
					t.Fatalf("seed %d: %d healed, want %d", seed, got, count)
				}
			default:
				_, had := want[k]
				delete(want, k)
				lifted := r.Lift(func(e Entry) bool { return e.ID == n && e.Offset == p.Offset })
				if (lifted == 1) != had {
					t.Fatalf("seed %d: %d lifted, there was one: %v", seed, lifted, had)
				}
			}
			back, err := Decode(r.Encode(), 1, 7)
			if err != nil || !reflect.DeepEqual(back.Entries, append([]Entry{}, r.Entries...)) {
				t.Fatalf("seed %d: %v comes back as %v, %v", seed, r, back, err)
			}
			if len(back.Entries) != len(want) || back.Empty() != (len(want) == 0) {
				t.Fatalf("seed %d: %d entries, want %d", seed, len(back.Entries), len(want))
			}
			for k, healed := range want {
				e, ok := back.Find(k.id, chunk.Place{Pack: 7, Offset: k.offset})
				if !ok || e.Healed != healed || !e.Since.Equal(time.Unix(5, 0)) || !back.Lists(k.id, at(int(k.offset))) {
					t.Fatalf("seed %d: %v is %v, %v", seed, k, e, ok)
				}
			}
		}
	}
}

// TestLost: in a lost pack all is damaged but what is healed.
func TestLost(t *testing.T) {
	r := &Record{Kind: 2, Number: 7}
	if _, ok := r.Find(id(1), at(1)); ok || !r.Empty() {
		t.Error("an empty record says something")
	}
	since := time.Unix(1, 5)
	if !r.Lose(since) || r.Lose(time.Unix(2, 0)) || r.Empty() {
		t.Error("a pack is lost once")
	}
	if e, ok := r.Find(id(1), at(1)); !ok || !e.Since.Equal(since) || !e.Healed.IsZero() || r.Lists(id(1), at(1)) {
		t.Errorf("%v, %v", e, ok)
	}
	if _, err := r.Add(id(1), at(1), time.Unix(9, 0)); err != nil || !r.Entries[0].Since.Equal(since) {
		t.Error("what is lost is so since the pack is:", r.Entries, err)
	}
	if r.Heal(map[chunk.ID]chunk.Place{id(1): at(1)}) != 0 {
		t.Error("a chunk healed itself")
	}
	r.Heal(map[chunk.ID]chunk.Place{id(1): at(3)})
	back, err := Decode(r.Encode(), 2, 7)
	if err != nil || !back.Lost.Equal(since) {
		t.Fatal(back, err)
	}
	if e, _ := back.Find(id(1), at(1)); e.Healed != at(3) {
		t.Error(e)
	}
	var none *Record
	if _, ok := none.Find(id(1), at(1)); ok || none.Lists(id(1), at(1)) {
		t.Error("no record says something")
	}
}

// TestFull: a record takes no more entries than a pack has chunks.
func TestFull(t *testing.T) {
	r := &Record{Kind: 1, Number: 7, Entries: make([]Entry, MaxEntries)}
	for i := range r.Entries {
		r.Entries[i] = Entry{ID: id(1), Offset: uint32(i), Since: time.Unix(1, 0)}
	}
	if _, err := r.Add(id(1), at(MaxEntries+5), time.Unix(1, 0)); !errs.Is(err, errs.NoSpace) {
		t.Error(err)
	}
	if n := len(r.Encode()); n != MaxSize {
		t.Errorf("%d bytes, want %d", n, MaxSize)
	}
}

func FuzzDecode(f *testing.F) {
	r := &Record{Kind: 1, Number: 7}
	_, _ = r.Add(id(3), at(2), time.Unix(3, 4))
	_, _ = r.Add(id(3), at(5), time.Unix(3, 4))
	r.Heal(map[chunk.ID]chunk.Place{id(3): at(9)})
	f.Add(r.Encode())
	f.Add((&Record{Kind: 1, Number: 7, Lost: time.Unix(1, 2)}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b, 1, 7)
		if err != nil {
			if !errs.Is(err, errs.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(r.Encode(), b) {
			t.Fatalf("%x comes back as %x", b, r.Encode())
		}
	})
}
