package node

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/task"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/collect"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// CollectResult says what a collection gave back, or would. Field names are promises to scripts: they are the command
// line's JSON and the result of the node's task. Bytes are those that the disk counts.
type CollectResult struct {
	DryRun      bool     `json:"dry_run"`
	Freed       int64    `json:"freed_bytes"`
	WholePacks  int64    `json:"whole_pack_bytes"` // of them, by removing data packs
	Holes       int64    `json:"hole_bytes"`       // by holes in data packs
	Pages       int64    `json:"page_bytes"`       // of manifests
	Removed     int      `json:"packs_removed"`
	Shrunk      int      `json:"packs_shrunk"`
	HoleCount   int      `json:"holes"`
	Chunks      int64    `json:"chunks_freed"`
	PageCount   int64    `json:"pages_freed"`
	KeptChunks  int64    `json:"chunks_kept"`
	KeptPages   int64    `json:"pages_kept"`
	SpareChunks int64    `json:"spare_chunks"` // not needed, but not worth to be given back
	SpareBytes  int64    `json:"spare_bytes"`
	Skipped     int      `json:"packs_skipped"`
	Reused      int64    `json:"chunks_reused"`
	Waited      int      `json:"waited_for_backups"`
	StillRead   []string `json:"points_still_read"`
	Compacted   int      `json:"packs_compacted"` // compressed again
	CompactGain int64    `json:"compacted_bytes"` // given back by that, not in Freed
	CompactLeft int      `json:"packs_to_compact"`
	CompactBad  int      `json:"packs_damaged"`             // that are damaged and were left alone
	CompactStop string   `json:"compact_stopped,omitempty"` // why it did not go on
	Seconds     float64  `json:"seconds"`
}

// CollectOptions say how Collect collects.
type CollectOptions struct {
	DryRun bool
	// Compact compresses packs again that are older than CompactAge, until Continue, asked before each, says no.
	Compact    bool
	CompactAge time.Duration
	Workers    int         // that compress again; 0: all processors
	Continue   func() bool // may be nil
	// Progress is told of each stage, and how far it is; may be nil.
	Progress func(stage, detail string)
}

// Collect gives back the space of what no point needs.
func Collect(ctx context.Context, s *chunkstore.Store, o CollectOptions) (CollectResult, error) {
	began := time.Now()
	r, err := s.Collect(ctx, chunkstore.CollectOptions{DryRun: o.DryRun, Progress: func(p collect.Progress) {
		if o.Progress != nil {
			o.Progress(string(p.Stage), stageDetail(p))
		}
	}})
	if err != nil {
		return CollectResult{}, err
	}
	out := CollectResult{
		DryRun: o.DryRun, Freed: r.FreedBytes, WholePacks: r.WholeBytes, Holes: r.HoleBytes, Pages: r.PageBytes,
		Removed: r.PacksRemoved, Shrunk: r.PacksShrunk, HoleCount: r.Holes, Chunks: r.Chunks, PageCount: r.Pages,
		KeptChunks: r.KeptChunks, KeptPages: r.KeptPages, SpareChunks: r.SpareChunks, SpareBytes: r.SpareBytes,
		Skipped: r.PacksSkipped, Reused: r.Reused, Waited: r.WaitedSessions, StillRead: r.Held,
	}
	if out.StillRead == nil {
		out.StillRead = []string{}
	}
	if o.Compact && !o.DryRun {
		err = compactToo(ctx, s, o, &out)
	}
	out.Seconds = time.Since(began).Seconds()
	return out, err
}

// compacting is the stage in which packs are compressed again.
const compacting = "compressing packs again"

func compactToo(ctx context.Context, s *chunkstore.Store, o CollectOptions, out *CollectResult) error {
	r, err := s.Compact(ctx, chunkstore.CompactOptions{
		MinAge: o.CompactAge, Workers: o.Workers, Continue: o.Continue, Progress: func(r chunkstore.CompactResult) {
			if o.Progress != nil {
				o.Progress(compacting, fmt.Sprintf("%d of %d", r.Looked, r.Total))
			}
		},
	})
	out.Compacted, out.CompactGain, out.CompactLeft, out.CompactBad = r.Packs, r.Freed(), r.Total-r.Looked, r.Damaged
	if errs.Is(err, errs.NoSpace) { // what was given back before is no failure for that
		out.CompactStop = err.Error()
		return nil
	}
	return err
}

// compactAge is how old a pack has to be for the node to compress it again by itself: what is young is read most, and may
// be removed soon.
const compactAge = 24 * time.Hour

func stageDetail(p collect.Progress) string {
	switch {
	case p.Stage == collect.Draining && p.Total == 1:
		return "1 is left"
	case p.Stage == collect.Draining:
		return fmt.Sprintf("%d are left", p.Total)
	case p.Total == 0:
		return ""
	}
	return fmt.Sprintf("%d of %d", p.Done, p.Total)
}

// collectObject is what a task works on that collects.
const collectObject = "store/collection"

// StartCollect implements api.Service.
func (n *Node) StartCollect(_ context.Context, s api.CollectSpec) (appliance.Task, error) {
	return n.begin(collectObject, appliance.Task{Kind: appliance.TaskCollect}, func(ctx context.Context, h *task.Handle) (map[string]any, error) {
		t := teller{h: h}
		r, err := Collect(ctx, n.store, CollectOptions{
			DryRun: s.DryRun, Compact: s.Compact, CompactAge: compactAge, Workers: max(1, runtime.GOMAXPROCS(0)/2),
			Continue: func() bool { return !n.workingBeside(collectObject) }, Progress: t.tell,
		})
		if err != nil {
			return nil, err
		}
		n.log.Info("space was given back", "bytes", r.Freed, "compacted", r.Compacted, "by_that", r.CompactGain, "packs", r.Removed, "shrunk", r.Shrunk, "dry", r.DryRun, "seconds", r.Seconds)
		return asResult(r)
	})
}

// collectLook is how often the node looks whether it is time for a collection, at most.
const collectLook = 10 * time.Minute

// collectByItself gives space back once in a while, when the node has nothing else to do; if that does not come to pass
// for too long, beside what it does.
func (n *Node) collectByItself(ctx context.Context) {
	every := n.o.CollectEvery
	var tried time.Time
	for {
		select {
		case <-time.After(min(every/10, collectLook)):
		case <-ctx.Done():
			return
		}
		last := n.store.Collected()
		if tried.After(last) {
			last = tried // one that failed is not tried again at once
		}
		if age := time.Since(last); age < every || age < 2*every && n.working() {
			continue
		}
		tried = time.Now()
		if _, err := n.StartCollect(ctx, api.CollectSpec{Compact: true}); err != nil && !errs.Is(err, errs.Busy) {
			n.log.Error("a collection cannot be started", "err", err)
		}
	}
}

// working tells whether any task runs.
func (n *Node) working() bool { return n.workingBeside("") }

// workingBeside tells whether any task runs but the one that works on an object.
func (n *Node) workingBeside(object string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for busy := range n.busy {
		if busy != object {
			return true
		}
	}
	return false
}

// teller makes steps of a collection's stages. It is told often, and passes on what a person can follow.
type teller struct {
	h     *task.Handle
	stage string
	last  time.Time
}

const tellEvery = 200 * time.Millisecond

func (t *teller) tell(stage, detail string) {
	if stage != t.stage {
		t.stage, t.last = stage, time.Time{}
		t.h.Step(stage)
	}
	if now := time.Now(); now.Sub(t.last) >= tellEvery {
		t.last = now
		t.h.Detail(detail)
	}
}

// asResult makes a task's result of a document.
func asResult(doc any) (map[string]any, error) {
	var out map[string]any
	b, err := json.Marshal(doc)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return nil, errs.New("encode result", "", errs.Bug, err)
	}
	return out, nil
}
