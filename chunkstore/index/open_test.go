package index

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// asides returns the folders that were moved aside beside dir.
func asides(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(dir + asideMark + "*")
	must(t, err)
	return all
}

func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "index") // the parents are made
	x := open(t, dir, Options{})
	load(t, x, 5000, 700, 1)
	must(t, x.MarkPack(7, 5000))
	must(t, x.Close())
	for range 3 {
		x = open(t, dir, Options{})
		if x.Fresh() || x.Reason() != "" {
			t.Fatalf("fresh: %s", x.Reason())
		}
		next := idsOf(1)
		for i := range 5000 {
			wantPlace(t, x, next(), placeOf(i))
		}
		if marks, err := x.Packs(); err != nil || len(marks) != 1 || marks[0] != (PackMark{7, 5000}) {
			t.Errorf("Packs = %v, %v", marks, err)
		}
		must(t, x.Close())
	}
	if got := asides(t, dir); got != nil {
		t.Errorf("moved aside: %v", got)
	}
}

// TestFoldersNotUsed: what is not an index of this store and version is moved aside, whole.
func TestFoldersNotUsed(t *testing.T) {
	for _, c := range []struct {
		name   string
		spoil  func(t *testing.T, dir string)
		reason string
		aside  int
	}{
		{"no folder", func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)) }, "there was none", 0},
		{"empty folder", func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)); must(t, os.Mkdir(dir, 0o700)) }, "there was none", 0},
		{"another store", func(t *testing.T, dir string) { rewriteState(t, dir, func(s *state) { s.store = storeB }) }, "another store", 1},
		{"newer version", func(t *testing.T, dir string) { rewriteState(t, dir, func(s *state) { s.version++ }) }, "format version 2", 1},
		{"state file gone", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, stateName))) }, "state file is missing", 1},
		{"killed while it was made", halfMade, reasonCut, 0},
		{"only the state file", func(t *testing.T, dir string) {
			keep, err := os.ReadFile(filepath.Join(dir, stateName))
			must(t, err)
			must(t, os.RemoveAll(dir))
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.WriteFile(filepath.Join(dir, stateName), keep, 0o600))
		}, "damaged", 1},
		{"one transaction missing", func(t *testing.T, dir string) { rewriteState(t, dir, func(s *state) { s.acked++ }) }, "is missing", 1},
		{"somebody's files", func(t *testing.T, dir string) {
			must(t, os.RemoveAll(dir))
			must(t, os.Mkdir(dir, 0o700))
			must(t, os.WriteFile(filepath.Join(dir, "letter.txt"), []byte("dear"), 0o600))
		}, "state file is missing", 1},
		{"a ring slot with another's number", func(t *testing.T, dir string) {
			x := open(t, dir, Options{})
			must(t, x.inBatches("test", 1, func(txn *badger.Txn, _, _ int) error { return txn.Set(ringKey(500), make([]byte, 8)) }))
			must(t, x.Close())
		}, "ring entry", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "index")
			x := open(t, dir, Options{})
			must(t, x.Put([]Entry{{chunk.ID{1}, placeOf(1)}}))
			must(t, x.Close())
			c.spoil(t, dir)
			var log bytes.Buffer
			x = open(t, dir, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
			defer mustClose(t, x)
			if !x.Fresh() || !strings.Contains(x.Reason(), c.reason) {
				t.Errorf("fresh %v, reason %q, want one with %q", x.Fresh(), x.Reason(), c.reason)
			}
			if told := strings.Contains(log.String(), c.reason); told == (c.reason == reasonNone) { // a new store is no news
				t.Errorf("the log does not say why: %q", log.String())
			}
			if got := asides(t, dir); len(got) != c.aside {
				t.Errorf("moved aside: %v, want %d", got, c.aside)
			}
			wantPlace(t, x, chunk.ID{1}, chunk.Place{})
			must(t, x.Put([]Entry{{chunk.ID{1}, placeOf(2)}}))
			wantPlace(t, x, chunk.ID{1}, placeOf(2))
		})
	}
}

// halfMade leaves what a kill leaves just before the state file gets its name.
func halfMade(t *testing.T, dir string) {
	must(t, os.RemoveAll(dir))
	must(t, os.Mkdir(dir, 0o700))
	for _, name := range []string{"MANIFEST", "REWRITE-KEYREGISTRY", "00001.mem", "000001.vlog", "DISCARD", stateName + ".tmp"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
}

func rewriteState(t *testing.T, dir string, change func(*state)) {
	t.Helper()
	s, err := readState(dir)
	must(t, err)
	change(&s)
	must(t, os.WriteFile(filepath.Join(dir, stateName), s.encode(), 0o600))
}

// TestOneAsideIsKept: a disk that damages the index again and again must not fill up with the remains.
func TestOneAsideIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	stranger := dir + "-of-somebody-else"
	must(t, os.Mkdir(stranger, 0o700))
	for i := range 4 {
		x, err := Open(dir, [16]byte{byte(i)}, Options{})
		must(t, err)
		must(t, x.Put([]Entry{{chunk.ID{1}, placeOf(i)}}))
		must(t, x.Close())
	}
	got := asides(t, dir)
	if len(got) != 1 {
		t.Fatalf("moved aside: %v, want the newest only", got)
	}
	if s, err := readState(got[0]); err != nil || s.store != ([16]byte{2}) {
		t.Errorf("the one kept belongs to %v, %v, want the one before the last", s.store, err)
	}
	if _, err := os.Stat(stranger); err != nil {
		t.Error(err)
	}
}

func TestLockedFolderIsBusyAndUntouched(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open(t, dir, Options{})
	defer mustClose(t, x)
	must(t, x.Put([]Entry{{chunk.ID{1}, placeOf(1)}}))
	for _, store := range [][16]byte{storeA, storeB} { // also one that would move it aside
		_, err := Open(dir, store, Options{})
		wantKind(t, err, errs.Busy)
		if errs.NextStep(err) == "" {
			t.Error("busy without a next step")
		}
	}
	if got := asides(t, dir); got != nil {
		t.Errorf("moved aside: %v", got)
	}
	wantPlace(t, x, chunk.ID{1}, placeOf(1))
	must(t, x.Put([]Entry{{chunk.ID{2}, placeOf(2)}}))
}

// TestUnusableFolder: a folder that cannot be used is an error, not a reason to throw it away.
func TestUnusableFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		_, err := Open(dir, storeA, Options{})
		wantKind(t, err, errs.Invalid)
	}
	if os.Geteuid() == 0 {
		t.Log("the superuser may do everything: denied folders are not tried")
		return
	}
	dir := filepath.Join(t.TempDir(), "index")
	mustClose(t, open(t, dir, Options{}))
	must(t, os.Chmod(filepath.Join(dir, stateName), 0))
	_, err := Open(dir, storeA, Options{})
	wantKind(t, err, errs.Denied)
	if got := asides(t, dir); got != nil {
		t.Errorf("moved aside: %v", got)
	}
}

func TestDistrustOrError(t *testing.T) {
	for _, err := range []error{os.ErrPermission, errs.New("x", "", errs.NoSpace, nil)} {
		if _, ok := distrustDamage(err).(distrust); ok {
			t.Errorf("%v costs the index", err)
		}
	}
	for _, err := range []error{os.ErrNotExist, fmt.Errorf("whatever"), errs.New("x", "", errs.Corrupt, nil)} {
		if _, ok := distrustDamage(err).(distrust); !ok {
			t.Errorf("%v does not cost the index", err)
		}
	}
}

// TestRingWrapsAround: the ring holds the newest transactions, however many there were.
func TestRingWrapsAround(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	x := open(t, dir, small)
	must(t, x.Put([]Entry{{chunk.ID{1}, placeOf(1)}}))
	x.seq = 3*ringSize - 2 // as if that many had come before; only the last ones are looked at
	ring := func(txn *badger.Txn, _, _ int) error { return nil }
	for range 5 {
		must(t, x.inBatches("test", 1, ring))
	}
	must(t, x.Close())
	if s, err := readState(dir); err != nil || s.acked != 3*ringSize+3 {
		t.Fatalf("state %v, %v", s, err)
	}
	x = open(t, dir, small)
	defer mustClose(t, x)
	if !x.Fresh() || !strings.Contains(x.Reason(), fmt.Sprint("transaction ", 3*ringSize-2)) {
		t.Errorf("fresh %v, reason %q: the newest transaction that is missing should be named", x.Fresh(), x.Reason())
	}
}

func TestDecodeState(t *testing.T) {
	good := state{FormatVersion, storeA, 1 << 40}
	if got, err := decodeState(good.encode()); err != nil || got != good {
		t.Errorf("got %v, %v", got, err)
	}
	for i := range stateSize {
		b := good.encode()
		b[i] ^= 0x20
		if _, err := decodeState(b); err == nil {
			t.Errorf("a flip in byte %d is not noticed", i)
		}
		if _, err := decodeState(b[:i]); err == nil {
			t.Errorf("%d bytes are taken for a state file", i)
		}
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	l := logger{slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	l.Debugf("d %d", 1)
	l.Infof("i %d", 2)
	l.Warningf("w %d\n", 3)
	l.Errorf("e %d", 4)
	if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "badger: w 3") || !strings.Contains(got, "badger: e 4") {
		t.Errorf("logged %q", got)
	}
	logger{}.Errorf("nobody listens") // must not panic
}
