package storetest

import (
	"bytes"
	"io"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// testReclaim: what is given back reads as zeros and is counted, what lies beside it stays, and a discarded object is
// gone for good, whoever has it open.
func testReclaim(t *testing.T, s *subject) {
	r, ok := s.Backend.(backend.Reclaimer)
	if !ok {
		t.Skip("the backend is no Reclaimer")
	}
	const size = 200<<10 + 7
	content := bytes.Repeat([]byte{0xee}, size)
	a := s.begin("p", string(content))
	s.want("CanPunch of an unsealed object", r.CanPunch(t.Context(), "p"), errs.NotFound)
	s.ok("Seal", a.Seal())
	if err := r.CanPunch(t.Context(), "p"); errs.Is(err, errs.Unsupported) {
		t.Skip("the disk this runs on has no holes: ", err)
	} else {
		s.ok("CanPunch", err)
	}
	s.holds("p", string(content))
	reader, err := s.Open(t.Context(), "p")
	s.ok("Open", err)
	before := s.occupied("p")
	freed, err := r.Punch(t.Context(), "p", []backend.Range{{Off: 4096, Len: 100 << 10}, {Off: 150<<10 + 1, Len: size - 150<<10 - 1}})
	s.ok("Punch", err)
	clear(content[4096 : 4096+100<<10])
	clear(content[150<<10+1:])
	s.holds("p", string(content))
	if after := s.occupied("p"); freed != before-after || freed < 140<<10 || freed > 160<<10 {
		t.Errorf("Punch says %d bytes were freed; the object took %d and takes %d", freed, before, after)
	}
	again, err := r.Punch(t.Context(), "p", []backend.Range{{Off: 4096, Len: 100 << 10}})
	s.ok("Punch of a hole", err)
	if again != 0 {
		t.Errorf("Punch of a hole freed %d bytes", again)
	}
	s.want("Punch beyond the end", second(r.Punch(t.Context(), "p", []backend.Range{{Off: size - 1, Len: 2}})), errs.Bug)
	s.want("Punch of nothing", second(r.Punch(t.Context(), "q", []backend.Range{{Len: 1}})), errs.NotFound)

	rest := s.occupied("p")
	freed, err = r.Discard(t.Context(), "p")
	s.ok("Discard", err)
	if freed != rest {
		t.Errorf("Discard says %d bytes were freed, it took %d", freed, rest)
	}
	s.lists("")
	var one [1]byte
	if n, err := reader.ReadAt(one[:], 0); n == 1 && one[0] != 0 || n == 0 && err != io.EOF {
		t.Errorf("a discarded object can still be read: %d bytes, %v", n, err)
	}
	s.ok("Close", reader.Close())
	s.want("Discard of nothing", second(r.Discard(t.Context(), "p")), errs.NotFound)
	s.write(s.begin("p"), "new") // the name is free again
}

func second(_ int64, err error) error { return err }

// occupied returns what List says an object takes.
func (s *subject) occupied(name string) int64 {
	s.t.Helper()
	got, err := s.List(s.t.Context(), name)
	if err != nil || len(got) != 1 {
		s.t.Fatalf("List %q: %v, %v", name, got, err)
	}
	return got[0].Occupied
}
