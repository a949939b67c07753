package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// archiver is a program that keeps disks in a folder of its own.
type archiver interface {
	name() string
	folder() string
	// prepare makes the folder.
	prepare(ctx context.Context) error
	// keep backs up a disk image.
	keep(ctx context.Context, file string) (sample, error)
	// restore writes the last disk kept to a file that does not exist, in each of the ways that the program knows.
	restore(ctx context.Context, file, to string, done func(way string, s sample) error) error
}

// The names of the programs that keep disks.
const (
	ours   = "holdfast"
	restic = "restic"
)

// exportWays are restic's, the first being the peer.
var exportWays = []string{"restic restore", "restic dump"}

// archives measures import and export.
func (b *bed) archives(ctx context.Context) error {
	for round := range b.effort.rounds {
		if err := b.archiveRound(ctx, round); err != nil {
			return err
		}
	}
	var err error
	b.floor, err = measure.ProcessPeak(os.Getpid())
	return err
}

// oneArchive keeps and exports the disk for those who serve it, and measures nothing.
func (b *bed) oneArchive(ctx context.Context) error {
	h := &holdfast{bed: b, store: b.path("store")}
	if err := h.prepare(ctx); err != nil {
		return err
	}
	if _, err := h.keep(ctx, b.base); err != nil {
		return err
	}
	b.store, b.file = h, b.path("exported.raw")
	return h.restore(ctx, b.base, b.file, func(string, sample) error { return nil })
}

// archiveRound is the life of one disk: kept, restored, kept unchanged, changed and kept; then that of a qcow2 image
// with a dirty bitmap. Both programs see the same path each time.
func (b *bed) archiveRound(ctx context.Context, round int) error {
	h := &holdfast{bed: b, store: b.path("store")}
	r := &resticRepo{bed: b, repo: b.path("repository")}
	programs := []archiver{h, r}
	source := b.path("source")
	for _, dir := range []string{h.store, r.repo, source} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.Mkdir(source, 0o700); err != nil {
		return err
	}
	for _, p := range programs {
		if err := p.prepare(ctx); err != nil {
			return err
		}
	}
	disk := filepath.Join(source, "disk.raw")
	for _, step := range []struct{ task, from string }{
		{"first, raw", b.base}, {"again, raw unchanged but touched", b.base}, {"again, raw 5 % rewritten", b.changed},
	} {
		if err := measure.CopySparse(ctx, step.from, disk); err != nil { // a new file to restic, which then reads all of it
			return err
		}
		if err := b.keepBoth(ctx, step.task, disk, programs, round); err != nil {
			return err
		}
		if step.task == "first, raw" {
			if err := b.restoreBoth(ctx, disk, programs, round); err != nil {
				return err
			}
		}
	}
	if err := b.qcow2Round(ctx, h, r, round); err != nil {
		return err
	}
	b.store = h
	return nil
}

// keepBoth has each program keep a disk, from a cold page cache.
func (b *bed) keepBoth(ctx context.Context, task, disk string, programs []archiver, round int) error {
	for _, i := range turns(len(programs), round) {
		p := programs[i]
		before, err := measure.OnDisk(p.folder())
		if err != nil {
			return err
		}
		b.dropCaches()
		s, err := p.keep(ctx, disk)
		if err != nil {
			return err
		}
		after, err := measure.OnDisk(p.folder())
		if err != nil {
			return err
		}
		s.added = max(0, after-before)
		k := key{section: "import", task: task, program: p.name(), peer: restic}
		if p.name() == restic {
			k.peer = ""
		}
		b.add(k, s)
	}
	return nil
}

// restoreBoth has each program write the disk it has just kept to a file, and compares the files with the disk.
// Holdfast's file stays: all that reads the disk later is held against it.
func (b *bed) restoreBoth(ctx context.Context, disk string, programs []archiver, round int) error {
	b.file = b.path("exported.raw")
	for _, i := range turns(len(programs), round) {
		p := programs[i]
		to := b.path(p.name() + ".raw")
		if err := p.restore(ctx, disk, to, func(way string, s sample) (err error) {
			if s.added, err = measure.OnDisk(to); err != nil {
				return err
			}
			if err := measure.SameBytes(disk, to); err != nil {
				return err
			}
			k := key{section: "export", task: "raw file", program: way, peer: exportWays[0]}
			if way == exportWays[0] {
				k.peer = ""
			}
			b.add(k, s)
			if way == ours {
				return os.Rename(to, b.file)
			}
			return os.Remove(to)
		}); err != nil {
			return err
		}
	}
	return nil
}

// qcow2Round keeps a qcow2 image, changes it as a machine would, with the change noted in a dirty bitmap, and measures
// the second import. What is changed is not what the raw disk's change was, so that no store has it.
func (b *bed) qcow2Round(ctx context.Context, h *holdfast, r *resticRepo, round int) error {
	image, overlay := filepath.Join(b.path("source"), "image.qcow2"), b.path("overlay.qcow2")
	if _, err := proc.Run(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", b.base, image); err != nil {
		return err
	}
	for _, p := range []archiver{h, r} {
		if _, err := p.keep(ctx, image); err != nil {
			return err
		}
	}
	// An overlay with what differs, written into the image: qemu notes each write in the bitmap.
	for _, args := range [][]string{
		{"bitmap", "--add", image, "holdfast-" + h.last},
		{"create", "-q", "-f", "qcow2", "-b", b.edited, "-F", "raw", overlay},
		{"rebase", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay},
		{"commit", "-q", "-f", "qcow2", overlay},
	} {
		if _, err := proc.Run(ctx, append([]string{"qemu-img"}, args...)...); err != nil {
			return err
		}
	}
	if err := os.Remove(overlay); err != nil {
		return err
	}
	if err := b.keepBoth(ctx, "again, qcow2 with dirty bitmap, 5 % rewritten", image, []archiver{h, r}, round); err != nil {
		return err
	}
	if !h.incremental {
		return errs.Text("import", image, errs.Bug, "the dirty bitmap was not used")
	}
	return nil
}

// holdfast keeps disks in a store.
type holdfast struct {
	bed         *bed
	store       string
	first, last string // points
	incremental bool   // of the last one
}

func (*holdfast) name() string     { return ours }
func (h *holdfast) folder() string { return h.store }

func (h *holdfast) env() []string {
	return []string{"HOLDFAST_STORE=" + h.store, "HOLDFAST_PASSPHRASE_FILE=" + h.bed.path("passphrase")}
}

func (h *holdfast) prepare(ctx context.Context) error {
	kit := h.store + ".kit"
	if err := os.RemoveAll(kit); err != nil {
		return err
	}
	_, err := h.bed.measure(ctx, spec{args: []string{h.bed.bin, "init", h.store, "--kit", kit}, env: h.env()})
	return err
}

func (h *holdfast) keep(ctx context.Context, file string) (sample, error) {
	var out bytes.Buffer
	s, err := h.bed.measure(ctx, spec{env: h.env(), stdout: &out,
		args: []string{h.bed.bin, "disk", "import", file, "--vm", filepath.Base(file), "-o", "json"}})
	if err != nil {
		return s, err
	}
	var made struct {
		Point       string `json:"point"`
		Incremental bool   `json:"incremental"`
	}
	if err := json.Unmarshal(out.Bytes(), &made); err != nil || made.Point == "" {
		return s, errs.Text("read the answer of", "holdfast disk import", errs.Bug, "it is "+out.String())
	}
	if h.first == "" {
		h.first = made.Point
	}
	h.last, h.incremental = made.Point, made.Incremental
	return s, nil
}

func (h *holdfast) restore(ctx context.Context, _, to string, done func(string, sample) error) error {
	h.bed.dropCaches()
	s, err := h.bed.measure(ctx, spec{args: []string{h.bed.bin, "point", "export", h.last, "--to", to}, env: h.env()})
	if err != nil {
		return err
	}
	return done(ours, s)
}

// resticRepo keeps disks in a repository of restic.
type resticRepo struct {
	bed  *bed
	repo string
}

func (*resticRepo) name() string     { return restic }
func (r *resticRepo) folder() string { return r.repo }

// command runs restic without its cache and its progress, both of which we have not.
func (r *resticRepo) command(args ...string) spec {
	return spec{args: append([]string{restic, "--no-cache", "--quiet"}, args...),
		env: []string{"RESTIC_REPOSITORY=" + r.repo, "RESTIC_PASSWORD_FILE=" + r.bed.path("passphrase")}}
}

func (r *resticRepo) prepare(ctx context.Context) error {
	_, err := r.bed.measure(ctx, r.command("init", "--repository-version", "2"))
	return err
}

func (r *resticRepo) keep(ctx context.Context, file string) (sample, error) {
	return r.bed.measure(ctx, r.command("backup", "--host", "lab", file))
}

func (r *resticRepo) restore(ctx context.Context, file, to string, done func(string, sample) error) error {
	dir := r.bed.path("restored")
	r.bed.dropCaches()
	s, err := r.bed.measure(ctx, r.command("restore", "latest", "--path", file, "--target", dir))
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, file), to); err != nil {
		return err
	}
	if err := settle(to, &s); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := done(exportWays[0], s); err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	r.bed.dropCaches()
	c := r.command("dump", "latest", file, "--path", file)
	c.stdout = f
	if s, err = r.bed.measure(ctx, c); err != nil {
		return err
	}
	if err := settle(to, &s); err != nil {
		return err
	}
	return done(exportWays[1], s)
}

// settle adds the time until a file is on disk: Holdfast waits for that by itself, restic does not.
func settle(file string, s *sample) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	began := time.Now()
	err = f.Sync()
	s.seconds += time.Since(began).Seconds()
	return err
}
