package linux_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/lab/fsx"
)

// Work is what the tests have the guest do. Its methods are called over the line.
type Work struct {
	mu      sync.Mutex // guards writers
	writers map[string]*atomic.Int64
}

func newWork() *Work { return &Work{writers: map[string]*atomic.Int64{}} }

// Fsx runs fsx.
func (*Work) Fsx(o fsx.Options, r *fsx.Report) (err error) {
	*r, err = fsx.Run(o)
	return err
}

// SumArgs say what to read: all of a file, in reads of Block bytes.
type SumArgs struct {
	Path   string
	Direct bool
	Block  int
}

// Sum returns a file's SHA-256 in hexadecimal digits.
func (*Work) Sum(a SumArgs, sum *string) error {
	flags := os.O_RDONLY
	if a.Direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(a.Path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	// Without the shortcuts of io.Copy, which would choose the block itself.
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, page(a.Block)); err != nil {
		return err
	}
	*sum = hex.EncodeToString(h.Sum(nil))
	return nil
}

// page returns memory for direct I/O: it begins with a page. It is never given back.
func page(size int) []byte {
	p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err) // the guest has the memory
	}
	return p
}

// PutArgs say what file to make: Size random bytes of Seed.
type PutArgs struct {
	Path string
	Seed uint64
	Size int
}

// Put makes a file.
func (*Work) Put(a PutArgs, _ *struct{}) error {
	return os.WriteFile(a.Path, random(a.Seed, a.Size), 0o644)
}

// random returns the bytes of a seed, the same here and in the guest.
func random(seed uint64, size int) []byte {
	p := make([]byte, size)
	var key [32]byte
	copy(key[:], fmt.Sprint(seed))
	_, _ = rand.NewChaCha8(key).Read(p) // it cannot fail
	return p
}

// WriteArgs say how a writer works: Blocks blocks of Block bytes, one after the other from the beginning of the file,
// over and over until Rounds are done. What block n holds after a round is told by content.
type WriteArgs struct {
	Name   string // for Progress
	Path   string
	Direct bool
	Block  int
	Blocks int
	Rounds int
	// SyncEvery is after how many blocks a buffered writer syncs; a direct one needs not.
	SyncEvery int
}

// WriteReply says what happened to a writer. Slowest is the longest that one write or sync took.
type WriteReply struct {
	Written int64 // blocks
	Slowest time.Duration
}

// content is what a block holds after a round.
func content(block, round, size int) []byte {
	return random(uint64(round)<<32|uint64(block), size)
}

// Write runs a writer. It keeps the file open all the time, and so the handle that the server gave out.
func (w *Work) Write(a WriteArgs, r *WriteReply) error {
	done := w.progress(a.Name)
	flags := os.O_RDWR
	if a.Direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(a.Path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p := page(a.Block)
	timed := func(what string, do func() error) error {
		begun := time.Now()
		err := do()
		r.Slowest = max(r.Slowest, time.Since(begun))
		if err != nil {
			return fmt.Errorf("%s after %d blocks, %s: %w", what, done.Load(), time.Since(begun), err)
		}
		return nil
	}
	for round := range a.Rounds {
		for n := range a.Blocks {
			copy(p, content(n, round, a.Block))
			err := timed("write", func() error { _, err := f.WriteAt(p, int64(n)*int64(a.Block)); return err })
			if err == nil && !a.Direct && n%a.SyncEvery == a.SyncEvery-1 {
				err = timed("sync", f.Sync)
			}
			if err != nil {
				return err
			}
			r.Written = done.Add(1)
		}
	}
	return timed("the last sync", f.Sync)
}

func (w *Work) progress(name string) *atomic.Int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writers[name] == nil {
		w.writers[name] = &atomic.Int64{}
	}
	return w.writers[name]
}

// AwaitArgs name a writer and how many blocks it shall have written.
type AwaitArgs struct {
	Name   string
	Blocks int64
}

// Await returns when a writer has got that far.
func (w *Work) Await(a AwaitArgs, _ *struct{}) error {
	done := w.progress(a.Name)
	for late := time.Now().Add(2 * time.Minute); done.Load() < a.Blocks; <-time.After(5 * time.Millisecond) {
		if time.Now().After(late) {
			return fmt.Errorf("the writer is still at block %d", done.Load())
		}
	}
	return nil
}
