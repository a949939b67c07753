package collect

import (
	"context"
	"log/slog"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Kind says what a pack holds.
type Kind uint8

// The kinds of packs.
const (
	Data  Kind = iota + 1 // chunks of disks
	Pages                 // pages of manifests
)

// String returns the kind's name for people.
func (k Kind) String() string {
	if k == Pages {
		return "pages"
	}
	return "data"
}

// Chunk is a chunk or a page as a directory knows it.
type Chunk struct {
	ID    chunk.ID
	Place chunk.Place // where manifests say it is
	Lies  chunk.Place // where it is in the file
}

// Pack is a sealed pack.
type Pack struct {
	Kind     Kind
	Number   uint32
	Size     int64 // of the file, in bytes
	Occupied int64 // bytes that it takes on its disk, with its rest
	HasRest  bool  // space of it was given back before
	Compact  bool  // it was written anew, without gaps
}

// Needed is a place that is read in place of one that a manifest names: there the content of a damaged chunk or page
// lies again.
type Needed struct {
	Kind  Kind
	Place chunk.Place
}

// Roots is what a walk begins at.
type Roots struct {
	Disks []manifest.Root // of all points, and of those in Held
	Also  []Needed        // what no manifest names, and is read all the same
	Held  []string        // points that were removed, and are kept because somebody reads them
	Spent []string        // points that were removed, and that nobody can read any more
}

// Points knows what is needed.
type Points interface {
	manifest.Source
	// Roots lists the points. None is removed while it does; one that a session has as its parent is in the list, or
	// what the session has committed is.
	Roots(ctx context.Context) (Roots, error)
	// Drop forgets removed points.
	Drop(ctx context.Context, spent []string) error
}

// Sessions are the backups that run.
type Sessions interface {
	// Drain waits until all sessions have ended that run when it is called. waiting is told how many are left.
	Drain(ctx context.Context, waiting func(int)) error
}

// Packs are the files.
type Packs interface {
	// List returns the sealed packs that no session which runs, or will begin, can have written.
	List(ctx context.Context) ([]Pack, error)
	// Directory returns the chunks that are left of a pack, in the order in which they lie in it.
	Directory(ctx context.Context, p Pack) ([]Chunk, error)
}

// Space gives back.
type Space interface {
	// CanShrink fails with errs.Unsupported if Shrink would free nothing.
	CanShrink(ctx context.Context, p Pack) error
	// Gain says about how many bytes on the disk Shrink would free, in how many holes, of a pack that has all.
	Gain(p Pack, all, left []Chunk) (n int64, holes int)
	// Shrink makes left all that is known of a pack, durably, and then gives back the gaps. It returns bytes on the disk.
	Shrink(ctx context.Context, p Pack, left []Chunk) (freed int64, holes int, err error)
	// Remove removes a pack.
	Remove(ctx context.Context, p Pack) (freed int64, err error)
}

// Index is the index of chunks. All is durable when it returns.
type Index interface {
	// Forget takes the mark of a pack away, and forgets those of the chunks that the index places in it.
	Forget(number uint32, ids []chunk.ID) error
	// Learn puts chunks of a pack, and then marks it as known with all the chunks it has left.
	Learn(number uint32, chunks []Chunk, left int) error
}

// Journal says what a collection may have begun to give back, for when it is cut short.
type Journal interface {
	// Unfinished returns what the collection before had intended, if it did not come to its end.
	Unfinished() []Pack
	// Intend writes down, durably, what will be given back next: at most intention packs, in place of what was intended
	// before.
	Intend(ctx context.Context, packs []Pack) error
	// End writes down that all of it was done.
	End(ctx context.Context) error
}

// intention bounds what a collection intends to give back at a time.
const intention = 256

// Store is what a collection works on.
type Store struct {
	Points   Points
	Sessions Sessions
	Packs    Packs
	Space    Space
	Index    Index
	Journal  Journal
}

// Stage is a step of a collection, as people see it.
type Stage string

// The stages, in their order. A dry run ends after the second.
const (
	Reaching   Stage = "finding what points need"
	Choosing   Stage = "choosing what to give back"
	Draining   Stage = "waiting for backups that run"
	Reaching2  Stage = "looking at new points"
	GivingBack Stage = "giving space back"
)

// Progress is told often.
type Progress struct {
	Stage       Stage
	Done, Total int // disks, packs; in Draining the sessions that are left are Total
	Result      *Result
}

// Options of a collection.
type Options struct {
	DryRun   bool           // only say what would be given back
	Progress func(Progress) // may be nil
	Logger   *slog.Logger   // nil: silent
	Least    int64          // bytes a pack has to give back for holes to be made in it; default 32 KiB
}

// least is the default of Options.Least: less is not worth the syncs.
const least = 32 << 10

// Result says what was given back, or would be. Bytes are those on the disk.
type Result struct {
	FreedBytes     int64
	WholeBytes     int64 // of them, by removing data packs
	HoleBytes      int64 // by holes in data packs
	PageBytes      int64 // of manifests, both ways
	Chunks         int64 // given back
	Pages          int64
	KeptChunks     int64 // that points need
	KeptPages      int64
	SpareChunks    int64 // not needed, and not given back: in blocks or packs that are not worth it
	SpareBytes     int64 // as stored, of those
	PacksRemoved   int
	PacksShrunk    int
	Holes          int
	PacksSkipped   int      // whose directory cannot be used, or on a disk that makes no holes
	Reused         int64    // chunks that a backup built on at the last moment
	WaitedSessions int      // that had to end first
	Held           []string // removed points that somebody still reads
}

// collection is one run.
type collection struct {
	Store
	o       Options
	res     *Result
	packs   []Pack
	before  reached // what was reached at first
	after   reached // what was reached later, and not before
	also    reached // what is needed and no manifest names; a page that is in it was not walked by that
	spent   []string
	targets []Pack
	doomed  map[uint32]bool // data packs among targets
	unended map[Pack]bool   // targets of the collection before; by kind and number only
}

// Run runs a collection. After an error what was given back until then is in the result; errs.Canceled and most others
// leave work to the next collection, and nothing else.
func Run(ctx context.Context, s Store, o Options) (*Result, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Least <= 0 {
		o.Least = least
	}
	c := &collection{Store: s, o: o, res: &Result{}, before: newReached(), after: newReached(), also: newReached(), unended: map[Pack]bool{}}
	return c.res, errs.Wrap("collect", "", c.run(ctx))
}

func (c *collection) run(ctx context.Context) error {
	for _, p := range c.Journal.Unfinished() {
		c.unended[Pack{Kind: p.Kind, Number: p.Number}] = true
	}
	var err error
	if c.packs, err = c.Packs.List(ctx); err != nil {
		return err
	}
	if err := c.reach(ctx, Reaching, &c.before, nil); err != nil {
		return err
	}
	if err := c.choose(ctx); err != nil || c.o.DryRun {
		return err
	}
	if len(c.targets) > 0 {
		if err := c.drain(ctx); err != nil {
			return err
		}
		if err := c.giveBack(ctx); err != nil {
			return err
		}
	}
	if err := c.Points.Drop(ctx, c.spent); err != nil {
		return err
	}
	return c.Journal.End(ctx)
}

func (c *collection) tell(stage Stage, done, total int) {
	if c.o.Progress != nil {
		c.o.Progress(Progress{stage, done, total, c.res})
	}
}

// reach walks the manifests of all points. What is in except was walked before.
func (c *collection) reach(ctx context.Context, stage Stage, into, except *reached) error {
	roots, err := c.Points.Roots(ctx)
	if err != nil {
		return err
	}
	c.res.Held, c.spent = roots.Held, roots.Spent
	for i, root := range roots.Disks {
		c.tell(stage, i, len(roots.Disks))
		if err := into.walk(ctx, manifest.NewTree(root, c.Points), except); err != nil {
			return err
		}
	}
	for _, n := range roots.Also {
		c.also.of(n.Kind).add(n.Place)
	}
	c.tell(stage, len(roots.Disks), len(roots.Disks))
	return nil
}

// drain waits for everybody who may have found what is spare now, and looks at what they have built on it.
func (c *collection) drain(ctx context.Context) error {
	first := true
	err := c.Sessions.Drain(ctx, func(n int) {
		if first {
			c.res.WaitedSessions, first = n, false
		}
		c.tell(Draining, 0, n)
	})
	if err != nil {
		return err
	}
	return c.reach(ctx, Reaching2, &c.after, &c.before)
}
