package chunkstore

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/backend/local"
	"github.com/holdfast-backup/holdfast/chunkstore/cut"
	"github.com/holdfast-backup/holdfast/chunkstore/index"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
	"github.com/holdfast-backup/holdfast/chunkstore/retention"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Options for Create, Open and OpenReader. The zero value of every field but Unlock is right for use.
type Options struct {
	Unlock     Unlock
	Disk       disk.Disk // nil: the real one
	IndexDir   string    // default: "index" in the store. Always on the real disk
	CacheBytes int64     // of decoded frames; default 64 MiB
	PackSize   int64     // bytes at which a pack is sealed; default 64 MiB
	Cutter     string    // of a store that Create makes: one of Cutters; default the first
	// Digest and Compression of a store that Create makes: one of Digests, one of Compressions; default the first of each.
	Digest, Compression string
	ReadClocks          func() (retention.Reading, error) // default retention.Read
	Logger              *slog.Logger                      // nil: silent
	// KeyFile, if not nil, is the content of a key file, keys.FileSize bytes, that is to open the store that Create makes.
	KeyFile []byte
	// KeepKit, if not nil, is given the recovery kit by Create before there is a store that needs it. An error ends
	// Create without a store.
	KeepKit func(kit []byte) error

	// backend, if not nil, is where the objects lie instead of the folder, which keeps the lock only. There is none but
	// the folder to choose yet.
	backend backend.Backend
}

// at returns where the objects of the store in dir lie.
func (o *Options) at(dir string) backend.Backend {
	if o.backend != nil {
		return o.backend
	}
	return local.New(o.Disk, dir)
}

func (o *Options) complete(dir string) {
	if o.Disk == nil {
		o.Disk = disk.OS{}
	}
	if o.IndexDir == "" {
		o.IndexDir = filepath.Join(dir, "index")
	}
	if o.PackSize <= 0 {
		o.PackSize = pack.TargetSize
	}
	if o.ReadClocks == nil {
		o.ReadClocks = retention.Read
	}
	if o.Cutter == "" {
		o.Cutter = cut.Default
	}
	if o.Digest == "" {
		o.Digest = Digests()[0]
	}
	if o.Compression == "" {
		o.Compression = Compressions()[0]
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Created is what Create made.
type Created struct {
	Superblock Superblock
	Kit        []byte // the recovery kit's text: to be kept away from the store; it opens everything
}

// Create makes a store in dir, which must be empty or not exist, with a new master key wrapped by passphrase, by
// Options.KeyFile, or by both. The passphrase may be empty if there is a key file.
func Create(ctx context.Context, dir string, passphrase []byte, work int, o Options) (*Created, error) {
	o.complete(dir)
	fail := func(err error) (*Created, error) { return nil, errs.Wrap("make store", dir, err) }
	if err := o.checkNew(passphrase); err != nil {
		return fail(err)
	}
	if err := o.Disk.MkdirAll(dir); err != nil {
		return fail(err)
	}
	// Look before locking: a lock file in a folder that is something else would be litter.
	if err := vacant(o.Disk, dir, true); err != nil {
		return fail(err)
	}
	lock, err := lockStore(o.Disk, dir)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if err := vacant(o.Disk, dir, false); err != nil {
		return fail(err)
	}
	key, err := keys.New()
	if err != nil {
		return fail(err)
	}
	var first []Secret
	if len(passphrase) > 0 {
		first = append(first, Secret{Passphrase: passphrase, Work: work})
	}
	if o.KeyFile != nil {
		first = append(first, Secret{KeyFile: o.KeyFile})
	}
	id := key.ID()
	s := Superblock{
		Format: storeFormat, Version: storeVersion, UUID: NewUUID(), Created: time.Now().UTC().Truncate(time.Second),
		KeyID: hex.EncodeToString(id[:]), Digest: o.Digest, Cutter: o.Cutter, Compression: o.Compression,
	}
	raw, err := s.encode(key)
	if err != nil {
		return fail(err)
	}
	b := o.at(dir)
	// The key first: a superblock is the sign that the store is whole. A key without one is a leftover of a Create
	// that was killed, and is replaced.
	if err := writeFirstKeys(ctx, b, key, first); err != nil {
		return fail(err)
	}
	kit := keys.FormatKit(key, [16]byte(s.UUID), s.Created)
	if o.KeepKit != nil {
		if err := o.KeepKit(kit); err != nil {
			return fail(err)
		}
	}
	if err := b.Put(ctx, superblockName, raw); err != nil {
		// If only the last sync failed, the superblock is there: a store whose recovery kit nobody has seen.
		_ = b.Remove(context.WithoutCancel(ctx), superblockName)
		return fail(err)
	}
	return &Created{s, kit}, nil
}

// Cutters lists the ways in which a store can cut disks, by the names that Options.Cutter takes, the default first.
func Cutters() []string { return cut.Names() }

// checkNew looks at what a new store is to be.
func (o *Options) checkNew(passphrase []byte) error {
	if len(passphrase) == 0 && o.KeyFile == nil {
		return errs.Text("wrap key", "", errs.Invalid, "the passphrase is empty")
	}
	for _, c := range []struct {
		what, name string
		known      []string
	}{
		{"cutter", o.Cutter, Cutters()}, {"digest", o.Digest, Digests()}, {"compression", o.Compression, Compressions()},
	} {
		if !slices.Contains(c.known, c.name) {
			return errs.Text("choose "+c.what, c.name, errs.Invalid, "there is none of that name").
				WithNext("There are: " + strings.Join(c.known, ", ") + ".")
		}
	}
	return nil
}

// writeFirstKeys writes the wrapped keys of a new store, and takes away those of a Create that was cut short.
func writeFirstKeys(ctx context.Context, b backend.Backend, key keys.Master, first []Secret) error {
	for _, old := range []string{keyObject(firstPhrase, keys.ByPassphrase), keyObject(firstFile, keys.ByFile)} {
		if err := b.Remove(ctx, old); err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
	}
	for _, s := range first {
		blob, form, err := s.wrap(key)
		if err != nil {
			return err
		}
		name := firstPhrase
		if form == keys.ByFile {
			name = firstFile
		}
		if err := b.Put(ctx, keyObject(name, form), blob); err != nil {
			return err
		}
	}
	return nil
}

// vacant fails if a store cannot be made in dir: it may hold only what a Create that was cut short leaves behind, and,
// if orStore, a whole store, about which the lock is asked first.
func vacant(d disk.Disk, dir string, orStore bool) error {
	entries, err := d.ReadDir(dir)
	if err != nil {
		return err
	}
	stranger := ""
	for _, e := range entries {
		switch e.Name() {
		case superblockName:
			if orStore {
				return nil
			}
			return errs.Text("use folder", dir, errs.Exists, "there is a store in it already").
				WithNext("Use it as it is, or choose another folder.")
		case lockName, path.Clean(keyPrefix), superblockName + disk.TempSuffix, "lost+found":
		default:
			stranger = e.Name()
		}
	}
	if stranger != "" {
		return errs.Text("use folder", dir, errs.Exists, "it is not empty: it holds "+stranger).
			WithNext("Choose an empty folder, or one that does not exist yet.")
	}
	return nil
}

// Peek reads what can be read of a store without its key.
func Peek(ctx context.Context, dir string, o Options) (Superblock, error) {
	o.complete(dir)
	return readSuperblock(ctx, o.at(dir), dir)
}

// OpenReader opens a store for reading.
func OpenReader(ctx context.Context, dir string, o Options) (*Reader, error) {
	o.complete(dir)
	b := o.at(dir)
	super, err := readSuperblock(ctx, b, dir)
	if err != nil {
		return nil, err
	}
	wrapped, err := readKeys(ctx, b, super.KeyID)
	if err != nil {
		return nil, errs.Wrap("open store", dir, err)
	}
	key, name, err := o.Unlock(wrapped, super.UUID)
	if err != nil {
		return nil, errs.Wrap("open store", dir, err)
	}
	if err := super.check(key); err != nil {
		return nil, errs.Wrap("open store", dir, err)
	}
	r, err := newReader(dir, b, super, key, o)
	if err == nil {
		r.d, r.openedBy = o.Disk, name
		if _, real := o.Disk.(disk.OS); real {
			r.indexDir = o.IndexDir
		}
	}
	return r, err
}

// Store is a store open for writing: one process at a time. It reads as a Reader does.
type Store struct {
	*Reader
	lock       *storeLock
	index      *index.Index
	indexDir   string
	log        *slog.Logger
	codec      pack.Codec
	cutter     cut.Cutter
	dirs       *directories
	packSize   int64
	readClocks func() (retention.Reading, error)
	retain     sync.Mutex // held while locks, clock and removals of points are worked on, and a collection lists points
	opened     uint32     // the highest pack number when the store was opened
	wanted     wanted
	scrubbing
	collection
	mu       sync.Mutex          // guards the rest
	last     uint32              // the highest pack number ever given out
	sessions map[*Session]uint32 // those that have not ended, and what last was when they began
}

// Open opens a store for writing, finishes what a killed writer left, and brings the index up to date. errs.Busy names
// the process that has it open already.
func Open(ctx context.Context, dir string, o Options) (*Store, error) {
	o.complete(dir)
	// Look before locking: a lock file in a folder that is no store would be litter.
	if _, err := readSuperblock(ctx, o.at(dir), dir); err != nil {
		return nil, err
	}
	lock, err := lockStore(o.Disk, dir)
	if err != nil {
		return nil, errs.Wrap("open store", dir, err)
	}
	r, err := OpenReader(ctx, dir, o)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	s := &Store{Reader: r, lock: lock, log: o.Logger, indexDir: o.IndexDir, packSize: o.PackSize,
		readClocks: o.ReadClocks, sessions: map[*Session]uint32{}}
	if s.cutter, err = cut.ByName(r.super.Cutter); err == nil {
		s.codec, err = codecByName(r.super.Compression)
	}
	if err == nil {
		s.dirs, err = newDirectories()
	}
	if err == nil {
		err = s.openIndex()
	}
	if err == nil {
		err = s.recover(ctx)
	}
	if err == nil {
		s.damage.found = s.shun
		err = s.readQuarantine(ctx)
	}
	if err == nil {
		s.lookAtClock(ctx)
	}
	if err != nil {
		_ = s.Close()
		return nil, errs.Wrap("open store", dir, err)
	}
	return s, nil
}

// Close closes the store. Sessions must have ended.
func (s *Store) Close() error {
	var err error
	if s.index != nil {
		err = s.index.Close()
	}
	return errors.Join(err, s.Reader.Close(), s.lock.Close())
}

// IndexBytes returns the bytes that the index takes on its disk.
func (s *Store) IndexBytes() (int64, error) { return s.index.Size() }

// nextPack gives out a pack number.
func (s *Store) nextPack() (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == math.MaxUint32 {
		return 0, errs.Text("begin pack", "", errs.NoSpace, "the store has given out all pack numbers")
	}
	s.last++
	return s.last, nil
}
