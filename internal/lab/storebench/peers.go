package storebench

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

// programs returns all of them, ours first: as it comes, and with the faster codec, for which compressing again at leisure
// makes up.
func (b *bed) programs() []program {
	return []program{
		&holdfast{b: b, label: ours}, &holdfast{b: b, label: ours + " s2", args: []string{"--compression", "s2"}}, &restic{b},
		// Borg's manual advises pieces of one size for disk images, of 4 MiB, and to skip holes, which only that can.
		&borg{b: b, label: "borg lz4", compression: "lz4", chunker: "fixed,4194304", sparse: true},
		&borg{b: b, label: "borg zstd,3", compression: "zstd,3", chunker: "fixed,4194304", sparse: true},
		// Cut by content, which is its default, it finds more and reads the holes too.
		&borg{b: b, label: "borg zstd,3, by content", compression: "zstd,3"},
		&casync{b},
	}
}

// restic compresses since its repository format 2, which this version makes only when it is told to; how, it chooses by
// itself (auto). It always encrypts. It cuts by content, and reads holes as zeros. It runs without its cache, which is
// there to spare a network, and costs time where there is none.
type restic struct{ b *bed }

func (*restic) name() string     { return "restic" }
func (*restic) slow() bool       { return false }
func (r *restic) folder() string { return r.b.path("restic") }

func (r *restic) run(ctx context.Context, args ...string) (measure.Usage, error) {
	return r.b.run(ctx, measure.Spec{Args: append([]string{"restic", "--no-cache", "--quiet"}, args...),
		Env: []string{"RESTIC_REPOSITORY=" + r.folder(), "RESTIC_PASSWORD_FILE=" + r.b.path("passphrase")}})
}

func (r *restic) prepare(ctx context.Context) error {
	_, err := r.run(ctx, "init", "--repository-version", "2")
	return err
}

func (r *restic) keep(ctx context.Context, d disk) (measure.Usage, error) {
	return r.run(ctx, "backup", "--host", "lab", d.path)
}

func (r *restic) restore(ctx context.Context, d disk, to string) (measure.Usage, error) {
	dir := r.b.path("restored")
	used, err := r.run(ctx, "restore", "latest", "--path", d.path, "--target", dir)
	if err != nil {
		return used, err
	}
	if err := os.Rename(filepath.Join(dir, d.path), to); err != nil {
		return used, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return used, err
	}
	return settle(to, used)
}

// borg encrypts with AES-CTR, here with its key in the repository. Of its two digests it has SHA-256 here, which is the
// faster one on processors that compute it: BLAKE2 took 1.4 to 1.7 times the processor time on the machine this was
// written on.
type borg struct {
	b                           *bed
	label, compression, chunker string
	sparse                      bool
	last                        map[string]string // archives, by disk
}

func (p *borg) name() string { return p.label }
func (p *borg) slow() bool   { return !p.sparse && !p.b.opts.Few }
func (p *borg) folder() string {
	return p.b.path(strings.NewReplacer(" ", "-", ",", "").Replace(p.label))
}

// run leaves borg's own cache out of what is stored: it can be made again.
func (p *borg) run(ctx context.Context, args ...string) (measure.Usage, error) {
	return p.b.run(ctx, measure.Spec{Args: append([]string{"borg"}, args...), Env: []string{
		"BORG_BASE_DIR=" + p.folder() + ".base", "BORG_PASSCOMMAND=cat " + p.b.path("passphrase"),
		"BORG_RELOCATED_REPO_ACCESS_IS_OK=yes", "BORG_EXIT_CODES=legacy"}})
}

func (p *borg) prepare(ctx context.Context) error {
	p.last = map[string]string{}
	if err := os.RemoveAll(p.folder() + ".base"); err != nil {
		return err
	}
	_, err := p.run(ctx, "init", "--encryption", "repokey", p.folder())
	return err
}

func (p *borg) keep(ctx context.Context, d disk) (measure.Usage, error) {
	args := []string{"create", "--compression", p.compression}
	if p.chunker != "" {
		args = append(args, "--chunker-params", p.chunker)
	}
	if p.sparse {
		args = append(args, "--sparse")
	}
	p.last[d.name] += "x" // archives have different names
	archive := p.folder() + "::" + d.name + p.last[d.name]
	return p.run(ctx, append(args, archive, d.path)...)
}

func (p *borg) restore(ctx context.Context, d disk, to string) (measure.Usage, error) {
	dir := p.b.path("restored")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return measure.Usage{}, err
	}
	// It writes below the folder it stands in.
	s := measure.Spec{Args: []string{"sh", "-c", `cd "$1" && exec borg extract --sparse "$2"`, "sh", dir, p.folder() + "::" + d.name + p.last[d.name]},
		Env: []string{"BORG_BASE_DIR=" + p.folder() + ".base", "BORG_PASSCOMMAND=cat " + p.b.path("passphrase")}}
	used, err := p.b.run(ctx, s)
	if err != nil {
		return used, err
	}
	if err := os.Rename(filepath.Join(dir, d.path), to); err != nil {
		return used, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return used, err
	}
	return settle(to, used)
}

// casync cuts by content, at 64 KiB on average as we do, and keeps each piece in a file. It compresses with zstd and does
// not encrypt: there is no option for it. It reads holes as zeros.
type casync struct{ b *bed }

func (*casync) name() string     { return "casync" }
func (c *casync) slow() bool     { return !c.b.opts.Few }
func (c *casync) folder() string { return c.b.path("casync") }

func (c *casync) run(ctx context.Context, args ...string) (measure.Usage, error) {
	return c.b.run(ctx, measure.Spec{Args: append([]string{"casync", "--store", filepath.Join(c.folder(), "store.castr")}, args...)})
}

func (c *casync) prepare(context.Context) error { return os.Mkdir(c.folder(), 0o700) }

// keep replaces the list of the disk's pieces; the pieces all stay.
func (c *casync) keep(ctx context.Context, d disk) (measure.Usage, error) {
	return c.run(ctx, "make", filepath.Join(c.folder(), d.name+".caibx"), d.path)
}

func (c *casync) restore(ctx context.Context, d disk, to string) (measure.Usage, error) {
	used, err := c.run(ctx, "extract", filepath.Join(c.folder(), d.name+".caibx"), to)
	if err != nil {
		return used, err
	}
	return settle(to, used)
}

// settle adds the time until a file is on disk: Holdfast waits for that by itself, the peers do not.
func settle(file string, used measure.Usage) (measure.Usage, error) {
	f, err := os.Open(file)
	if err != nil {
		return used, err
	}
	defer f.Close()
	began := time.Now()
	err = f.Sync()
	used.Seconds += time.Since(began).Seconds()
	return used, err
}
