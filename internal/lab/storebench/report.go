package storebench

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
	Disks       []DiskSize        `json:"disks"`
	FloorMiB    float64           `json:"floor_mib"` // peaks at or under this are those of the measuring process
	Cold        bool              `json:"cold"`      // the page cache could be dropped
	Seconds     float64           `json:"seconds"`
	Targets     []Verdict         `json:"targets"`
	Rows        []Row             `json:"rows"`
	Figures     []Figure          `json:"figures"`

	began time.Time
}

// DiskSize is a disk that was stored.
type DiskSize struct {
	Name      string `json:"name"`
	Bytes     int64  `json:"bytes"`
	DataBytes int64  `json:"data_bytes"` // not holes
}

// describe begins the report with what is measured on what.
func (b *bed) describe(ctx context.Context) (*Report, error) {
	r := &Report{CPUs: runtime.NumCPU(), Rounds: b.opts.Rounds, Versions: map[string]string{}, began: time.Now()}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, errs.Wrap("ask", "the system", err)
	}
	r.MemoryMiB = int(info.Totalram * uint64(info.Unit) >> 20)
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(text), &r.LoadAverage) // stays 0 where it is not told
	}
	for name, args := range map[string][]string{"restic": {"restic", "version"}, "borg": {"borg", "--version"}, "casync": {"casync", "--version"}} {
		out, err := proc.Run(ctx, args...)
		if err != nil {
			return nil, err
		}
		r.Versions[name] = measure.Version(string(out))
	}
	return r, nil
}

// finish fills in what is known at the end.
func (b *bed) finish(r *Report) (*Report, error) {
	for _, d := range b.disks {
		f, err := os.Open(d.path)
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		data, err := dataOf(f)
		if err != nil {
			return nil, err
		}
		_ = f.Close()
		size := DiskSize{Name: d.name, Bytes: info.Size()}
		for _, s := range data {
			size.DataBytes += s.n
		}
		r.Disks = append(r.Disks, size)
	}
	r.FloorMiB = float64(b.floor) / (1 << 20)
	r.Cold = b.dropped == nil
	r.Rows, r.Figures = b.results.rows(), b.figures
	r.Targets = verdicts(r.Rows, r.Figures)
	r.Seconds = time.Since(r.began).Seconds()
	return r, nil
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
	fmt.Fprintf(w, "%d processors, %d MiB of memory, load %.1f before; %s\n", r.CPUs, r.MemoryMiB, r.LoadAverage, strings.Join(versions, ", "))
	for _, d := range r.Disks {
		fmt.Fprintf(w, "Disk %s: %d MiB, of it data %d MiB\n", d.Name, d.Bytes>>20, d.DataBytes>>20)
	}
	cold := "page cache dropped before each"
	if !r.Cold {
		cold = "the page cache could NOT be dropped: cold is only a fresh start"
	}
	fmt.Fprintf(w, "Medians of %d; %s; %.0f s in all; peaks count from %.0f MiB\n", r.Rounds, cold, r.Seconds, r.FloorMiB)
	for _, part := range []func(io.Writer) error{r.targetTable, r.taskTable, r.figureTable} {
		if err := part(w); err != nil {
			return err
		}
	}
	return nil
}

func (r *Report) targetTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nTARGETS\treached\tfloor\tgoal\t\tbest peer\n")
	for _, v := range r.Targets {
		sign := "≤"
		if v.More {
			sign = "≥"
		}
		met := map[string]string{"goal": "goal reached", "floor": "floor reached", "missed": "MISSED"}[v.Met]
		fmt.Fprintf(t, "%s\t%s %s\t%s %s\t%s %s\t%s\t%s\n", v.What, figure(v.Value), v.Unit, sign, figure(v.Floor), sign, figure(v.Goal), met, v.Peer)
	}
	return t.Flush()
}

// taskTable writes what programs needed for tasks. The best peer of a row's kind has a star.
func (r *Report) taskTable(w io.Writer) error {
	wide, wideProgram := 0, 0
	for _, row := range r.Rows {
		wide, wideProgram = max(wide, len(row.title())), max(wideProgram, len(row.Program))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	last := ""
	for _, row := range r.Rows {
		name := row.title()
		if name == last {
			name = ""
		} else {
			if err := t.Flush(); err != nil {
				return err
			}
			last = name
			fmt.Fprintf(t, "\n%-*s\t%-*s\tseconds\tCPU s\t+-%%\tours/its\t \tpeak MiB\tadded MiB\tstored MiB\tours/its\t \t\n",
				wide, strings.ToUpper(name), wideProgram, "program")
			name = ""
		}
		fmt.Fprintf(t, "%-*s\t%-*s\t%.2f\t%.2f\t%s\t%s\t%s\t%.0f\t%s\t%s\t%s\t%s\t\n", wide, name, wideProgram, row.Program, row.Seconds, row.CPU,
			spread(row), number(row.CPURatio, 2), star(row.BestCPU), row.PeakMiB,
			number(row.AddedMiB, 1), number(row.StoredMiB, 1), number(row.StoredRatio, 2), star(row.BestStored))
	}
	return t.Flush()
}

func (row Row) title() string {
	if row.Disk == allDisks {
		return row.Task
	}
	return row.Task + ", " + row.Disk
}

// spread is a dash where there was one round only.
func spread(row Row) string {
	if row.Rounds < 2 {
		return "-"
	}
	return fmt.Sprintf("%.0f", row.Spread*100)
}

func star(best bool) string {
	if best {
		return "*"
	}
	return " "
}

// number writes a figure, and a dash for one that does not exist.
func number(v float64, digits int) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f", digits, v)
}

// figure writes a number with the digits that mean something.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *Report) figureTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nFROM INSIDE\tfigures\n")
	last := ""
	for i, f := range r.Figures {
		if f.Name != last {
			if i > 0 {
				fmt.Fprintln(t)
			}
			fmt.Fprintf(t, "%s\t", f.Name)
			last = f.Name
		}
		if f.Unit != "ns/op" {
			fmt.Fprintf(t, "%s %s   ", figure(f.Value), f.Unit)
		}
	}
	fmt.Fprintln(t)
	return t.Flush()
}
