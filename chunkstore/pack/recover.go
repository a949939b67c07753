package pack

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"slices"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Recovered says what became of an unsealed pack.
type Recovered struct {
	Header  Header // zero if the file had none
	Chunks  int    // kept
	Kept    int64  // bytes of header and groups
	Cut     int64  // bytes that were dropped behind them
	Lost    int    // whole groups among what was dropped: none after a mere crash, unless they were never acknowledged
	Removed bool   // nothing was worth keeping, the object is gone
}

// Recover finishes a pack whose writer died: it keeps the longest prefix of whole groups, drops what follows, writes
// directory and trailer, and seals it. A pack without one whole group is removed. With a key every frame's tag is
// looked at, for a crash may keep a header and lose the frames behind it; without one only headers are, and the
// directory is left unsigned. It never writes a frame, so no nonce is used twice; run again after a crash of its own it
// comes to the same end. The pack must have no writer.
//
// The object is left as it is when its header is damaged but groups follow it (errs.Corrupt), when it is of another
// store or version, and when it cannot be read.
func Recover(ctx context.Context, b backend.Backend, name string, o ReaderOptions) (Recovered, error) {
	const op = "recover pack"
	o.Name = name
	res, ok := b.(backend.Resumer)
	if !ok {
		return Recovered{}, errs.Text(op, name, errs.Unsupported, "the backend cannot finish an unsealed object")
	}
	obj, err := b.Open(ctx, name)
	if err != nil {
		return Recovered{}, errs.Wrap(op, name, err)
	}
	defer obj.Close()
	s := &salvage{w: newWindow(obj, false), sum: sha256.New()}
	defer s.w.close()
	r, err := Open(obj, o)
	if errs.Is(err, errs.Corrupt) {
		return s.headless(ctx, b, name, err)
	}
	if err != nil {
		return Recovered{}, errs.Wrap(op, name, err)
	}
	s.r = r
	if err := s.scan(); err != nil {
		return Recovered{}, errs.Wrap(op, name, err)
	}
	out := Recovered{Header: r.header, Chunks: len(s.dir), Kept: s.keep, Cut: obj.Size() - s.keep, Lost: s.lost}
	if len(s.dir) == 0 {
		out.Removed = true
		return out, errs.Wrap(op, name, removeUnsealed(ctx, b, name))
	}
	a, err := res.Resume(ctx, name, s.keep)
	if err != nil {
		return out, errs.Wrap(op, name, err)
	}
	return out, errs.Wrap(op, name, s.finish(a, name))
}

// salvage is one recovery.
type salvage struct {
	w      *window
	r      *Reader
	sum    hash.Hash // of everything up to keep
	keep   int64     // end of the last good group
	dir    []DirEntry
	plain  uint64
	stored uint64
	lost   int
}

// scan finds the prefix to keep.
func (s *salvage) scan() error {
	head, err := s.w.at(0, headerSize)
	if err != nil {
		return err
	}
	s.sum.Write(head)
	s.keep = headerSize
	for {
		more, err := s.group()
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	count := func(DirEntry, *group) error { s.lost++; return nil }
	_, err = walk(s.w, s.r.header.Number, align(s.keep), count, nil)
	return err
}

// group takes in the group behind keep, if there is a good one.
func (s *salvage) group() (bool, error) {
	pos := align(s.keep)
	if pos+groupSize > s.w.size || len(s.dir) >= MaxChunks || pos >= MaxSize {
		return false, nil
	}
	b, err := s.w.at(pos, groupSize)
	if err != nil {
		return false, err
	}
	g, err := decodeGroup(b)
	if err != nil || pos+int64(g.stored()) > s.w.size {
		return false, nil
	}
	p := chunk.Place{Pack: s.r.header.Number, Offset: uint32(pos / chunk.PlaceUnit), Stored: g.stored()}
	if b, err = s.w.at(pos, int(g.stored())); err != nil {
		return false, err
	}
	if s.r.aead != nil {
		sc := scratches.Get().(*scratch)
		defer scratches.Put(sc)
		copy(sc.group[:], b)
		if !s.r.authentic(sc, &g, p) {
			return false, nil
		}
	}
	gap, err := s.w.at(s.keep, int(pos-s.keep)+int(g.stored()))
	if err != nil {
		return false, err
	}
	s.sum.Write(gap)
	s.keep = pos + int64(g.stored())
	s.dir = append(s.dir, DirEntry{Digest: g.digest, Place: p, PlainLen: g.plain})
	s.plain += uint64(g.plain)
	s.stored += uint64(p.Stored)
	return true, nil
}

// finish writes directory and trailer behind what was kept, and seals.
func (s *salvage) finish(a backend.Appender, name string) error {
	w := &Writer{
		a: a, name: name, number: s.r.header.Number, buf: pieces.Get().(*[]byte),
		flushed: s.keep, sum: s.sum, dir: s.dir,
	}
	*w.buf = (*w.buf)[:0]
	defer w.release()
	t := trailer{flags: flagRecovered, chunks: uint32(len(s.dir)), plain: s.plain, stored: s.stored}
	signKey := &s.r.signKey
	if s.r.aead == nil {
		signKey = nil
	}
	err := w.end("recover pack", t, signKey)
	if err != nil {
		_ = a.Close() // the error says more; what is on disk is recovered again
	}
	return err
}

// headless deals with a pack whose header is no header: one that died before its first sync is removed, one that holds
// groups is damaged and left for a person to look at.
func (s *salvage) headless(ctx context.Context, b backend.Backend, name string, cause error) (Recovered, error) {
	const op = "recover pack"
	found := 0
	if _, err := walk(s.w, 0, headerSize, func(DirEntry, *group) error { found++; return nil }, nil); err != nil {
		return Recovered{}, errs.Wrap(op, name, err)
	}
	if found > 0 {
		return Recovered{}, errs.New(op, name, errs.Corrupt, fmt.Errorf("%d chunks without a header: %w", found, cause)).WithNext(
			"Keep the file and run a full check of the store; the disk has lost bytes it had acknowledged.")
	}
	return Recovered{Removed: true, Cut: s.w.size}, errs.Wrap(op, name, removeUnsealed(ctx, b, name))
}

// removeUnsealed removes the object, unless somebody sealed it: a sealed pack is never removed by recovery.
func removeUnsealed(ctx context.Context, b backend.Backend, name string) error {
	list, err := b.List(ctx, name)
	if err != nil {
		return err
	}
	open := func(i backend.Info) bool { return i.Name == name && !i.Sealed }
	if !slices.ContainsFunc(list, open) {
		return errs.Text("remove", name, errs.Invalid, "the object is sealed")
	}
	return b.Remove(ctx, name)
}
