package cli

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

// occupied returns what the packs of a store take.
func (b *box) occupied() int64 {
	b.t.Helper()
	var st statusJSON
	b.json(&st, "store", "status")
	return st.PackBytes
}

func (b *box) collects(args ...string) node.CollectResult {
	b.t.Helper()
	var r node.CollectResult
	b.json(&r, append([]string{"store", "gc"}, args...)...)
	return r
}

// TestGCCompact compresses what is there again, with the store at hand and through a node, which leaves young packs alone.
func TestGCCompact(t *testing.T) {
	b := newBox(t)
	var text bytes.Buffer
	rng := rand.New(rand.NewPCG(5, 5))
	for text.Len() < 5*mib {
		fmt.Fprintf(&text, "%d %x\n", rng.IntN(5000), rng.IntN(70000))
	}
	point := b.imports(b.file("a", text.Bytes()), "a").Point
	want, before := b.sha256(point), b.occupied()
	out := b.ok("store", "gc", "--compact")
	after := b.occupied()
	if !strings.Contains(out, "Compressed again") || !strings.Contains(out, size(before-after)) || after >= before {
		t.Errorf("%d bytes became %d, after\n%s", before, after, out)
	}
	b.clean(point)
	if got := b.sha256(point); got != want {
		t.Errorf("the point became %s, was %s", got, want)
	}
	if r := b.collects("--compact"); r.Compacted != 0 || r.CompactLeft != 0 || r.CompactBad != 0 {
		t.Errorf("a second time: %+v", r)
	}
	b.fails(exitUsage, []string{"store", "gc", "--compact", "--dry-run"}, "--dry-run")
}

// TestGC gives back a point's space, as a dry run has said before, and of a store without points everything.
func TestGC(t *testing.T) {
	b := newBox(t)
	shared := noise(1, 2*mib)
	keep := b.imports(b.file("a", slices.Concat(shared, noise(2, mib))), "a").Point
	gone := b.imports(b.file("b", slices.Concat(noise(3, 3*mib), shared, noise(4, 3*mib))), "b").Point
	want := b.sha256(keep)
	if r := b.collects(); r.Freed != 0 || r.Chunks != 0 || r.StillRead == nil {
		t.Errorf("with nothing to give back: %+v", r)
	}
	b.ok("point", "rm", gone)
	full := b.occupied()
	dry := b.collects("--dry-run")
	// A cut is not exactly where the shared part begins and ends.
	if !dry.DryRun || dry.Freed < 6*mib || dry.Freed > 7*mib || dry.Chunks == 0 || b.occupied() != full {
		t.Errorf("a dry run: %+v", dry)
	}
	out := b.ok("store", "gc", "--dry-run")
	if !strings.Contains(out, "Would be given back") || !strings.Contains(out, size(dry.Freed)) {
		t.Errorf("a dry run says\n%s", out)
	}
	r := b.collects()
	if r.DryRun || r.Freed != full-b.occupied() || r.Freed < 6*mib || r.Chunks != dry.Chunks || r.Shrunk+r.Removed == 0 {
		t.Errorf("%+v, with %d bytes before and %d after", r, full, b.occupied())
	}
	b.clean(keep)
	if got := b.sha256(keep); got != want {
		t.Errorf("what was kept is %s, want %s", got, want)
	}
	again := b.imports(b.path("b"), "b").Point
	if b.sha256(again) != sum(t, b.path("b")) {
		t.Error("what was given back cannot be stored again")
	}
	for _, p := range b.points() {
		b.ok("point", "rm", p)
	}
	out = b.ok("store", "gc")
	if !strings.Contains(out, "Given back") || b.occupied() != 0 {
		t.Errorf("without points the packs take %d bytes, after\n%s", b.occupied(), out)
	}
	b.clean()
	b.fails(exitUsage, []string{"store", "gc", "now"}, "no arguments")
	b.fails(exitNotFound, []string{"store", "gc", "--store", b.path("nothing")})
}

// TestGCSparesReaders: what another process serves is not given back while it does, and is when it has ended.
func TestGCSparesReaders(t *testing.T) {
	b := newBox(t)
	disk := noise(1, 2*mib)
	point := b.imports(b.file("a", disk), "a").Point
	p, r := b.serve(point, "--nfs", "127.0.0.1:0", "--format", "raw")
	b.ok("point", "rm", point)
	if c := b.collects(); c.Freed != 0 || !slices.Equal(c.StillRead, []string{point}) {
		t.Errorf("while it is served: %+v", c)
	}
	if out := b.ok("store", "gc"); !strings.Contains(out, "Still read") || !strings.Contains(out, point) {
		t.Errorf("it says\n%s", out)
	}
	d := open(t, r.URL)
	if got := d.read(mib, 60000); !bytes.Equal(got, disk[mib:mib+60000]) {
		t.Error("what is served is not what was stored")
	}
	p.end(syscall.SIGKILL)
	if c := b.collects(); c.Freed < 2*mib || len(c.StillRead) > 0 {
		t.Errorf("when the server was killed: %+v", c)
	}
	if b.occupied() != 0 {
		t.Errorf("%d bytes are left", b.occupied())
	}
}

// TestGCSparesMounts is the same for a file that is open below a mount.
func TestGCSparesMounts(t *testing.T) {
	needMount(t)
	b := newBox(t)
	disk := noise(1, 4*mib)
	b.now = time.Date(2026, 11, 23, 9, 0, 12, 0, time.UTC)
	point := b.imports(b.file("a", disk), "a").Point
	dir := b.mountPoint()
	p := b.mount(dir)
	f, err := os.Open(dir + "/points/a/2026-11-23T09-00-12Z/disk0.raw")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	b.ok("point", "rm", point)
	until(t, "the point to be gone from the mount", func() bool {
		_, err := os.Stat(dir + "/points/a")
		return err != nil
	})
	if c := b.collects(); c.Freed != 0 || !slices.Equal(c.StillRead, []string{point}) {
		t.Errorf("while a file is open: %+v", c)
	}
	if _, err := f.ReadAt(got, 3*mib); err != nil || !bytes.Equal(got, disk[3*mib:3*mib+4096]) {
		t.Error("a file that is open:", err)
	}
	_ = f.Close()
	p.end(syscall.SIGINT)
	if c := b.collects(); c.Freed < 4*mib {
		t.Errorf("when the mount has ended: %+v", c)
	}
}

// TestGCAsksTheNode that holds the store, and one that is named.
func TestGCAsksTheNode(t *testing.T) {
	b := newBox(t)
	held, err := chunkstore.Open(t.Context(), b.store, chunkstore.Options{
		Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return []byte(passphrase), nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	b.node.store = api.StoreInfo{UUID: held.Superblock().UUID.String()}
	task := appliance.Task{
		ID: "0123456789ab", Kind: appliance.TaskCollect, State: appliance.TaskRunning, Started: b.now, Steps: []appliance.Step{{Name: "giving", Started: b.now}},
	}
	ended := task
	ended.State, ended.Ended = appliance.TaskSucceeded, &b.now
	ended.Result = map[string]any{"freed_bytes": 5.0 * mib, "dry_run": false, "packs_removed": 3, "points_still_read": []string{}}
	b.node.states[task.ID] = []appliance.Task{task, ended}
	b.node.tasks = append(b.node.tasks, ended)
	for _, args := range [][]string{{"store", "gc"}, {"store", "gc", "--node", "/run/x", "--dry-run"}} {
		b.node.calls = nil
		var r node.CollectResult
		b.json(&r, args...)
		if r.Freed != 5*mib || r.Removed != 3 {
			t.Errorf("%q: %+v", args, r)
		}
		if out := b.ok(args...); !strings.Contains(out, "5.0 MiB") {
			t.Errorf("%q says\n%s", args, out)
		}
		want := fmt.Sprintf("StartCollect[{DryRun:%v Compact:false}]", len(args) > 2)
		if got := strings.Join(b.node.calls, "; "); !strings.Contains(got, want) {
			t.Errorf("%q: the node was asked %q, not %q", args, got, want)
		}
	}
	if out := b.ok("task", "show", task.ID); !strings.Contains(out, "collection") || !strings.Contains(out, "5.0 MiB") {
		t.Errorf("task show says\n%s", out)
	}
	failed := task
	failed.State, failed.Ended = appliance.TaskFailed, &b.now
	failed.Problem = &appliance.Problem{Code: "corrupt", Title: "give back space", Cause: "a point cannot be read", Remedy: "Put it back."}
	b.node.states[task.ID] = []appliance.Task{task, failed}
	b.fails(exitCorrupt, []string{"store", "gc"}, "a point cannot be read", "Put it back.")
}

// TestKilledGC kills collections at random moments, several in a row. The store opens and is whole, what was kept is as
// it was, and the next collection gives back what the others left.
func TestKilledGC(t *testing.T) {
	const seed = 20261129
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	random := rand.New(rand.NewPCG(seed, 1))
	whole, kills := time.Duration(0), 0
	for round := range rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			b := newBox(t)
			k := newLeft(b)
			if whole == 0 {
				began := time.Now()
				b.start("store", "gc").wait()
				whole = time.Since(began)
				t.Logf("a collection takes %v", whole)
				k.check()
				return
			}
			for range 3 {
				p := b.start("store", "gc")
				<-time.After(time.Duration(random.Int64N(int64(whole))))
				if p.end(syscall.SIGKILL) == -1 {
					kills++
				}
				b.whole(k.kept)
			}
			k.check()
		})
	}
	if kills < rounds {
		t.Errorf("only %d collections were still running when they were killed", kills)
	}
	t.Logf("%d kills", kills)
}

// left is a store with one point that is kept, and much that is to be given back: whole packs, and parts of others.
type left struct {
	*box
	kept, sum string
}

func newLeft(b *box) *left {
	parts := make([][]byte, 40)
	var kept [][]byte
	for i := range parts {
		parts[i] = noise(uint64(i+1), mib)
		if i%3 == 0 {
			kept = append(kept, parts[i])
		}
	}
	gone := b.imports(b.file("gone", slices.Concat(parts...)), "gone").Point
	more := b.imports(b.file("more", noise(99, 70*mib)), "more").Point
	k := &left{box: b}
	k.kept = b.imports(b.file("kept", slices.Concat(kept...)), "kept").Point
	k.sum = sum(b.t, b.path("kept"))
	b.ok("point", "rm", gone)
	b.ok("point", "rm", more)
	return k
}

func (k *left) check() {
	k.t.Helper()
	k.ok("store", "gc")
	k.clean(k.kept)
	if got := k.sha256(k.kept); got != k.sum {
		k.t.Errorf("what was kept is %s, want %s", got, k.sum)
	}
	if n := k.occupied(); n > 16*mib {
		k.t.Errorf("14 MiB are needed, and %d are taken", n)
	}
	if r := k.collects(); r.Freed != 0 {
		k.t.Errorf("there was more to give back: %+v", r)
	}
	again := k.imports(k.path("gone"), "gone").Point
	if got := k.sha256(again); got != sum(k.t, k.path("gone")) {
		k.t.Error("what was given back is not what was stored again")
	}
	k.clean(k.kept, again)
	for _, p := range k.points() {
		k.ok("point", "rm", p)
	}
	k.ok("store", "gc")
	for _, pattern := range []string{"data/*/*", "meta/*/*", "removed/*", "points/*"} {
		if found, _ := filepath.Glob(filepath.Join(k.store, pattern)); len(found) > 0 {
			k.t.Errorf("without points there is still %q", found)
		}
	}
}
