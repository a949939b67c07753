// Package storebench measures the chunk store beside programs that people know, on disks of real Debian servers, in one
// run: what `make bench-store` prints.
//
// Terms. A *program* keeps disks in a folder of its own and gives them back: holdfast, or a *peer*: restic, borg in three
// settings, casync. A *task* is one thing that each of them does. A *round* is the life of the disks: each kept for the
// first time, kept again unchanged, kept with a tenth of the data rewritten, given back. Within a round the programs take
// turns at every task, and who begins changes from round to round, so that what else the machine does meets all of them.
// A row of the table is one task done by one program, as the median of the rounds; where there are several disks, the row
// is their sum, and every disk has rows of its own for the first backup.
//
// Programs are measured from outside, as whole processes (internal/lab/measure), with the page cache dropped before each.
// What cannot be seen from outside, such as the cost of one read, is measured by the Go benchmarks of chunkstore, whose
// built test program is run here and read.
//
// The best peer is looked for anew in every row, whatever it costs elsewhere: the one that takes the least time is mostly
// not the one that takes the least space. Targets (targets.go) are held against it.
//
// Nobody is helped or hindered: every peer has the encryption and the compression that its users have, and raw images are
// handed to it as its manual advises (peers.go says how, and why).
//
// Tests: units here; the whole of it on a small disk behind HOLDFAST_REAL_PARTS=1.
package storebench

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

// Image is a disk to be stored: a raw image, which is copied.
type Image struct {
	Name string
	Raw  string
}

// Options says what is measured.
type Options struct {
	BinDir  string // where the holdfast program lies, and the benchmarks as chunkstore.test
	WorkDir string // an empty folder; takes about seven times the disks' data, and the size of one disk
	Images  []Image
	Rounds  int
	Few     bool      // one round also of the slow peers, and few requests: the figures are rough
	Log     io.Writer // is told what happens, a line at a time; may be nil
}

// needed is what a run is made of, beside holdfast.
var needed = []parts.Part{
	{Path: "restic", Package: "restic"},
	{Path: "borg", Package: "borgbackup"},
	{Path: "casync", Package: "casync"},
}

// bed is one run: where things lie and what was measured so far.
type bed struct {
	opts    Options
	bin     string // the holdfast program
	disks   []disk
	results results
	figures []Figure
	dropped error // why the page cache could not be dropped
	floor   int64 // the peak of this process when the last program was measured
}

// disk is one disk as the programs see it: a file that stays at its path, whatever its content.
type disk struct {
	name    string
	path    string
	base    string // the content at first, while path has the other
	changed string // the content with a part rewritten, while path has the first
}

// changedPercent is how much of a disk's data is rewritten.
const changedPercent = 10

// Run measures everything and returns the figures.
func Run(ctx context.Context, opts Options) (*Report, error) {
	if err := parts.Need(needed); err != nil {
		return nil, err
	}
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	b, err := newBed(opts)
	if err != nil {
		return nil, err
	}
	report, err := b.describe(ctx)
	if err != nil {
		return nil, errs.Wrap("measure", "", err)
	}
	for _, section := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"make the disks", b.makeDisks}, {"backup and restore", b.rounds}, {"the store from inside", b.inside},
	} {
		began := time.Now()
		if err := section.run(ctx); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, errs.Wrap("measure", section.name, err)
		}
		b.say("%s: %.0f s", section.name, time.Since(began).Seconds())
	}
	return b.finish(report)
}

func newBed(opts Options) (*bed, error) {
	for _, dir := range []*string{&opts.WorkDir, &opts.BinDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, errs.Wrap("find", *dir, err)
		}
		*dir = abs
	}
	b := &bed{opts: opts, bin: filepath.Join(opts.BinDir, ours)}
	for _, p := range []string{b.bin, b.benchProgram()} {
		if _, err := os.Stat(p); err != nil {
			return nil, errs.New("find", p, errs.KindOf(err), err).WithNext("Run `make bench-store`, which builds it.")
		}
	}
	if len(opts.Images) == 0 || opts.Rounds < 1 {
		return nil, errs.Text("measure", "", errs.Invalid, "there must be a disk and a round")
	}
	return b, os.WriteFile(b.path("passphrase"), []byte("a passphrase for the lab only\n"), 0o600)
}

func (b *bed) path(name string) string { return filepath.Join(b.opts.WorkDir, name) }

func (b *bed) say(format string, args ...any) { fmt.Fprintf(b.opts.Log, format+"\n", args...) }

// makeDisks copies every disk twice, and rewrites a part of one of the copies.
func (b *bed) makeDisks(ctx context.Context) error {
	if err := os.Mkdir(b.path("source"), 0o700); err != nil {
		return err
	}
	for i, image := range b.opts.Images {
		d := disk{name: image.Name, path: b.path("source/" + image.Name + ".raw"), base: b.path(image.Name + ".base"),
			changed: b.path(image.Name + ".changed")}
		for _, to := range []string{d.path, d.changed} {
			if err := measure.CopySparse(ctx, image.Raw, to); err != nil {
				return err
			}
		}
		if err := rewrite(d.changed, changedPercent, uint64(i)+1); err != nil {
			return errs.Wrap("rewrite a part of", d.changed, err)
		}
		b.disks = append(b.disks, d)
	}
	return nil
}

// run measures one program, from a cold page cache.
func (b *bed) run(ctx context.Context, s measure.Spec) (measure.Usage, error) {
	s.Dir = b.opts.WorkDir
	if err := measure.DropCaches(); err != nil && b.dropped == nil {
		b.dropped = err
		b.say("The page cache cannot be dropped: %v", err)
	}
	return measure.Run(ctx, s)
}

// turns returns the order of n programs in a round.
func turns(n, round int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = (i + round) % n
	}
	return order
}
