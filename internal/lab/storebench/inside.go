package storebench

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

// benchProgram is chunkstore with its tests, built into a program.
func (b *bed) benchProgram() string { return filepath.Join(b.opts.BinDir, "chunkstore.test") }

// Figure is what a Go benchmark measured.
type Figure struct {
	Name  string  `json:"name"` // of the benchmark, without its package, as Disk/known
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
}

// inside runs the benchmarks that measure what cannot be seen from outside: on the first disk, on disks that are computed,
// and on a store of many chunks.
func (b *bed) inside(ctx context.Context) error {
	times, chunks, label := "3x", 10_000_000, "10M"
	if b.opts.Few {
		times, chunks, label = "1x", 100_000, "0.1M"
	}
	small := []string{"HOLDFAST_BENCH_STORE=" + b.path("large"), "HOLDFAST_BENCH_CHUNKS=" + strconv.Itoa(chunks/10)}
	large := []string{"HOLDFAST_BENCH_STORE=" + b.path("large"), "HOLDFAST_BENCH_CHUNKS=" + strconv.Itoa(chunks)}
	for _, run := range []inside{
		{name: "Disk", times: times, env: []string{"HOLDFAST_BENCH_DISK=" + b.disks[0].path}},
		{name: "Change", times: times},
		{name: "OpenMake", label: label + "/10", times: "1x", env: small},
		{name: "OpenClean", label: label + "/10", times: times, env: small},
		{name: "OpenMake", label: label, times: "1x", env: large},
		{name: "OpenClean", label: label, times: times, env: large},
		{name: "OpenKilled", label: label, times: times, env: large},
	} {
		if err := b.bench(ctx, run); err != nil {
			return err
		}
	}
	b.figures = append(b.figures, atHundred(b.figures)...)
	return os.RemoveAll(b.path("large"))
}

// atHundred calculates the memory of an index of 100 million chunks from what 1 and 10 million took: most of it does not
// grow with the chunks (buffers, caches), and what grows shows between the two.
func atHundred(figures []Figure) []Figure {
	const unit = "MiB-anon-look-ups"
	one, ten := find(figures, "OpenClean/10M/10", unit), find(figures, "OpenClean/10M", unit)
	if one == nil || ten == nil {
		return nil
	}
	mib := ten.Value + max(0, ten.Value-one.Value)*10
	return []Figure{{"OpenClean/10M", "GB-at-100M", mib * (1 << 20) / 1e9}}
}

// inside is a benchmark of the store, which is run in a process of its own.
type inside struct {
	name  string
	label string // stands behind the name in its figures; may be empty
	times string // how often, as the flag -test.benchtime has it
	env   []string
}

// bench runs a benchmark and keeps its figures.
func (b *bed) bench(ctx context.Context, run inside) error {
	var out bytes.Buffer
	_, err := measure.Run(ctx, measure.Spec{
		Args: []string{b.benchProgram(), "-test.run=^$", "-test.bench=^Benchmark" + run.name + "$", "-test.benchtime=" + run.times, "-test.timeout=30m"},
		Env:  append(run.env, "TMPDIR="+b.opts.WorkDir), Dir: b.opts.WorkDir, Stdout: &out,
	})
	if err != nil {
		return err
	}
	found := figures(out.String())
	if len(found) == 0 {
		return errs.Text("run", "Benchmark"+run.name, errs.Bug, "no benchmark of that name gave a figure: "+out.String())
	}
	for i := range found {
		f := &found[i]
		if run.label != "" {
			f.Name += "/" + run.label
		}
		b.say("%s: %s %s", f.Name, strconv.FormatFloat(f.Value, 'g', 4, 64), f.Unit)
	}
	b.figures = append(b.figures, found...)
	return nil
}

// benchLine is a line of a benchmark's output: its name, a dash and the number of processors, how often it ran, figures.
var benchLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// figures reads the output of Go's benchmarks.
func figures(text string) []Figure {
	var all []Figure
	for line := range strings.Lines(text) {
		m := benchLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		fields := strings.Fields(m[2])
		for i := 0; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				all = append(all, Figure{m[1], fields[i+1], v})
			}
		}
	}
	return all
}
