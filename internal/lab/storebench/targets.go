package storebench

// target is what a figure is to reach: at least the floor, and in the end the goal.
type target struct {
	what        string
	floor, goal float64
	unit        string
	more        bool // more is better
	task        string
	stored      bool   // of the task its bytes, not its processor time
	than        string // if set, the task of the peers, and program is ours
	program     string
	figure      string // or a benchmark's figure
	figureUnit  string
	scale       float64 // of that figure
	over        string  // if set, that figure over the same of another benchmark
}

// targets are those that were set for the store. Those of a task are of all disks together, over the best peer.
var targets = []target{
	{what: "first backup, CPU over best peer", floor: 0.6, goal: 0.5, task: taskFirst},
	{what: "second backup, CPU over best peer", floor: 0.3, goal: 0.2, task: taskAgain},
	{what: "stored bytes over best peer", floor: 1.0, goal: 0.85, task: taskFirst, stored: true},
	{what: "the same, compressed again at leisure", floor: 1.0, goal: 0.85, task: taskLeisure, than: taskFirst, program: ours, stored: true},
	{what: "with --compression s2: first backup, CPU", floor: 0.6, goal: 0.5, task: taskFirst, than: taskFirst, program: ours + " s2"},
	{what: "with it, compressed again: stored bytes", floor: 1.0, goal: 0.85, task: taskLeisure, than: taskFirst, program: ours + " s2", stored: true},
	{what: "known data per core", floor: 0.8, goal: 1.5, unit: "GB/s", more: true, figure: "Disk/known/parent", figureUnit: "cpu-MB/s", scale: 1e-3},
	{what: "new data per core", floor: 130, goal: 200, unit: "MB/s", more: true, figure: "Disk/new/default", figureUnit: "cpu-MB/s", scale: 1},
	{what: "read-back per core", floor: 500, goal: 800, unit: "MB/s", more: true, figure: "Disk/read-back", figureUnit: "cpu-MB/s", scale: 1},
	{what: "cold random 4 KiB read, CPU", floor: 100, goal: 60, unit: "µs", figure: "Disk/random/4K-cold", figureUnit: "cpu-us/op", scale: 1},
	{what: "open a store of 10 million chunks", floor: 2, goal: 2, unit: "s", figure: "OpenClean/10M", figureUnit: "open-s", scale: 1},
	{what: "the same after a kill", floor: 2, goal: 2, unit: "s", figure: "OpenKilled/10M", figureUnit: "open-s", scale: 1},
	{what: "index memory at 100 million chunks", floor: 0.6, goal: 0.6, unit: "GB", figure: "OpenClean/10M", figureUnit: "GB-at-100M", scale: 1},
	{what: "64 MiB changed of 15 TiB, CPU over 100 GiB", floor: 1.1, goal: 1.1, figure: "Change/15T", figureUnit: "cpu-s/backup", over: "Change/100G", scale: 1},
	{what: "64 MiB changed of 15 TiB, bytes over 100 GiB", floor: 1.1, goal: 1.1, figure: "Change/15T", figureUnit: "MiB-stored", over: "Change/100G", scale: 1},
}

// Verdict is a target and what was reached.
type Verdict struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Floor float64 `json:"floor"`
	Goal  float64 `json:"goal"`
	Unit  string  `json:"unit,omitempty"`
	Peer  string  `json:"peer,omitempty"` // the best one, where it is held against one
	Met   string  `json:"met"`            // goal, floor or missed
	More  bool    `json:"more_is_better,omitempty"`
}

// verdicts says of every target that was measured what was reached.
func verdicts(rows []Row, figures []Figure) []Verdict {
	var all []Verdict
	for _, t := range targets {
		v := Verdict{What: t.what, Floor: t.floor, Goal: t.goal, Unit: t.unit, More: t.more}
		found := false
		if t.task != "" {
			v.Value, v.Peer, found = overBest(rows, t)
		}
		if f := find(figures, t.figure, t.figureUnit); f != nil {
			v.Value, found = f.Value*t.scale, true
		}
		if t.over != "" && found {
			other := find(figures, t.over, t.figureUnit)
			if found = other != nil; found {
				v.Value /= other.Value
			}
		}
		if found {
			v.Met = t.met(v.Value)
			all = append(all, v)
		}
	}
	return all
}

func find(figures []Figure, name, unit string) *Figure {
	for i, f := range figures {
		if f.Name == name && f.Unit == unit {
			return &figures[i]
		}
	}
	return nil
}

func overBest(rows []Row, t target) (ratio float64, peer string, found bool) {
	if t.than != "" {
		return overOther(rows, t)
	}
	for _, r := range rows {
		switch {
		case r.Task != t.task || r.Disk != allDisks:
		case t.stored && r.BestStored:
			return r.StoredRatio, r.Program, true
		case !t.stored && r.BestCPU:
			return r.CPURatio, r.Program, true
		}
	}
	return 0, "", false
}

// overOther holds what one of our programs needed for a task against what the best peer needed for another.
func overOther(rows []Row, t target) (ratio float64, peer string, found bool) {
	var mine, best *Row
	for i, r := range rows {
		if r.Disk != allDisks {
			continue
		}
		if r.Task == t.task && r.Program == t.program {
			mine = &rows[i]
		}
		if r.Task == t.than && (t.stored && r.BestStored || !t.stored && r.BestCPU) {
			best = &rows[i]
		}
	}
	if mine == nil || best == nil {
		return 0, "", false
	}
	if t.stored {
		return mine.StoredMiB / best.StoredMiB, best.Program, true
	}
	return mine.CPU / best.CPU, best.Program, true
}

func (t target) met(v float64) string {
	reaches := func(line float64) bool { return t.more && v >= line || !t.more && v <= line }
	switch {
	case reaches(t.goal):
		return "goal"
	case reaches(t.floor):
		return "floor"
	}
	return "missed"
}
