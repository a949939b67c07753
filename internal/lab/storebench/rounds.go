package storebench

import (
	"context"
	"os"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

// program keeps disks in a folder of its own and gives them back.
type program interface {
	name() string
	folder() string
	// slow programs are measured in the first round only.
	slow() bool
	// prepare makes the folder, of which nothing is there.
	prepare(ctx context.Context) error
	// keep backs a disk up.
	keep(ctx context.Context, d disk) (measure.Usage, error)
	// restore writes the disk as it was last kept to a file that does not exist.
	restore(ctx context.Context, d disk, to string) (measure.Usage, error)
}

// The tasks.
const (
	taskFirst   = "first backup"
	taskLeisure = "compressed again, at leisure"
	taskAgain   = "second backup, unchanged but touched"
	taskChanged = "third backup, 10 % rewritten"
	taskRestore = "restore of one disk to a file"
)

func (b *bed) rounds(ctx context.Context) error {
	for round := range b.opts.Rounds {
		if err := b.round(ctx, round); err != nil {
			return err
		}
	}
	var err error
	b.floor, err = measure.ProcessPeak(os.Getpid())
	return err
}

// round is the life of the disks, once.
func (b *bed) round(ctx context.Context, round int) error {
	var programs []program
	for _, p := range b.programs() {
		if round > 0 && p.slow() {
			continue
		}
		if err := os.RemoveAll(p.folder()); err != nil {
			return err
		}
		if err := p.prepare(ctx); err != nil {
			return err
		}
		programs = append(programs, p)
	}
	if err := b.keepAll(ctx, taskFirst, programs, round); err != nil {
		return err
	}
	if round == 0 {
		if err := b.leisure(ctx, programs); err != nil {
			return err
		}
	}
	now := time.Now()
	for _, d := range b.disks { // what makes each of the peers read a file again
		if err := os.Chtimes(d.path, now, now); err != nil {
			return err
		}
	}
	if err := b.keepAll(ctx, taskAgain, programs, round); err != nil {
		return err
	}
	for _, d := range b.disks {
		if err := swap(d.path, d.base, d.changed); err != nil {
			return err
		}
	}
	if err := b.keepAll(ctx, taskChanged, programs, round); err != nil {
		return err
	}
	if err := b.restoreAll(ctx, programs, round); err != nil {
		return err
	}
	for _, d := range b.disks {
		if err := swap(d.path, d.changed, d.base); err != nil {
			return err
		}
	}
	return nil
}

// swap moves a file out of its place and another one in.
func swap(place, out, in string) error {
	if err := os.Rename(place, out); err != nil {
		return err
	}
	return os.Rename(in, place)
}

// keepAll has every program keep every disk.
func (b *bed) keepAll(ctx context.Context, task string, programs []program, round int) error {
	for _, d := range b.disks {
		for _, i := range turns(len(programs), round) {
			p := programs[i]
			before, err := measure.OnDisk(p.folder())
			if err != nil {
				return err
			}
			used, err := p.keep(ctx, d)
			if err != nil {
				return err
			}
			after, err := measure.OnDisk(p.folder())
			if err != nil {
				return err
			}
			b.add(key{task, d.name, p.name()}, sample{Usage: used, added: max(0, after-before), stored: after})
		}
	}
	return nil
}

// leisure has those who can make what they keep smaller do so. It counts as a task of the first disk, once.
func (b *bed) leisure(ctx context.Context, programs []program) error {
	for _, p := range programs {
		l, can := p.(interface {
			atLeisure(context.Context) (measure.Usage, error)
		})
		if !can {
			continue
		}
		used, err := l.atLeisure(ctx)
		if err != nil {
			return err
		}
		after, err := measure.OnDisk(p.folder())
		if err != nil {
			return err
		}
		b.add(key{taskLeisure, b.disks[0].name, p.name()}, sample{Usage: used, stored: after})
	}
	return nil
}

// restoreAll has every program write the first disk to a file, and holds the file against the disk.
func (b *bed) restoreAll(ctx context.Context, programs []program, round int) error {
	d := b.disks[0]
	for _, i := range turns(len(programs), round) {
		p, to := programs[i], b.path("restored.raw")
		used, err := p.restore(ctx, d, to)
		if err != nil {
			return err
		}
		if round == 0 {
			if err := measure.SameBytes(d.path, to); err != nil {
				return errs.Wrap("restore with", p.name(), err)
			}
		}
		b.add(key{taskRestore, d.name, p.name()}, sample{Usage: used})
		if err := os.Remove(to); err != nil {
			return err
		}
	}
	return nil
}

// add keeps a measurement and tells of it.
func (b *bed) add(k key, s sample) {
	b.results.add(k, s)
	b.say("%s, %s, %s: %.2f s, CPU %.2f s, peak %d MiB, added %.1f MiB", k.task, k.disk, k.program, s.Seconds, s.CPU,
		s.Peak>>20, float64(s.added)/(1<<20))
}
