package storebench

import (
	"bytes"
	"context"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

// The packages whose benchmarks are run. Each was built with its tests into a program of its name, with ".test" behind.
const (
	storePackage = "chunkstore"
	indexPackage = "index"
)

func (b *bed) benchProgram(pkg string) string { return filepath.Join(b.opts.BinDir, pkg+".test") }

// Figure is what a Go benchmark measured.
type Figure struct {
	Name  string  `json:"name"` // of the benchmark, without its package, as Disk/known
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
}

// inside runs the benchmarks that measure what cannot be seen from outside, on the first disk.
func (b *bed) inside(ctx context.Context) error {
	return b.bench(ctx, storePackage, "^BenchmarkDisk$", "HOLDFAST_BENCH_DISK="+b.disks[0].path)
}

// bench runs some benchmarks of a package, in a process of their own, and keeps their figures.
func (b *bed) bench(ctx context.Context, pkg, pattern string, env ...string) error {
	var out bytes.Buffer
	time := "1s"
	if b.opts.Few {
		time = "1x"
	}
	_, err := measure.Run(ctx, measure.Spec{
		Args: []string{b.benchProgram(pkg), "-test.run=^$", "-test.bench=" + pattern, "-test.benchtime=" + time, "-test.timeout=20m"},
		Env:  append(env, "TMPDIR="+b.opts.WorkDir), Dir: b.opts.WorkDir, Stdout: &out,
	})
	if err != nil {
		return err
	}
	found := figures(out.String())
	if len(found) == 0 {
		return errs.Text("run", pattern, errs.Bug, "no benchmark of that name gave a figure: "+out.String())
	}
	for _, f := range found {
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
