package fsx

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// share is how often a kind of operation comes, of the sum of all.
type share struct {
	name  string
	times int
	do    func(r *run, number int) error
	// grows is of those that change the size, mapped of those that need a page cache.
	grows, mapped bool
}

var shares = []share{
	{name: "read", times: 30, do: (*run).read},
	{name: "write", times: 30, do: (*run).write},
	{name: "append", times: 6, do: (*run).extend, grows: true},
	{name: "truncate", times: 4, do: (*run).truncate, grows: true},
	{name: "map read", times: 8, do: (*run).mapRead, mapped: true},
	{name: "map write", times: 8, do: (*run).mapWrite, mapped: true},
	{name: "sync", times: 4, do: (*run).sync},
	{name: "reopen", times: 3, do: (*run).reopen},
	{name: "forget", times: 3, do: (*run).forget, mapped: true},
	{name: "size", times: 4, do: (*run).size},
}

// step does one operation of chance.
func (r *run) step(number int) error {
	sum := 0
	for _, s := range shares {
		if r.allowed(s) {
			sum += s.times
		}
	}
	n := r.random.IntN(sum)
	for _, s := range shares {
		if !r.allowed(s) {
			continue
		}
		if n < s.times {
			return s.do(r, number)
		}
		n -= s.times
	}
	return nil
}

func (r *run) allowed(s share) bool {
	return !(s.grows && r.o.KeepSize) && !(s.mapped && r.buffered == nil)
}

// length is one of chance: half of them are of a page or less, where the edges are.
func (r *run) length(most int64) int64 {
	if most <= 1 {
		return most
	}
	if r.random.IntN(2) == 0 {
		most = min(most, 4096)
	}
	return 1 + r.random.Int64N(most)
}

// near is the neighbourhood in which most operations follow each other, in bytes.
const near = 64 << 10

// span is a range of chance below limit. For direct operations it is aligned, and may then be empty.
func (r *run) span(limit int64, direct bool) (off, length int64) {
	if limit == 0 {
		return 0, 0
	}
	off = r.random.Int64N(limit)
	if r.random.IntN(4) != 0 { // mostly where the last operations were: what one of them spoils another has to see
		off = min(max(0, r.near-near/2+r.random.Int64N(near)), limit-1)
	}
	if r.random.IntN(4) == 0 { // edges of pages, where most that goes wrong goes wrong
		off -= off % 4096
	}
	length = min(r.length(r.o.MaxLength), limit-off)
	if direct {
		off -= off % r.o.Align
		length = min(r.o.MaxLength, (length+r.o.Align-1)/r.o.Align*r.o.Align)
		if off+length > limit {
			length = (limit - off) / r.o.Align * r.o.Align
		}
	}
	r.near = off
	return off, length
}

func (r *run) read(number int) error {
	f, direct := r.file()
	off, length := r.span(int64(len(r.model)), direct)
	r.note(number, "read", off, length)
	return r.readAt(f, off, length)
}

func (r *run) readAt(f *os.File, off, length int64) error {
	n, err := io.ReadFull(io.NewSectionReader(f, off, length), r.scratch[:length])
	if err != nil {
		return fmt.Errorf("%d bytes came: %w", n, err)
	}
	r.report.BytesRead += length
	return r.compare(r.scratch[:length], off)
}

// fill makes bytes that tell where and when they were written.
func (r *run) fill(p []byte) {
	for i := 0; i < len(p); i += 8 {
		v := r.random.Uint64()
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(v)
			v >>= 8
		}
	}
}

func (r *run) write(number int) error {
	f, direct := r.file()
	limit := r.o.MaxSize
	if r.o.KeepSize {
		limit = int64(len(r.model))
	}
	off, length := r.span(limit, direct)
	return r.writeAt(f, number, off, length)
}

func (r *run) extend(number int) error {
	f, direct := r.file()
	off := int64(len(r.model))
	length := min(r.length(r.o.MaxLength), r.o.MaxSize-off)
	if direct {
		off -= off % r.o.Align
		length = length / r.o.Align * r.o.Align
	}
	return r.writeAt(f, number, off, length)
}

func (r *run) writeAt(f *os.File, number int, off, length int64) error {
	r.note(number, "write", off, length)
	if length == 0 {
		return nil
	}
	p := r.scratch[:length]
	r.fill(p)
	if _, err := f.WriteAt(p, off); err != nil {
		return err
	}
	if end := off + length; end > int64(len(r.model)) {
		r.resize(end)
	}
	copy(r.model[off:], p)
	r.report.BytesWritten += length
	return nil
}

// resize gives the model another size; what is new is zero.
func (r *run) resize(size int64) {
	if size <= int64(len(r.model)) {
		r.model = r.model[:size]
		return
	}
	r.model = append(r.model, make([]byte, size-int64(len(r.model)))...)
}

func (r *run) truncate(number int) error {
	f, _ := r.file()
	before := int64(len(r.model))
	size := r.random.Int64N(r.o.MaxSize + 1)
	if r.random.IntN(8) != 0 { // mostly a little less or more: otherwise little that was written would live to be read
		size = min(max(0, before-near+r.random.Int64N(2*near)), r.o.MaxSize)
	}
	r.note(number, "truncate", size, before-size)
	if err := f.Truncate(size); err != nil {
		return err
	}
	r.resize(size)
	return nil
}

// mapped does something with the bytes of the file in memory. With flush they are on their way to the file at the end.
func (r *run) mapped(off, length int64, flush bool, do func(p []byte) error) error {
	begin := off - off%int64(os.Getpagesize())
	m, err := unix.Mmap(int(r.buffered.Fd()), begin, int(off+length-begin), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	err = untilFault(func() error { return do(m[off-begin:]) })
	if err == nil && flush {
		err = os.NewSyscallError("msync", unix.Msync(m, unix.MS_SYNC))
	}
	if uerr := unix.Munmap(m); err == nil {
		err = os.NewSyscallError("munmap", uerr)
	}
	return err
}

// untilFault calls f and makes an error of a page that cannot be had, which the kernel answers with a signal.
func untilFault(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface { // of package runtime's errors only a fault of memory has it
			error
			Addr() uintptr
		}:
			err = errs.New("use the mapped file", "", errs.Corrupt, fault)
		default:
			panic(fault)
		}
	}()
	return f()
}

func (r *run) mapRead(number int) error {
	off, length := r.span(int64(len(r.model)), false)
	r.note(number, "map read", off, length)
	if length == 0 {
		return nil
	}
	r.report.BytesRead += length
	return r.mapped(off, length, false, func(p []byte) error { return r.compare(p, off) })
}

func (r *run) mapWrite(number int) error {
	off, length := r.span(int64(len(r.model)), false)
	r.note(number, "map write", off, length)
	if length == 0 {
		return nil
	}
	p := r.scratch[:length]
	r.fill(p)
	copy(r.model[off:], p)
	r.report.BytesWritten += length
	// What is not flushed the kernel writes when it likes, but not behind the back of direct operations.
	flush := r.direct != nil || r.random.IntN(2) == 0
	return r.mapped(off, length, flush, func(m []byte) error {
		copy(m, p)
		return nil
	})
}

func (r *run) sync(number int) error {
	f, _ := r.file()
	r.note(number, "sync", 0, 0)
	return f.Sync()
}

func (r *run) reopen(number int) error {
	r.note(number, "reopen", 0, 0)
	if err := r.close(); err != nil {
		return err
	}
	return r.open()
}

// forget has the kernel forget the pages, so that the next reads come from where the file lies.
func (r *run) forget(number int) error {
	r.note(number, "forget", 0, 0)
	if err := r.buffered.Sync(); err != nil {
		return err
	}
	return os.NewSyscallError("fadvise", unix.Fadvise(int(r.buffered.Fd()), 0, 0, unix.FADV_DONTNEED))
}

func (r *run) size(number int) error {
	r.note(number, "size", 0, 0)
	return r.checkSize()
}

func (r *run) checkSize() error {
	f, _ := r.file()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != int64(len(r.model)) {
		return errs.Text("look at the size", "", errs.Corrupt, fmt.Sprintf("it is %d and should be %d", info.Size(), len(r.model)))
	}
	return nil
}
