package disk

import (
	"io/fs"
	"sync/atomic"
)

// Faulty is a Disk that fails one chosen operation of the disk behind it. Operations are all calls on the disk and on
// its files except Close, counted from 0 in the order in which they begin. A test runs its subject with failAt = 0, 1,
// 2, … until a run no longer reaches the fault:
//
//	for n := 0; ; n++ {
//		d := disk.NewFaulty(under, n, err)
//		run(d)
//		if d.Ops() <= n {
//			break
//		}
//	}
//
// A write that fails leaves its first half behind. A Sync that fails behaves like Linux: the data is not durable and a
// later Sync through the same opening reports success all the same, without doing anything, so that over a Crash disk
// a caller that tries again loses data. Everything else that fails has not happened.
type Faulty struct {
	under   Disk
	failAt  int64
	err     error
	forever bool
	ops     atomic.Int64
}

var _ Disk = (*Faulty)(nil)

// NewFaulty returns d with its operation number failAt failing with err; none fails when failAt is negative.
func NewFaulty(d Disk, failAt int, err error) *Faulty {
	return &Faulty{under: d, failAt: int64(failAt), err: err}
}

// Forever makes every operation after the failing one fail too, and returns f. Call it before using f.
func (f *Faulty) Forever() *Faulty {
	f.forever = true
	return f
}

// Ops tells how many operations have begun.
func (f *Faulty) Ops() int { return int(f.ops.Load()) }

// step counts an operation and returns the error it must fail with.
func (f *Faulty) step() error {
	n := f.ops.Add(1) - 1
	if f.failAt >= 0 && (n == f.failAt || f.forever && n > f.failAt) {
		return f.err
	}
	return nil
}

func (f *Faulty) file(open func() (File, error)) (File, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	file, err := open()
	if err != nil {
		return nil, err
	}
	return &faultyFile{File: file, disk: f}, nil
}

// Open implements Disk.
func (f *Faulty) Open(name string) (File, error) {
	return f.file(func() (File, error) { return f.under.Open(name) })
}

// OpenRW implements Disk.
func (f *Faulty) OpenRW(name string) (File, error) {
	return f.file(func() (File, error) { return f.under.OpenRW(name) })
}

// Create implements Disk.
func (f *Faulty) Create(name string) (File, error) {
	return f.file(func() (File, error) { return f.under.Create(name) })
}

// Rename implements Disk.
func (f *Faulty) Rename(oldName, newName string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.under.Rename(oldName, newName)
}

// Remove implements Disk.
func (f *Faulty) Remove(name string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.under.Remove(name)
}

// MkdirAll implements Disk.
func (f *Faulty) MkdirAll(name string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.under.MkdirAll(name)
}

// ReadDir implements Disk.
func (f *Faulty) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.step(); err != nil {
		return nil, err
	}
	return f.under.ReadDir(name)
}

// SyncDir implements Disk.
func (f *Faulty) SyncDir(name string) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.under.SyncDir(name)
}

type faultyFile struct {
	File
	disk *Faulty
	lost atomic.Bool // a Sync failed: later ones lie
}

// ReadAt implements io.ReaderAt.
func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.disk.step(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

// WriteAt implements io.WriterAt.
func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.step(); err != nil {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, err
	}
	return f.File.WriteAt(p, off)
}

// Sync implements File.
func (f *faultyFile) Sync() error {
	if err := f.disk.step(); err != nil {
		f.lost.Store(true)
		return err
	}
	if f.lost.Load() {
		return nil
	}
	return f.File.Sync()
}

// Truncate implements File.
func (f *faultyFile) Truncate(size int64) error {
	if err := f.disk.step(); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Size implements Sizer.
func (f *faultyFile) Size() (int64, error) {
	if err := f.disk.step(); err != nil {
		return 0, err
	}
	return Size(f.File)
}

// Occupied implements Occupier.
func (f *faultyFile) Occupied() (int64, int, error) {
	if err := f.disk.step(); err != nil {
		return 0, 0, err
	}
	return Occupied(f.File)
}

// Punch implements Puncher. All disks here have files that can.
func (f *faultyFile) Punch(off, n int64) error {
	if err := f.disk.step(); err != nil {
		return err
	}
	return f.File.(Puncher).Punch(off, n)
}
