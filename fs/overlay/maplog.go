package overlay

import (
	"io"
	"path"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	logName = "map.log"
	// logChunk is how much of the log is zero-filled ahead. Zeros that are written, not merely allocated: a later sync
	// then has neither a size nor an extent to record, only the data.
	logChunk = 128 << 10
	// compactMin is how many sectors are appended to a log before it is worth rewriting.
	compactMin = 8192
)

// mapLog is the open log. Only the overlay's worker uses it.
type mapLog struct {
	d       disk.Disk
	dir     string
	header  header
	f       disk.File
	end     int64 // first free sector
	filled  int64 // the file is this long, in sectors
	seq     uint64
	compact int64 // compact when end passes this

	// broken: an append failed for want of space and left an unknown part of itself behind, so nothing can be
	// appended before the log is rewritten.
	broken bool
}

// openLog reads an existing log and syncs it: what a killed process wrote but never synced counts from here on, so it
// must be on the disk before anything is built on it.
func openLog(d disk.Disk, dir string) (l *mapLog, c *logContent, err error) {
	name := path.Join(dir, logName)
	f, err := d.OpenRW(name)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	size, err := disk.Size(f)
	if err != nil {
		return nil, nil, err
	}
	c, err = readLog(&deviceReader{r: io.NewSectionReader(f, 0, size)})
	if err != nil {
		return nil, nil, logError(name, err)
	}
	l = &mapLog{
		d: d, dir: dir, header: c.header, f: f, end: c.end, filled: size / sectorSize, seq: c.seq, broken: c.torn,
	}
	l.planCompaction()
	return l, c, nil
}

// deviceError marks a failure of the disk below, which is not damage of what it holds.
type deviceError struct{ error }

func (e deviceError) Unwrap() error { return e.error }

type deviceReader struct{ r io.Reader }

func (d *deviceReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF {
		err = deviceError{err}
	}
	return n, err
}

func (l *mapLog) planCompaction() {
	l.compact = 1 + l.header.snapshotSectors + max(compactMin, 2*l.header.snapshotSectors)
}

// failure says whether the overlay may go on after an error of the log: not if the state of the log is unknown.
type failure struct {
	err   error
	fatal bool
}

// append writes one batch behind the others and syncs it.
func (l *mapLog) append(payload []byte) *failure {
	buf := appendSectors(make([]byte, 0, sectors(payload)*sectorSize), l.seq, payload)
	end := l.end + sectors(payload)
	if end > l.filled {
		filled := end + logChunk/sectorSize
		buf = append(buf, make([]byte, (filled-end)*sectorSize)...)
	}
	if _, err := l.f.WriteAt(buf, l.end*sectorSize); err != nil {
		l.broken = true
		return &failure{err, !errs.Is(err, errs.NoSpace)}
	}
	if err := l.f.Sync(); err != nil {
		return &failure{err, true}
	}
	l.filled = max(l.filled, l.end+int64(len(buf))/sectorSize)
	l.end, l.seq = end, l.seq+1
	return nil
}

// rewrite replaces the log by a snapshot of the state. The old log stays valid until the new one is in its place; an
// error that is not fatal means that it still is.
func (l *mapLog) rewrite(snapshot [][]byte) *failure {
	name := path.Join(l.dir, logName)
	tmp := name + disk.TempSuffix
	n := &mapLog{d: l.d, dir: l.dir, header: l.header, end: 1, seq: 1}
	n.header.snapshotSectors = 0
	for _, p := range snapshot {
		n.header.snapshotSectors += sectors(p)
	}
	if err := n.publish(tmp, name, snapshot); err != nil {
		if n.f != nil {
			_ = n.f.Close()
		}
		_ = l.d.Remove(tmp) // best effort: the next attempt and Open remove it too
		return &failure{err, false}
	}
	if l.f != nil {
		_ = l.f.Close()
	}
	*l = *n
	if err := l.d.SyncDir(l.dir); err != nil {
		return &failure{err, true} // either log may be there after a crash, and only the new one knows what follows
	}
	return nil
}

// publish writes a whole log and renames it into place.
func (l *mapLog) publish(tmp, name string, snapshot [][]byte) (err error) {
	if err := l.d.Remove(tmp); err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	if l.f, err = l.d.Create(tmp); err != nil {
		return err
	}
	if _, err := l.f.WriteAt(l.header.encode(), 0); err != nil {
		return err
	}
	for _, p := range snapshot {
		if _, err := l.f.WriteAt(appendSectors(nil, l.seq, p), l.end*sectorSize); err != nil {
			return err
		}
		l.end, l.seq = l.end+sectors(p), l.seq+1
	}
	if _, err := l.f.WriteAt(make([]byte, logChunk), l.end*sectorSize); err != nil {
		return err
	}
	l.filled = l.end + logChunk/sectorSize
	if err := l.f.Sync(); err != nil {
		return err
	}
	l.planCompaction()
	return l.d.Rename(tmp, name)
}
