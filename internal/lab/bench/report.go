package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// Report is the outcome of a run.
type Report struct {
	CPUs        int               `json:"cpus"`
	MemoryMiB   int               `json:"memory_mib"`
	LoadAverage float64           `json:"load_average"` // of the minute before the run: what else the machine did
	Rounds      int               `json:"rounds"`
	Versions    map[string]string `json:"versions"`
	DiskBytes   int64             `json:"disk_bytes"`
	DataBytes   int64             `json:"data_bytes"` // of the disk, as the file system sees the exported file
	FloorMiB    float64           `json:"floor_mib"`  // peaks at or under this are those of the measuring process
	Cold        bool              `json:"cold"`       // the page cache could be dropped
	Seconds     float64           `json:"seconds"`
	Rows        []Row             `json:"rows"`

	began time.Time
}

// Row is one task done by one program; figures are medians of the rounds, and zero where there is no such figure.
type Row struct {
	Section   string  `json:"section"` // import, export, nfs or fuse
	Task      string  `json:"task"`
	Program   string  `json:"program"`
	Rounds    int     `json:"rounds"`
	Ratio     float64 `json:"ratio,omitempty"` // the peer's time over ours: 2 is twice as fast; zero in a peer's row
	Seconds   float64 `json:"seconds"`
	Spread    float64 `json:"spread"` // slowest less fastest, over the median
	CPU       float64 `json:"cpu_seconds,omitempty"`
	PeakMiB   float64 `json:"peak_mib,omitempty"`
	AddedMiB  float64 `json:"added_mib,omitempty"` // on disk, blocks of all files
	MBps      float64 `json:"mb_per_s,omitempty"`
	OpsPerSec float64 `json:"ops_per_s,omitempty"`
	P50       float64 `json:"p50_us,omitempty"`
	P99       float64 `json:"p99_us,omitempty"`
	CPUPerOp  float64 `json:"cpu_us_per_op,omitempty"` // of the server
}

// key names a row. peer is the program that it is held against; empty in a peer's own row.
type key struct{ section, task, program, peer string }

// sample is one measurement.
type sample struct {
	seconds, cpu float64
	peak, added  int64 // bytes
	ops          int
	bytes        int64
	p50, p99     time.Duration
}

// results holds the measurements in the order in which their rows first came.
type results struct {
	keys    []key
	samples map[key][]sample
}

func (r *results) add(k key, s sample) {
	if r.samples == nil {
		r.samples = map[key][]sample{}
	}
	if _, known := r.samples[k]; !known {
		r.keys = append(r.keys, k)
	}
	r.samples[k] = append(r.samples[k], s)
}

// rows makes the table's rows. Rows of one task stand together, the peer last.
func (r *results) rows() []Row {
	var all []Row
	for _, k := range r.ordered() {
		s := r.samples[k]
		seconds := func(s sample) float64 { return s.seconds }
		row := Row{Section: k.section, Task: k.task, Program: k.program, Rounds: len(s), Seconds: median(s, seconds)}
		row.CPU = median(s, func(s sample) float64 { return s.cpu })
		row.PeakMiB = median(s, func(s sample) float64 { return float64(s.peak) / (1 << 20) })
		row.AddedMiB = median(s, func(s sample) float64 { return float64(s.added) / (1 << 20) })
		if ops := float64(s[0].ops); ops > 0 {
			row.OpsPerSec, row.MBps = ops/row.Seconds, float64(s[0].bytes)/1e6/row.Seconds
			row.CPUPerOp = row.CPU * 1e6 / ops
			row.P50 = median(s, func(s sample) float64 { return float64(s.p50.Nanoseconds()) / 1e3 })
			row.P99 = median(s, func(s sample) float64 { return float64(s.p99.Nanoseconds()) / 1e3 })
		}
		low, high := s[0].seconds, s[0].seconds
		for _, m := range s {
			low, high = min(low, m.seconds), max(high, m.seconds)
		}
		row.Spread = (high - low) / row.Seconds
		if k.peer != "" {
			if peer := r.samples[key{k.section, k.task, k.peer, ""}]; len(peer) > 0 {
				row.Ratio = median(peer, seconds) / row.Seconds
			}
		}
		all = append(all, row)
	}
	return all
}

// ordered returns the rows' names as they are printed: sections and tasks as they first came, and of a task Holdfast,
// then its peer, then the rest.
func (r *results) ordered() []key {
	first := func(same func(key) bool) int { return slices.IndexFunc(r.keys, same) }
	place := func(k key) [3]int {
		rank := 2
		switch {
		case strings.HasPrefix(k.program, ours):
			rank = 0
		case k.peer == "":
			rank = 1
		}
		return [3]int{
			first(func(o key) bool { return o.section == k.section }),
			first(func(o key) bool { return o.section == k.section && o.task == k.task }), rank,
		}
	}
	keys := slices.Clone(r.keys)
	slices.SortStableFunc(keys, func(a, b key) int {
		pa, pb := place(a), place(b)
		return slices.Compare(pa[:], pb[:])
	})
	return keys
}

// median returns the middle of what f sees in the samples; of an even number the lower of the two.
func median(s []sample, f func(sample) float64) float64 {
	values := make([]float64, len(s))
	for i := range s {
		values[i] = f(s[i])
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}

// JSON writes the report as one JSON document.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Table writes the report for people.
func (r *Report) Table(w io.Writer) error {
	var versions []string
	for name, v := range r.Versions {
		versions = append(versions, name+" "+v)
	}
	slices.Sort(versions)
	cold := "page cache dropped before each"
	if !r.Cold {
		cold = "the page cache could NOT be dropped: cold is only a fresh start"
	}
	fmt.Fprintf(w, "%d processors, %d MiB of memory, load %.1f before; %s\n", r.CPUs, r.MemoryMiB, r.LoadAverage, strings.Join(versions, ", "))
	fmt.Fprintf(w, "Disk of %d MiB, of it data %d MiB; medians of %d; %s; %.0f s in all; peaks count from %.0f MiB\n",
		r.DiskBytes>>20, r.DataBytes>>20, r.Rounds, cold, r.Seconds, r.FloorMiB)
	for rows := r.Rows; len(rows) > 0; {
		n := slices.IndexFunc(rows, func(row Row) bool { return row.Section != rows[0].Section })
		if n < 0 {
			n = len(rows)
		}
		if err := section(w, rows[:n]); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// section writes the rows of one section. Figures are aligned to the right, words to the left.
func section(w io.Writer, rows []Row) error {
	wide, wideProgram := len(rows[0].Section), len("program")
	for _, row := range rows {
		wide, wideProgram = max(wide, len(row.Task)), max(wideProgram, len(row.Program))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\n%-*s\t%-*s\tx peer\tseconds\t+-%%\t%s\t\n", wide, strings.ToUpper(rows[0].Section), wideProgram, "program", heads(rows[0]))
	task := ""
	for _, row := range rows {
		name := row.Task
		if name == task {
			name = ""
		}
		task = row.Task
		fmt.Fprintf(t, "%-*s\t%-*s\t%s\t%.2f\t%.0f\t%s\t\n", wide, name, wideProgram, row.Program,
			number(row.Ratio, 2), row.Seconds, row.Spread*100, cells(row))
	}
	return t.Flush()
}

func heads(row Row) string {
	if row.OpsPerSec > 0 {
		return "ops/s\tMB/s\tp50 us\tp99 us\tCPU us/op\tpeak MiB"
	}
	return "CPU s\tpeak MiB\tadded MiB"
}

func cells(row Row) string {
	if row.OpsPerSec > 0 {
		return strings.Join([]string{number(row.OpsPerSec, 0), number(row.MBps, 0), number(row.P50, 0), number(row.P99, 0),
			number(row.CPUPerOp, 0), number(row.PeakMiB, 0)}, "\t")
	}
	return strings.Join([]string{number(row.CPU, 2), number(row.PeakMiB, 0), number(row.AddedMiB, 2)}, "\t")
}

// number writes a figure, and a dash for one that does not exist.
func number(v float64, digits int) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f", digits, v)
}

// describe begins the report with what is measured on what.
func (b *bed) describe(ctx context.Context) (*Report, error) {
	r := &Report{CPUs: runtime.NumCPU(), Rounds: b.effort.rounds, Versions: map[string]string{}, began: time.Now()}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, errs.Wrap("ask", "the system", err)
	}
	r.MemoryMiB = int(info.Totalram * uint64(info.Unit) >> 20)
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(text), &r.LoadAverage) // stays 0 where it is not told
	}
	for name, args := range map[string][]string{restic: {restic, "version"}, ganesha: {"ganesha.nfsd", "-v"}} {
		out, err := proc.Run(ctx, args...)
		if err != nil {
			return nil, err
		}
		r.Versions[name] = measure.Version(string(out))
	}
	return r, nil
}

// finish fills in what is known at the end.
func (b *bed) finish(r *Report) {
	if info, err := os.Stat(b.file); err == nil {
		r.DiskBytes = info.Size()
	}
	r.DataBytes = total(b.data)
	r.FloorMiB = float64(b.floor) / (1 << 20)
	r.Cold = b.dropped == nil
	r.Rows = b.results.rows()
	r.Seconds = time.Since(r.began).Seconds()
}
