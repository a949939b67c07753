// Package fsx does to one file all that programs do to files, in an order of chance, and compares every byte that it
// reads with a model in memory. It finds what single operations do not show: a stale page after a direct write, a hole
// that is not zero, bytes that come back behind a truncation.
//
// Terms. An operation is one system call (or a few) on the file and the same on the model. A mode says through which
// descriptors: with the page cache, past it (O_DIRECT), or both in turn.
//
// The file begins as it is: what it holds at first is read and becomes the model, so that a disk with content can be
// used, and a caller who knows the content compares it before. A run depends on its seed and options alone. When a byte
// is wrong the error says which, and tells the last operations that touched it.
//
// Tests run it on a file system that is right, and on one that is made wrong in a known way.
package fsx

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Mode says through which descriptors a run works.
type Mode string

// The modes.
const (
	Buffered Mode = "buffered" // with the page cache, memory maps included
	Direct   Mode = "direct"   // O_DIRECT only
	Both     Mode = "both"     // either, in turn
)

// Options say what a run does.
type Options struct {
	Path       string // an existing file
	Mode       Mode
	Seed       uint64
	Operations int
	// MaxSize bounds the file in bytes. MaxLength bounds one operation; 0 is 256 KiB.
	MaxSize, MaxLength int64
	// KeepSize leaves the size alone: no truncations and no writes behind the end, as of a disk.
	KeepSize bool
	// Align makes every offset and length of direct operations a multiple of it; 0 is 1, which NFS takes.
	Align int64
	// Step is called before each operation, if not nil.
	Step func(number int)
}

// Report counts what a run did.
type Report struct {
	Operations   map[string]int
	BytesRead    int64
	BytesWritten int64
	Size         int64 // of the file at the end
}

// keptLog is how many operations are remembered for the message of a failure.
const keptLog = 400

// op is one operation in the log.
type op struct {
	number      int
	name        string
	off, length int64
}

func (o op) String() string {
	return fmt.Sprintf("%d: %s %#x +%#x", o.number, o.name, o.off, o.length)
}

// run is one run.
type run struct {
	o        Options
	random   *rand.Rand
	model    []byte // what the file has to hold
	buffered *os.File
	direct   *os.File
	scratch  []byte // page-aligned, for O_DIRECT
	near     int64  // where the last operation was
	log      []op
	report   Report
}

// Run does a run. errs.Corrupt: the file did not hold what it had to; other errors are of operations that failed.
func Run(o Options) (Report, error) {
	if o.MaxLength == 0 {
		o.MaxLength = 256 << 10
	}
	if o.Align == 0 {
		o.Align = 1
	}
	r := &run{o: o, random: rand.New(rand.NewPCG(o.Seed, 0)), report: Report{Operations: map[string]int{}}}
	err := r.all()
	r.report.Size = int64(len(r.model))
	if err != nil {
		return r.report, errs.New("check", o.Path, errs.KindOf(err), fmt.Errorf("mode %s, seed %d: %w", o.Mode, o.Seed, err))
	}
	return r.report, nil
}

func (r *run) all() (err error) {
	// Mapped memory, since that begins with a page.
	if r.scratch, err = unix.Mmap(-1, 0, int(r.o.MaxLength), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(r.scratch) }() // it is ours
	if r.model, err = os.ReadFile(r.o.Path); err != nil {
		return err
	}
	if int64(len(r.model)) > r.o.MaxSize {
		return errs.Text("use", r.o.Path, errs.Invalid, "it is larger than MaxSize")
	}
	if err := r.open(); err != nil {
		return err
	}
	defer func() {
		if cerr := r.close(); err == nil {
			err = cerr
		}
	}()
	for n := range r.o.Operations {
		if r.o.Step != nil {
			r.o.Step(n)
		}
		if err := r.step(n); err != nil {
			return fmt.Errorf("operation %s: %w", r.last(), err)
		}
	}
	return r.compareAll()
}

func (r *run) open() (err error) {
	if r.o.Mode != Direct {
		if r.buffered, err = os.OpenFile(r.o.Path, os.O_RDWR, 0); err != nil {
			return err
		}
	}
	if r.o.Mode != Buffered {
		r.direct, err = os.OpenFile(r.o.Path, os.O_RDWR|unix.O_DIRECT, 0)
	}
	return err
}

// close closes what is open. Closing is when NFS tells of writes that failed.
func (r *run) close() (err error) {
	for _, f := range []**os.File{&r.buffered, &r.direct} {
		if *f != nil {
			if cerr := (*f).Close(); err == nil {
				err = cerr
			}
			*f = nil
		}
	}
	return err
}

// file chooses a descriptor.
func (r *run) file() (f *os.File, direct bool) {
	if r.buffered == nil || r.direct != nil && r.random.IntN(2) == 0 {
		return r.direct, true
	}
	return r.buffered, false
}

// note writes an operation down before it is done.
func (r *run) note(number int, name string, off, length int64) {
	if len(r.log) >= 2*keptLog {
		r.log = append(r.log[:0], r.log[keptLog:]...)
	}
	r.log = append(r.log, op{number, name, off, length})
	r.report.Operations[name]++
}

func (r *run) last() string {
	if len(r.log) == 0 {
		return "none"
	}
	return r.log[len(r.log)-1].String()
}

// compare looks whether what was read is what the model has at off.
func (r *run) compare(got []byte, off int64) error {
	want := r.model[off : off+int64(len(got))]
	if bytes.Equal(got, want) {
		return nil
	}
	first := 0
	for got[first] == want[first] {
		first++
	}
	wrong := 0
	for i := range got {
		if got[i] != want[i] {
			wrong++
		}
	}
	at := off + int64(first)
	return errs.Text("compare", "", errs.Corrupt, fmt.Sprintf("byte %#x is %#02x and should be %#02x; %d of %d bytes from %#x on are wrong.\nOperations that touched it:\n%s",
		at, got[first], want[first], wrong, len(got), off, r.touched(at)))
}

// touched tells the last operations on a byte.
func (r *run) touched(at int64) string {
	var lines []string
	for _, o := range r.log {
		resized := strings.HasPrefix(o.name, "truncate") && at >= min(o.off, o.off+o.length)
		if resized || at >= o.off && at < o.off+o.length || o.length == 0 && o.name != "truncate" {
			lines = append(lines, "  "+o.String())
		}
	}
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// compareAll reads the whole file anew and compares it.
func (r *run) compareAll() error {
	if err := r.close(); err != nil {
		return err
	}
	if err := r.open(); err != nil {
		return err
	}
	if err := r.checkSize(); err != nil {
		return err
	}
	for off := int64(0); off < int64(len(r.model)); off += r.o.MaxLength {
		f, _ := r.file()
		length := min(r.o.MaxLength, int64(len(r.model))-off)
		r.note(r.o.Operations, "last read", off, length)
		if err := r.readAt(f, off, length); err != nil {
			return err
		}
	}
	return nil
}
