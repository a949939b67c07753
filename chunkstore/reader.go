package chunkstore

import (
	"container/list"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"

	"github.com/maypok86/otter/v2"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/quarantine"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Reader reads a store: any number of processes may, at any time, beside one writer. It needs neither index nor lock:
// point records and the places in manifests are enough. It is used by any number of goroutines.
type Reader struct {
	dir       string
	b         backend.Backend
	super     Superblock
	key       keys.Master
	d         disk.Disk // where dir lies; for the lock of changeKeys
	openedBy  string    // see OpenedBy
	indexDir  string    // where the index lies; "" if the store is not on the real disk
	digestKey [32]byte
	namers    sync.Pool // of namer
	leases    leases
	packs     packCache
	frames    *otter.Cache[frameKey, []byte]
	pages     *otter.Cache[pageKey, []byte]
	damage    damageLog
	fetchers  chan struct{} // held by those who read ahead
}

// frameKey names a decoded frame. Disks that share a chunk share its place, and so what is in the cache. The place is
// part of the name because a chunk can lie at two: after damage to one, the other is stored, and must not fail with it.
type frameKey struct {
	id    chunk.ID
	place chunk.Place
	frame uint8
}

// pageKey names a page with the places in it: two pages with one ID tell of the same chunks, but may say that they lie
// in different packs.
type pageKey struct {
	id    chunk.ID
	place chunk.Place
}

// Defaults of the caches, in bytes.
const (
	defaultCacheBytes = 64 << 20
	pageCacheBytes    = 16 << 20
	openPacks         = 128
)

func newReader(dir string, b backend.Backend, super Superblock, key keys.Master, o Options) (*Reader, error) {
	r := &Reader{dir: dir, b: b, super: super, key: key, digestKey: key.DigestKey()}
	r.namers.New = func() any { return newNamer(super.Digest, r.digestKey) }
	r.damage = damageLog{r: r, log: o.Logger, held: map[packKey]*quarantine.Record{}, sums: map[packKey]uint32{}, known: map[packKey]int64{}}
	r.fetchers = make(chan struct{}, min(runtime.GOMAXPROCS(0), maxParts))
	r.packs = packCache{r: r, open: map[packKey]*list.Element{}, order: list.New()}
	r.leases = leases{log: o.Logger, seen: r.seePoint, held: map[PointID]*lease{}}
	if _, real := o.Disk.(disk.OS); real {
		r.leases.file = filepath.Join(dir, superblockName)
	}
	cacheBytes := o.CacheBytes
	if cacheBytes <= 0 {
		cacheBytes = defaultCacheBytes
	}
	var err error
	if r.frames, err = newCache[frameKey](cacheBytes); err != nil {
		return nil, err
	}
	r.pages, err = newCache[pageKey](pageCacheBytes)
	return r, err
}

// newCache returns a cache of byte slices bounded by their total length.
func newCache[K comparable](limit int64) (*otter.Cache[K, []byte], error) {
	c, err := otter.New(&otter.Options[K, []byte]{
		MaximumWeight: uint64(limit),
		Weigher:       func(_ K, v []byte) uint32 { return uint32(cap(v)) + 64 },
	})
	return c, errs.Wrap("make cache", "", err)
}

// Superblock returns what the store is.
func (r *Reader) Superblock() Superblock { return r.super }

// Dir returns the store's folder.
func (r *Reader) Dir() string { return r.dir }

// Close releases what the reader holds open. Images must not be used afterwards.
func (r *Reader) Close() error {
	r.packs.close()
	r.frames.InvalidateAll()
	r.pages.InvalidateAll()
	return errs.Wrap("close store", r.dir, r.leases.close())
}

// Points returns all restore points, oldest first. A record that cannot be read is reported beside the others: one
// damaged point must not hide the rest.
func (r *Reader) Points(ctx context.Context) ([]*Point, []error) {
	infos, err := r.b.List(ctx, pointPrefix)
	if err != nil {
		return nil, []error{errs.Wrap("list points", r.dir, err)}
	}
	var out []*Point
	var bad []error
	for _, i := range infos {
		p, err := r.Point(ctx, PointID(strings.TrimPrefix(i.Name, pointPrefix)))
		switch {
		case err == nil:
			out = append(out, p)
		case errs.Is(err, errs.NotFound): // removed meanwhile
		default:
			bad = append(bad, err)
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		if !out[i].Time.Equal(out[j].Time) {
			return out[i].Time.Before(out[j].Time)
		}
		return out[i].ID < out[j].ID
	})
	return out, bad
}

// Point reads one record.
func (r *Reader) Point(ctx context.Context, id PointID) (*Point, error) {
	if !id.Valid() {
		return nil, errs.Text("read point", string(id), errs.Invalid, "a point's ID is 16 lower-case hexadecimal digits")
	}
	b, err := readObject(ctx, r.b, pointName(id), pointMaxSize)
	if err != nil {
		return nil, errs.Wrap("read point", string(id), err)
	}
	return decodePoint(r.key.PointKey(), id, b)
}

// Image returns a disk of a point as a readable image. From its first read on it holds a lease on the point, for as long
// as anybody can use it: reads go on when the point is removed. An image that was not read by then answers errs.Stale.
func (r *Reader) Image(p *Point, number int) (*Image, error) {
	d, err := p.Disk(number)
	if err != nil {
		return nil, err
	}
	m := r.image(d)
	m.lease = &imageLease{l: &r.leases, id: p.ID}
	runtime.AddCleanup(m, (*imageLease).release, m.lease)
	return m, nil
}

// image returns an image that holds no lease.
func (r *Reader) image(d Disk) *Image { return &Image{r: r, disk: d, tree: r.tree(d)} }

func (r *Reader) tree(d Disk) *manifest.Tree { return manifest.NewTree(d.Root, r) }

// Page implements manifest.Source.
func (r *Reader) Page(ctx context.Context, ref manifest.Ref) ([]byte, error) {
	key := pageKey{ref.ID, ref.Place}
	if page, ok := r.pages.GetIfPresent(key); ok {
		return page, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The loader serves all who wait for the page: one caller's cancellation must not fail the others.
	return r.pages.Get(context.WithoutCancel(ctx), key, otter.LoaderFunc[pageKey, []byte](
		func(ctx context.Context, k pageKey) ([]byte, error) {
			page, err := r.rawPage(ctx, k.id, k.place)
			if err == nil {
				err = manifest.Check(page)
			}
			return page, damage("read manifest page", k.id, err)
		}))
}

// frame returns a decoded frame of a chunk. The caller does not change it.
func (r *Reader) frame(ctx context.Context, id chunk.ID, at chunk.Place, frame int) ([]byte, error) {
	key := frameKey{id, at, uint8(frame)}
	if f, ok := r.frames.GetIfPresent(key); ok {
		return f, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return r.frames.Get(context.WithoutCancel(ctx), key, otter.LoaderFunc[frameKey, []byte](
		func(ctx context.Context, k frameKey) ([]byte, error) {
			var data []byte
			read := func(at chunk.Place) error {
				err := r.packs.use(ctx, packKey{pack.Data, at.Pack}, func(p *pack.Reader) (err error) {
					data, err = p.ReadFrame(at, k.id, int(k.frame), nil)
					return err
				})
				return damage("read chunk", k.id, err)
			}
			err := r.elsewhere(ctx, Spot{pack.Data, k.id, k.place}, read(k.place), read)
			return data, err
		}))
}

// framePast reads a whole frame into p, past the cache: who reads a disk from end to end reads nothing twice, and would
// drive out what others read again. It tells whether it has; if not, frame does, or says why not.
func (r *Reader) framePast(ctx context.Context, e manifest.Entry, frame int, p []byte) bool {
	if f, ok := r.frames.GetIfPresent(frameKey{e.ID, e.Place, uint8(frame)}); ok {
		return copy(p, f) == len(p)
	}
	if ctx.Err() != nil {
		return false
	}
	err := r.packs.use(ctx, packKey{pack.Data, e.Place.Pack}, func(x *pack.Reader) error {
		out, err := x.ReadFrame(e.Place, e.ID, frame, p[:0:len(p)])
		if err == nil && len(out) != len(p) {
			return errs.Text("read chunk", e.ID.String(), errs.Corrupt, "the chunk has another length than its manifest says")
		}
		return err
	})
	return err == nil
}

// damage wraps a failure to read what a committed point refers to. Nothing moves chunks, so a place that holds
// something else, or nothing, is damage: as errs.Stale it would tell an NFS client that its file is gone.
func damage(op string, id chunk.ID, err error) error {
	if err != nil && (errs.Is(err, errs.Stale) || errs.Is(err, errs.Invalid)) {
		return errs.New(op, id.String(), errs.Corrupt, err)
	}
	return errs.Wrap(op, id.String(), err)
}

// packCache keeps the packs that were read last open.
type packCache struct {
	r     *Reader
	mu    sync.Mutex // guards the rest and openPack.users
	open  map[packKey]*list.Element
	order *list.List // of *openPack, last used in front
}

type openPack struct {
	key    packKey
	reader *pack.Reader
	users  int
	gone   bool // no longer in the cache; the last user closes it
}

// use calls f with an open pack.
func (c *packCache) use(ctx context.Context, key packKey, f func(*pack.Reader) error) error {
	p, err := c.get(ctx, key)
	if err != nil {
		return err
	}
	err = f(p.reader)
	c.put(p)
	return err
}

func (c *packCache) get(ctx context.Context, key packKey) (*openPack, error) {
	c.mu.Lock()
	if e, ok := c.open[key]; ok {
		c.order.MoveToFront(e)
		p := e.Value.(*openPack)
		p.users++
		c.mu.Unlock()
		return p, nil
	}
	c.mu.Unlock()
	p, err := c.load(ctx, key)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.open[key]; ok { // another goroutine was faster
		_ = p.reader.Close()
		q := e.Value.(*openPack)
		q.users++
		return q, nil
	}
	p.users = 1
	c.open[key] = c.order.PushFront(p)
	for c.order.Len() > openPacks {
		c.drop(c.order.Back())
	}
	return p, nil
}

func (c *packCache) load(ctx context.Context, key packKey) (*openPack, error) {
	r, err := c.r.openPack(ctx, key)
	if errs.Is(err, errs.NotFound) {
		return nil, errs.New("open pack", packName(key.kind, key.number), errs.Corrupt, err).
			WithNext("A file of the store is missing: put it back from a copy, or restore from another point.")
	}
	if err != nil {
		return nil, err
	}
	return &openPack{key: key, reader: r}, nil
}

func (c *packCache) put(p *openPack) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.users--; p.users == 0 && p.gone {
		_ = p.reader.Close()
	}
}

// drop takes a pack out of the cache. c.mu is held.
func (c *packCache) drop(e *list.Element) {
	p := c.order.Remove(e).(*openPack)
	delete(c.open, p.key)
	if p.gone = true; p.users == 0 {
		_ = p.reader.Close()
	}
}

// forget lets go of a pack that was removed.
func (c *packCache) forget(key packKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.open[key]; ok {
		c.drop(e)
	}
}

func (c *packCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.drop(c.order.Front())
	}
}

// DerivedKey returns a secret for a purpose outside the store that is the same in every process that opens it: for file
// handles that must outlive the server that made them, or for what is kept beside the store under the same passphrase.
func (r *Reader) DerivedKey(purpose string) [32]byte {
	sign := r.key.SignKey()
	h := hmac.New(sha256.New, sign[:])
	h.Write([]byte("holdfast derived key: " + purpose))
	return [32]byte(h.Sum(nil))
}
