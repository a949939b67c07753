package chunkstore

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// A backup compresses as fast as it can. When nothing else is to be done, packs are written anew, compressed with ten
// times the care and without what no point needs any more.
//
// The new file has another name. It is written, synced, sealed, and read back: every chunk is decoded and named again.
// Only then the file that it replaces is removed, which is the one step that counts: as long as both are there, the old
// one is the pack, and what was begun beside it is removed when the store is opened. Places stay what they are
// (pack.Writer.Move), so neither a manifest nor the index changes, and whoever has the old file open goes on reading it.

// CompactOptions say how to make packs compact.
type CompactOptions struct {
	MinAge   time.Duration       // since a pack was begun; younger ones are left alone
	Workers  int                 // that compress; default one for each processor
	Continue func() bool         // asked before each pack; nil: yes
	Progress func(CompactResult) // told after each pack; may be nil

	worth int64 // hundredths of its size that a pack must come down to; default worthwhile
}

// CompactResult counts what was done.
type CompactResult struct {
	Total       int   // packs that there are to look at
	Looked      int   // of them, until now
	Packs       int   // that were written anew
	BeforeBytes int64 // of those, on the disk
	AfterBytes  int64
	Damaged     int // left alone, because something in them could not be read: verify the store
}

// Freed returns the bytes that were given back.
func (r CompactResult) Freed() int64 { return r.BeforeBytes - r.AfterBytes }

// worthwhile is the part of its size that a pack must come down to, in hundredths, to be replaced.
const worthwhile = 97

// Compact makes data packs compact, the oldest first. Backups, reads and collections go on meanwhile; a collection waits
// for the pack at hand. After an error, also of ctx, nothing is left half done. errs.NoSpace: there is no room for one
// more pack.
func (s *Store) Compact(ctx context.Context, o CompactOptions) (CompactResult, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.worth == 0 {
		o.worth = worthwhile
	}
	var res CompactResult
	err := s.compactAll(ctx, o, &res)
	return res, errs.Wrap("make packs compact", s.dir, err)
}

func (s *Store) compactAll(ctx context.Context, o CompactOptions, res *CompactResult) error {
	newest := s.settled()
	infos, err := s.b.List(ctx, pack.Data.String()+"/")
	if err != nil {
		return err
	}
	var todo []havePack
	for _, h := range packsIn(pack.Data, infos) {
		if h.sealed && h.form == asWritten && h.number <= newest && !s.hopeless.has(h.number) {
			todo = append(todo, h)
		}
	}
	res.Total = len(todo)
	for _, h := range todo {
		if err := ctx.Err(); err != nil {
			return err
		}
		if o.Continue != nil && !o.Continue() {
			return nil
		}
		if err := s.compactOne(ctx, h, o, res); err != nil {
			return err
		}
		res.Looked++
		if o.Progress != nil {
			o.Progress(*res)
		}
	}
	return nil
}

// compactOne makes one pack compact, if that is worth it. Collections are kept out.
func (s *Store) compactOne(ctx context.Context, h havePack, o CompactOptions, res *CompactResult) error {
	s.running.Lock()
	defer s.running.Unlock()
	old, err := s.openFile(ctx, h.packFile)
	if errs.Is(err, errs.NotFound) {
		return nil // a collection was faster
	}
	var dir []pack.DirEntry
	if err == nil {
		defer old.Close()
		if time.Since(old.Header().Created) < o.MinAge {
			return nil
		}
		dir, err = old.Directory()
	}
	if err == nil && len(dir) == 0 {
		return nil // a collection will remove it
	}
	c := compaction{s: s, old: old, dir: dir, file: packFile{h.packKey, compact}}
	if err == nil {
		err = c.write(ctx, o.Workers)
	}
	if err == nil {
		h.info.Occupied, err = s.occupied(ctx, h.name(), h.rest())
	}
	if err == nil && c.size*100 > h.info.Occupied*o.worth {
		s.hopeless.add(h.number)
		return c.undo(ctx, nil)
	}
	if err == nil {
		err = c.verify(ctx)
	}
	if err != nil {
		if err = c.undo(ctx, err); !unusable(err) || ctx.Err() != nil {
			return err
		}
		res.Damaged++
		s.hopeless.add(h.number)
		s.log.Error("a pack cannot be made compact and stays as it is: verify the store", "pack", h.number, "err", err)
		return nil
	}
	if err := s.replace(ctx, h.packFile); err != nil {
		return err
	}
	res.Packs++
	res.BeforeBytes += h.info.Occupied
	now, err := s.occupied(ctx, c.file.name())
	res.AfterBytes += now
	return err
}

// replace removes the file that a session wrote, and with it its rest. Whoever reads it can go on until it is closed.
func (s *Store) replace(ctx context.Context, f packFile) error {
	if err := s.b.Remove(ctx, f.name()); err != nil {
		return err
	}
	s.packs.forget(f.packKey)
	err := s.b.Remove(ctx, f.rest())
	s.dirs.Invalidate(f.number)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// occupied returns what objects take, none for those that are not there.
func (s *Store) occupied(ctx context.Context, names ...string) (n int64, err error) {
	for _, name := range names {
		infos, err := s.b.List(ctx, name)
		if err != nil {
			return 0, err
		}
		for _, i := range infos {
			if i.Name == name {
				n += i.Occupied
			}
		}
	}
	return n, nil
}

// hopeless are packs that need not be tried again before the store is next opened.
type hopeless struct {
	mu    sync.Mutex
	packs map[uint32]bool
}

func (h *hopeless) has(number uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.packs[number]
}

func (h *hopeless) add(number uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.packs == nil {
		h.packs = map[uint32]bool{}
	}
	h.packs[number] = true
}

// compaction is one pack being written anew.
type compaction struct {
	s    *Store
	old  *pack.Reader
	dir  []pack.DirEntry
	file packFile
	w    *pack.Writer // nil: nothing was begun, or it is sealed
	made bool
	size int64
}

// moving is a chunk on its way to the new file.
type moving struct {
	entry  pack.DirEntry
	packed chan pack.Compressed
}

// write writes the new file and seals it: chunks are read and compressed side by side, and appended in their order.
func (c *compaction) write(ctx context.Context, workers int) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	order, work := make(chan moving, workers), make(chan moving)
	g.Go(func() error {
		defer close(order)
		defer close(work)
		return c.hand(ctx, order, work)
	})
	for range workers {
		g.Go(func() error { return c.compress(work) })
	}
	g.Go(func() error { return c.move(ctx, order) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := c.w.Seal(); err != nil {
		return err
	}
	c.size, c.w = c.w.Size(), nil
	return nil
}

// hand gives every chunk to who appends and to who compresses.
func (c *compaction) hand(ctx context.Context, order, work chan<- moving) error {
	for _, e := range c.dir {
		m := moving{e, make(chan pack.Compressed, 1)}
		for _, to := range [...]chan<- moving{order, work} {
			select {
			case to <- m:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

func (c *compaction) compress(work <-chan moving) error {
	plain := make([]byte, 0, chunk.MaxSize)
	for m := range work {
		var err error
		if plain, err = c.read(m.entry, plain[:0]); err != nil {
			return err
		}
		m.packed <- pack.CompressBest(plain)
	}
	return nil
}

func (c *compaction) move(ctx context.Context, order <-chan moving) error {
	for m := range order {
		select {
		case p := <-m.packed:
			err := c.w.Move(m.entry.Digest, p, m.entry.Place)
			p.Release()
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// read returns a chunk of the old file, and has it named again: what is damaged must not get a new signature.
func (c *compaction) read(e pack.DirEntry, to []byte) ([]byte, error) {
	plain, _, err := c.old.ReadChunk(e.Place, e.Digest.ID(), to)
	if err != nil {
		return nil, damage("read chunk", e.Digest.ID(), err)
	}
	return plain, c.s.checkContent(pack.Data, e.Digest, plain)
}

func (c *compaction) begin(ctx context.Context) error {
	name := c.file.name()
	a, err := c.s.b.Append(ctx, name)
	if errs.Is(err, errs.Exists) { // of a compaction that could not undo what it had begun
		if err := c.s.b.Remove(ctx, name); err != nil {
			return err
		}
		a, err = c.s.b.Append(ctx, name)
	}
	if err != nil {
		return err
	}
	c.made = true
	w, err := pack.NewWriter(a, pack.WriterOptions{
		Kind: c.file.kind, StoreUUID: [16]byte(c.s.super.UUID), PackUUID: [16]byte(NewUUID()), Number: c.file.number,
		Master: c.s.key, Created: c.old.Header().Created, Compact: true, Name: name,
	})
	if err != nil {
		_ = a.Close()
		return err
	}
	c.w = w
	return nil
}

// verify reads the new file back: it holds the chunks that the old one has left, in their order, and each is what it is
// named after.
func (c *compaction) verify(ctx context.Context) error {
	p, err := c.s.openFile(ctx, c.file)
	if err != nil {
		return err
	}
	defer p.Close()
	n := 0
	err = p.Scrub(func(e pack.DirEntry, plain []byte, err error) error {
		if err != nil {
			return err
		}
		if n >= len(c.dir) || e.Digest != c.dir[n].Digest || e.Place != c.dir[n].Place {
			return errs.Text("verify compact pack", c.file.name(), errs.Corrupt, fmt.Sprintf("its chunk %d is another one than was written", n))
		}
		n++
		if err := c.s.checkContent(pack.Data, e.Digest, plain); err != nil {
			return err
		}
		return ctx.Err()
	})
	if err == nil && n != len(c.dir) {
		err = errs.Text("verify compact pack", c.file.name(), errs.Corrupt, fmt.Sprintf("it has %d of %d chunks", n, len(c.dir)))
	}
	return err
}

// undo takes away what was begun and returns cause. What cannot be taken away is harmless, and goes when the store is
// opened.
func (c *compaction) undo(ctx context.Context, cause error) error {
	if c.w != nil {
		_ = c.w.Abort()
	}
	if !c.made {
		return cause
	}
	if err := c.s.b.Remove(context.WithoutCancel(ctx), c.file.name()); err != nil {
		c.s.log.Warn("a compact pack that is not wanted cannot be removed", "name", c.file.name(), "err", err)
	}
	return cause
}
