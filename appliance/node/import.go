package node

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/imagefile"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ImportOptions say what Import reads and as what it is kept.
type ImportOptions struct {
	File     string
	Format   imagefile.Format
	VM       string
	Disk     int
	Now      time.Time
	Note     func(string)         // what a person should know, a sentence each; may be nil
	Progress func(ImportProgress) // may be nil; is called often
}

// ImportProgress is told while an import runs.
type ImportProgress struct {
	SizeBytes int64 // of the disk
	DoneBytes int64 // of the disk, from its start
	ReadBytes int64 // really read from the file
	Stats     chunkstore.Stats
}

// ImportResult says what an import did. Field names are the command line's JSON.
type ImportResult struct {
	Point       string  `json:"point"`
	VM          string  `json:"vm"`
	Disk        int     `json:"disk"`
	Parent      string  `json:"parent,omitempty"`
	Incremental bool    `json:"incremental"` // a dirty bitmap said what to read
	SizeBytes   int64   `json:"size_bytes"`
	DataBytes   int64   `json:"data_bytes"`   // of the disk that are not zeros, at the grain of chunks
	ReadBytes   int64   `json:"read_bytes"`   // really read from the file
	NewBytes    int64   `json:"new_bytes"`    // of chunks not seen before, uncompressed
	KnownBytes  int64   `json:"known_bytes"`  // read, and found to be in the store
	StoredBytes int64   `json:"stored_bytes"` // added on disk, all files
	DedupRatio  float64 `json:"dedup_ratio"`  // the point's data over what it added
	Seconds     float64 `json:"seconds"`
}

// Import keeps the disk in an image file as a new restore point. Its parent is the last point of the machine that holds
// the disk; what equals it is shared.
func Import(ctx context.Context, s *chunkstore.Store, o ImportOptions) (*ImportResult, error) {
	if err := checkImport(o); err != nil {
		return nil, err
	}
	began := time.Now()
	src, err := imagefile.Open(o.File, o.Format)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	points, bad := s.Points(ctx)
	for _, err := range bad {
		note(o.Note, "A point cannot be read and is passed over: "+err.Error()+".")
	}
	res := &ImportResult{VM: o.VM, Disk: o.Disk, SizeBytes: src.Size()}
	parent, err := chooseParent(src, LastHolding(points, o.VM, o.Disk), o, res)
	if err != nil {
		return nil, err
	}
	indexBefore, err := s.IndexBytes()
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(o.File)
	if err != nil {
		return nil, errs.Wrap("import disk", o.File, err)
	}
	labels := map[string]string{
		appliance.LabelVM: o.VM, appliance.LabelStrategy: appliance.StrategyImport, appliance.LabelSource: abs,
	}
	if res.Parent != "" {
		labels[appliance.LabelParent] = res.Parent
	}
	x := s.Begin(o.Now, labels, nil)
	defer x.Abort()
	err = x.Ingest(ctx, o.Disk, src, parent, func(p chunkstore.Progress) {
		if o.Progress != nil {
			o.Progress(ImportProgress{src.Size(), p.DoneBytes, src.ReadBytes(), p.Stats})
		}
	})
	// A file that changed explains every other failure, so that is what is told.
	if changed := src.Unchanged(); changed != nil && ctx.Err() == nil {
		err = changed
	}
	if err != nil {
		return nil, errs.Wrap("import disk", o.File, err)
	}
	p, err := x.Commit(ctx)
	if err != nil {
		return nil, errs.Wrap("import disk", o.File, err)
	}
	indexAfter, err := s.IndexBytes()
	if err != nil {
		return nil, err
	}
	st := x.Stats()
	res.Point, res.ReadBytes, res.DataBytes = string(p.ID), src.ReadBytes(), p.Disks[0].Root.Data
	res.NewBytes, res.KnownBytes = st.NewBytes, st.KnownBytes
	res.StoredBytes = st.StoredBytes + max(0, indexAfter-indexBefore)
	if res.StoredBytes > 0 {
		res.DedupRatio = float64(res.DataBytes) / float64(res.StoredBytes)
	}
	res.Seconds = time.Since(began).Seconds()
	return res, nil
}

func checkImport(o ImportOptions) error {
	bad := func(why string) error { return errs.Text("import disk", o.File, errs.Invalid, why) }
	switch {
	case o.VM == "":
		return bad("no machine was named: use --vm NAME")
	case !goodName(o.VM):
		return bad("a machine's name is at most 200 bytes long and has no control characters")
	case o.Disk < 0 || o.Disk > 999:
		return bad("disks are numbered from 0 to 999")
	}
	return nil
}

// goodName tells whether a machine may be called so.
func goodName(vm string) bool {
	return len(vm) <= 200 && !strings.ContainsFunc(vm, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func note(f func(string), s string) {
	if f != nil {
		f(s)
	}
}

// chooseParent decides what the disk is compared with, and whether a bitmap tells what changed.
func chooseParent(src *imagefile.Source, last *chunkstore.Point, o ImportOptions, res *ImportResult) (*chunkstore.Parent, error) {
	if last == nil {
		return nil, nil
	}
	d, err := last.Disk(o.Disk)
	if err != nil {
		return nil, err
	}
	res.Parent = string(last.ID)
	used, why, err := src.UseBitmap(last.ID, d.Root.Size)
	if err != nil {
		return nil, err
	}
	if res.Incremental = used; used {
		note(o.Note, "Reading only what the bitmap "+imagefile.BitmapName(last.ID)+" records as changed.")
	} else {
		note(o.Note, "Reading all data, storing what differs: "+why+".")
	}
	return &chunkstore.Parent{Point: last, Disk: d}, nil
}
