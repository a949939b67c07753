package storebench

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

const mib = 1 << 20

// smallDisk makes a disk of 96 MiB with 48 MiB of data in pieces of 2 MiB: words in random order, no two blocks equal.
func smallDisk(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(96 * mib); err != nil {
		t.Fatal(err)
	}
	words := strings.Fields("of what is written much is written again and that is what makes it small on every disk there is")
	random := rand.New(rand.NewPCG(1, 1))
	var buf bytes.Buffer
	for off := int64(0); off < 96*mib; off += 4 * mib {
		buf.Reset()
		for buf.Len() < 2*mib {
			buf.WriteString(words[random.IntN(len(words))] + " ")
			if random.IntN(4) == 0 {
				buf.WriteByte(byte(random.Uint32()))
			}
		}
		if _, err := f.WriteAt(buf.Bytes()[:2*mib], off); err != nil {
			t.Fatal(err)
		}
	}
	return name
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRewrite: the share that was asked is new, compresses as the disk does, and lies where there was data.
func TestRewrite(t *testing.T) {
	base := smallDisk(t)
	var versions [][]byte
	for range 2 {
		name := filepath.Join(t.TempDir(), "changed")
		if err := measure.CopySparse(t.Context(), base, name); err != nil {
			t.Fatal(err)
		}
		if err := rewrite(name, 10, 5); err != nil {
			t.Fatal(err)
		}
		versions = append(versions, read(t, name))
	}
	if !bytes.Equal(versions[0], versions[1]) {
		t.Error("the same seed makes two versions")
	}
	before, after := read(t, base), versions[0]
	known, zero := map[string]bool{}, make([]byte, grain)
	for off := 0; off < len(before); off += grain {
		known[string(before[off:off+grain])] = true
	}
	var fresh, old []byte
	runs, last := 0, false
	for off := 0; off < len(before); off += grain {
		a, b := before[off:off+grain], after[off:off+grain]
		changed := !bytes.Equal(a, b)
		if changed {
			fresh, old = append(fresh, b...), append(old, a...)
			if bytes.Equal(a, zero) || known[string(b)] {
				t.Fatalf("the block at %d was a hole, or has become one that was there", off)
			}
			if !last {
				runs++
			}
		}
		last = changed
	}
	if share := float64(len(fresh)) / (48 * mib); share < 0.095 || share > 0.1001 {
		t.Errorf("%.2f %% of the data differs, want 10", share*100)
	}
	if blocks := len(fresh) / grain; runs < blocks/30 || runs > blocks/3 {
		t.Errorf("%d blocks in %d runs", blocks, runs)
	}
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := len(e.EncodeAll(old, nil)), len(e.EncodeAll(fresh, nil)); float64(b) < 0.9*float64(a) || float64(b) > 1.15*float64(a) {
		t.Errorf("what was there compresses to %d, what is there now to %d", a, b)
	}
}

func TestFigures(t *testing.T) {
	got := figures("goos: linux\nBenchmarkDisk/random/4K-cold-2   \t  1\t 416307415 ns/op\t  122.5 cpu-us/op\t 139 p50-us\n" +
		"BenchmarkOpen 	       3	2030 ns/op\nPASS\nBenchmarkBroken\n--- FAIL: BenchmarkBroken\n")
	want := []Figure{{"Disk/random/4K-cold", "ns/op", 416307415}, {"Disk/random/4K-cold", "cpu-us/op", 122.5},
		{"Disk/random/4K-cold", "p50-us", 139}, {"Open", "ns/op", 2030}}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// sampled makes the measurements of two disks: CPU seconds and stored MiB of each program, round by round.
func sampled() *results {
	var r results
	put := func(task, disk, program string, cpu float64, peak, stored int64) {
		r.add(key{task, disk, program}, sample{measure.Usage{Seconds: 2 * cpu, CPU: cpu, Peak: peak * mib}, mib, stored * mib})
	}
	for round := range 3 {
		extra := float64(round)
		put(taskFirst, "a", "slim", 8, 10, 50) // who begins is not always the same
		put(taskFirst, "a", ours, 4+extra, 20, 60)
		put(taskFirst, "a", "quick", 5, 30, 100)
		put(taskFirst, "b", ours, 1, 40, 90)
		put(taskFirst, "b", "slim", 4, 10, 80)
		put(taskFirst, "b", "quick", 3, 10, 200)
	}
	for _, p := range []string{ours, "slim", "quick"} {
		put(taskRestore, "a", p, 1, 1, 0)
		put(taskRestore, "b", p, 1, 1, 0)
	}
	return &r
}

func TestRowsSumDisksAndFindTheBestPeer(t *testing.T) {
	rows := sampled().rows()
	var got []string
	for _, r := range rows {
		got = append(got, r.title()+"/"+r.Program)
	}
	want := []string{taskFirst + ", a/" + ours, taskFirst + ", a/slim", taskFirst + ", a/quick", taskFirst + ", b/" + ours,
		taskFirst + ", b/slim", taskFirst + ", b/quick", taskFirst + "/" + ours, taskFirst + "/slim", taskFirst + "/quick",
		taskRestore + "/" + ours, taskRestore + "/slim", taskRestore + "/quick"}
	if !slices.Equal(got, want) {
		t.Fatalf("rows %q, want %q", got, want)
	}
	us, slim, quick := rows[6], rows[7], rows[8]
	if us.CPU != 6 || us.Seconds != 12 || us.PeakMiB != 40 || us.StoredMiB != 90 || us.AddedMiB != 2 || us.Rounds != 3 || us.Spread != 2.0/6 {
		t.Errorf("the sum of both disks is %+v", us)
	}
	if slim.CPURatio != 0.5 || slim.BestCPU || slim.StoredRatio != 90.0/80 || !slim.BestStored {
		t.Errorf("%+v", slim)
	}
	if quick.CPURatio != 0.75 || !quick.BestCPU || quick.BestStored {
		t.Errorf("%+v", quick)
	}
	if r := rows[10]; r.BestStored || r.StoredRatio != 0 || r.Rounds != 1 {
		t.Errorf("a restore stores nothing: %+v", r)
	}
}

func TestVerdicts(t *testing.T) {
	got := verdicts(sampled().rows(), []Figure{{"Disk/known/parent", "ns/op", 5}, {"Disk/known/parent", "cpu-MB/s", 900}, {"Disk/read-back", "cpu-MB/s", 100}, {"Disk/random/4K-cold", "cpu-us/op", 60},
		{"Change/100G", "MiB-stored", 10}, {"Change/15T", "MiB-stored", 12}, {"Change/15T", "cpu-s/backup", 1}})
	want := map[string]string{
		"first backup, CPU over best peer": "missed quick", "stored bytes over best peer": "missed slim",
		"known data per core": "floor ", "read-back per core": "missed ", "cold random 4 KiB read, CPU": "goal ",
		"64 MiB changed of 15 TiB, bytes over 100 GiB": "missed ",
	}
	for _, v := range got {
		if want[v.What] != v.Met+" "+v.Peer {
			t.Errorf("%+v, want %s", v, want[v.What])
		}
		delete(want, v.What)
	}
	if len(want) > 0 {
		t.Errorf("no verdict on %v", want)
	}
	if v := got[0]; v.Value != 0.75 {
		t.Errorf("%+v", v)
	}
}

// TestTable: every row, figure and target is printed.
func TestTable(t *testing.T) {
	r := Report{Rows: sampled().rows(), Figures: []Figure{{"Disk/known/parent", "ns/op", 5}, {"Disk/known/parent", "cpu-MB/s", 912.4}}, Disks: []DiskSize{{"a", 5 * mib, 3 * mib}}}
	r.Targets = verdicts(r.Rows, r.Figures)
	var out, doc bytes.Buffer
	if err := r.Table(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Disk a: 5 MiB, of it data 3 MiB", "0.91 GB/s", "floor reached", "MISSED", "912 cpu-MB/s", "FIRST BACKUP, A", "RESTORE"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "*"); n != 7 { // of CPU and of space in three tables, and of CPU in one
		t.Errorf("%d best peers:\n%s", n, out.String())
	}
	if err := r.JSON(&doc); err != nil || !strings.Contains(doc.String(), `"best_cpu": true`) {
		t.Errorf("%v:\n%s", err, doc.String())
	}
}

func TestAtHundred(t *testing.T) {
	got := atHundred([]Figure{{"OpenClean/10M/10", "MiB-anon-look-ups", 70}, {"OpenClean/10M", "MiB-anon-look-ups", 100}})
	if len(got) != 1 || got[0].Value != 400*float64(1<<20)/1e9 || got[0].Unit != "GB-at-100M" {
		t.Errorf("%v", got)
	}
	if got := atHundred(nil); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

// TestOurOtherSettings: a setting of ours that is cheap is no peer, and is held against the peers like the default.
func TestOurOtherSettings(t *testing.T) {
	var r results
	put := func(task, program string, cpu float64, stored int64) {
		r.add(key{task, "a", program}, sample{measure.Usage{Seconds: cpu, CPU: cpu, Peak: mib}, mib, stored * mib})
	}
	put(taskFirst, "slim", 8, 50)
	put(taskFirst, ours+" s2", 2, 90)
	put(taskFirst, ours, 4, 60)
	put(taskLeisure, ours+" s2", 9, 40)
	put(taskLeisure, ours, 9, 45)
	rows := r.rows()
	if rows[0].Program != ours || rows[1].Program != ours+" s2" || rows[1].BestCPU || rows[1].CPURatio != 0 || rows[2].CPURatio != 0.5 {
		t.Errorf("%+v", rows)
	}
	want := map[string]float64{
		"the same, compressed again at leisure": 0.9, "with --compression s2: first backup, CPU": 0.25, "with it, compressed again: stored bytes": 0.8,
		"first backup, CPU over best peer": 0.5, "stored bytes over best peer": 1.2,
	}
	for _, v := range verdicts(rows, nil) {
		if v.Value != want[v.What] || v.Peer != "slim" {
			t.Errorf("%+v, want %v", v, want[v.What])
		}
		delete(want, v.What)
	}
	if len(want) > 0 {
		t.Errorf("no verdict on %v", want)
	}
}
