// Package bench measures Holdfast as whole processes, beside programs that people know, in one run: what `make bench`
// prints.
//
// Terms. A *task* is one thing that is timed, such as the first import of a raw disk. A *program* does it: holdfast in
// one of its ways, or a *peer*: restic for import and export, nfs-ganesha for NFS, the exported file itself for FUSE.
// Each (task, program) is a *row*. A *round* measures every row once; within a round the programs take turns, and who
// begins changes from round to round, so that what else the machine does meets all of them. A row shows medians.
//
// Cold means: the program was started for this measurement and the page cache was dropped. Warm means: the same
// requests once more, right after. Reads are verified: of every sixteenth answer a sum is taken while the clock runs,
// and compared with the exported file when it has stopped.
//
// Figures come from the operating system: times and peaks of a program that ends from its rusage, those of a server
// from its process clock and its status file. Linux hands the peak of the starting process on to what it starts, so
// this process stays small and says how small (Report.FloorMiB).
//
// Everything runs in the network and mount namespace of netns.Enter; nfs-ganesha and rpcbind get a /run of their own
// there. Whatever was started has ended, and what was mounted is gone, when Run returns, also when ctx ended it. One
// run at a time in a process. Tests: units here; the whole of it in its quick form behind HOLDFAST_REAL_PARTS=1.
package bench

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

// sections are what can be measured alone.
var sections = []string{"archives", "nfs", "fuse"}

// Options says what is measured.
type Options struct {
	BinDir  string    // where the holdfast program lies
	WorkDir string    // an empty folder; takes about five times the disk's data and twice its size
	Disk    string    // a raw image, which is copied; empty: a small one is made up
	Only    string    // if set, of the sections only this one
	Quick   bool      // one round and few requests: shows that everything runs, says nothing about speed
	Log     io.Writer // is told what happens, a line at a time; may be nil
}

// needed is what a run is made of, beside holdfast.
var needed = []parts.Part{
	{Path: "restic", Package: "restic"},
	{Path: "ganesha.nfsd", Package: "nfs-ganesha"},
	{Path: "/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so", Package: "nfs-ganesha-vfs"},
	{Path: "rpcbind", Package: "rpcbind"},
	{Path: "qemu-img", Package: "qemu-utils"},
}

// effort is how much is measured.
type effort struct {
	rounds  int
	few     int // random reads one at a time
	many    int // random reads with several in flight
	maxMiB  int // sequential reads end here; 0: at the end of the data
	changes int // percent of the data that is rewritten
}

func effortOf(o Options) effort {
	if o.Quick {
		return effort{rounds: 1, few: 200, many: 400, maxMiB: 16, changes: 5}
	}
	return effort{rounds: 3, few: 3000, many: 12000, changes: 5}
}

// bed is one run: where things lie and what was measured so far.
type bed struct {
	opts    Options
	effort  effort
	bin     string // the holdfast program
	results results
	dropped error // why the page cache could not be dropped
	floor   int64 // the peak of this process when the last program was measured by its rusage

	base    string      // the disk, raw
	changed string      // the same, partly rewritten
	edited  string      // the same, rewritten elsewhere: for the qcow2 image
	file    string      // the disk as Holdfast exported it
	data    []byteRange // where file has data
	store   *holdfast   // a store with base as its only point
}

// Run measures everything and returns the figures.
func Run(ctx context.Context, opts Options) (*Report, error) {
	if err := parts.Need(parts.Mount, needed); err != nil {
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
		name, short string
		run         func(context.Context) error
	}{
		{"make the disks", "", b.makeDisks}, {"import and export", "archives", b.archives}, {"NFS", "nfs", b.nfs}, {"FUSE", "fuse", b.fuse},
	} {
		if section.short == "archives" && opts.Only != "" && opts.Only != section.short {
			section.name, section.run = "import", b.oneArchive
		} else if section.short != "" && opts.Only != "" && opts.Only != section.short {
			continue
		}
		began := time.Now()
		if err := section.run(ctx); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, errs.Wrap("measure", section.name, err)
		}
		b.say("%s: %.0f s", section.name, time.Since(began).Seconds())
	}
	b.finish(report)
	return report, nil
}

func newBed(opts Options) (*bed, error) {
	work, err := filepath.Abs(opts.WorkDir)
	if err != nil {
		return nil, errs.Wrap("find", opts.WorkDir, err)
	}
	bin, err := filepath.Abs(filepath.Join(opts.BinDir, "holdfast"))
	if err != nil {
		return nil, errs.Wrap("find", opts.BinDir, err)
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, errs.New("find", bin, errs.KindOf(err), err).WithNext("Run `make build` first.")
	}
	opts.WorkDir = work
	b := &bed{opts: opts, effort: effortOf(opts), bin: bin}
	return b, os.WriteFile(b.path("passphrase"), []byte("a passphrase for the lab only\n"), 0o600)
}

func (b *bed) path(name string) string { return filepath.Join(b.opts.WorkDir, name) }

func (b *bed) say(format string, args ...any) { fmt.Fprintf(b.opts.Log, format+"\n", args...) }

// spec says what program is measured.
type spec struct {
	args   []string
	env    []string
	stdout io.Writer
}

func (b *bed) measure(ctx context.Context, s spec) (sample, error) {
	used, err := measure.Run(ctx, measure.Spec{Args: s.args, Env: s.env, Dir: b.opts.WorkDir, Stdout: s.stdout})
	return sample{seconds: used.Seconds, cpu: used.CPU, peak: used.Peak}, err
}

// dropCaches empties the page cache, or notes why it cannot.
func (b *bed) dropCaches() {
	if err := measure.DropCaches(); err != nil && b.dropped == nil {
		b.dropped = err
		b.say("The page cache cannot be dropped: %v", err)
	}
}

// add keeps a measurement and tells of it.
func (b *bed) add(k key, s sample) {
	b.results.add(k, s)
	text := fmt.Sprintf("%s, %s, %s: %.3f s, CPU %.3f s", k.section, k.task, k.program, s.seconds, s.cpu)
	if s.ops > 0 {
		text += fmt.Sprintf(", %.0f a second", float64(s.ops)/s.seconds)
	}
	b.say("%s", text)
}

// turns returns the order of n programs in a round.
func turns(n, round int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = (i + round) % n
	}
	return order
}
