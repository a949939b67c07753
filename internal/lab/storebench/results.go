package storebench

import (
	"slices"

	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

// key names what was measured: a task done by a program with a disk.
type key struct{ task, disk, program string }

// sample is one measurement.
type sample struct {
	measure.Usage
	added, stored int64 // bytes on disk, of this task and in all
}

// results holds the measurements.
type results struct {
	keys    []key // in the order in which they first came
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

// Row is one task done by one program with one disk or, where Disk is "all", with all of them, one after the other.
// Figures are medians of the rounds, and zero where there is no such figure.
type Row struct {
	Task      string  `json:"task"`
	Disk      string  `json:"disk"`
	Program   string  `json:"program"`
	Rounds    int     `json:"rounds"`
	Seconds   float64 `json:"seconds"`
	Spread    float64 `json:"spread"` // of the CPU seconds: highest less lowest, over the median
	CPU       float64 `json:"cpu_seconds"`
	PeakMiB   float64 `json:"peak_mib"`
	AddedMiB  float64 `json:"added_mib"`
	StoredMiB float64 `json:"stored_mib"` // in the program's folder when the task was done
	// Of a peer's row: what Holdfast needs, over what the peer needs. Below 1 Holdfast is better.
	CPURatio    float64 `json:"cpu_ratio,omitempty"`
	StoredRatio float64 `json:"stored_ratio,omitempty"`
	// Of a peer's row: no other peer needs less.
	BestCPU    bool `json:"best_cpu,omitempty"`
	BestStored bool `json:"best_stored,omitempty"`
}

const allDisks = "all"

// rows makes the table's rows: of every task the sum of all disks, and of the first backup every disk before.
func (r *results) rows() []Row {
	var tasks, disks []string
	for _, k := range r.keys {
		if !slices.Contains(tasks, k.task) {
			tasks = append(tasks, k.task)
		}
		if !slices.Contains(disks, k.disk) {
			disks = append(disks, k.disk)
		}
	}
	var all []Row
	for _, task := range tasks {
		if task == taskFirst && len(disks) > 1 {
			for _, d := range disks {
				all = append(all, r.task(task, d, []string{d})...)
			}
		}
		all = append(all, r.task(task, allDisks, disks)...)
	}
	return all
}

// task makes the rows of one task with some disks, compared with each other.
func (r *results) task(task, name string, disks []string) []Row {
	var rows []Row
	for _, k := range r.keys {
		if k.task != task || slices.ContainsFunc(rows, func(row Row) bool { return row.Program == k.program }) {
			continue
		}
		rows = append(rows, newRow(task, name, k.program, r.sum(task, k.program, disks)))
	}
	slices.SortStableFunc(rows, func(a, b Row) int { // who began says nothing
		return place(a.Program) - place(b.Program)
	})
	compare(rows)
	return rows
}

func place(program string) int {
	switch {
	case program == ours:
		return 0
	case isOurs(program):
		return 1
	}
	return 2
}

// sum adds up what one program needed for some disks, round by round.
func (r *results) sum(task, program string, disks []string) []sample {
	var all []sample
	for _, d := range disks {
		for i, s := range r.samples[key{task, d, program}] {
			if i == len(all) {
				all = append(all, s)
				continue
			}
			t := &all[i]
			t.Seconds, t.CPU, t.Peak = t.Seconds+s.Seconds, t.CPU+s.CPU, max(t.Peak, s.Peak)
			t.added, t.stored = t.added+s.added, s.stored
		}
	}
	return all
}

func newRow(task, disk, program string, s []sample) Row {
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	row := Row{
		Task: task, Disk: disk, Program: program, Rounds: len(s),
		Seconds:   median(s, func(s sample) float64 { return s.Seconds }),
		CPU:       median(s, func(s sample) float64 { return s.CPU }),
		PeakMiB:   median(s, func(s sample) float64 { return mib(s.Peak) }),
		AddedMiB:  median(s, func(s sample) float64 { return mib(s.added) }),
		StoredMiB: median(s, func(s sample) float64 { return mib(s.stored) }),
	}
	low, high := s[0].CPU, s[0].CPU
	for _, m := range s {
		low, high = min(low, m.CPU), max(high, m.CPU)
	}
	row.Spread = (high - low) / row.CPU
	return row
}

// compare holds Holdfast's row, the first, against the others.
func compare(rows []Row) {
	if len(rows) == 0 || rows[0].Program != ours {
		return
	}
	peers := rows[1:]
	for len(peers) > 0 && isOurs(peers[0].Program) {
		peers = peers[1:]
	}
	for i := range peers {
		p := &peers[i]
		p.CPURatio = rows[0].CPU / p.CPU
		if p.StoredMiB > 0 {
			p.StoredRatio = rows[0].StoredMiB / p.StoredMiB
		}
	}
	if len(peers) > 0 {
		least(peers, func(r Row) float64 { return r.CPU }).BestCPU = true
		least(peers, func(r Row) float64 { return r.StoredMiB }).BestStored = peers[0].StoredMiB > 0
	}
}

func least(rows []Row, f func(Row) float64) *Row {
	best := &rows[0]
	for i := range rows {
		if f(rows[i]) < f(*best) {
			best = &rows[i]
		}
	}
	return best
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
