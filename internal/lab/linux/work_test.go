package linux_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/lab/fsx"
)

// Work is what the tests have the guest do. Its methods are called over the line.
type Work struct {
	mu      sync.Mutex // guards writers
	writers map[string]*writing
}

// writing is a writer's state, which is there before it begins for those who wait for it.
type writing struct {
	blocks atomic.Int64
	end    atomic.Bool // it shall end with the round that it is in
}

func newWork() *Work { return &Work{writers: map[string]*writing{}} }

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
// over and over until Rounds are done or, with 0 Rounds, until End is called. What block n holds after a round is told by
// content.
type WriteArgs struct {
	Name   string // for Await and End
	Path   string
	Direct bool
	Block  int
	Blocks int
	Rounds int
	// SyncEvery is after how many blocks a buffered writer syncs; a direct one needs not.
	SyncEvery int
	// Retry has a block written again if that failed, as a VM does that goes on after a disk error.
	Retry bool
}

// WriteReply says what happened to a writer. Slowest is the longest that one write or sync took.
type WriteReply struct {
	Written  int64 // blocks
	Rounds   int
	Failures int // that were made good
	Slowest  time.Duration
}

// maxFailures is how often a writer tries again.
const maxFailures = 5

// content is what a block holds after a round.
func content(block, round, size int) []byte {
	return random(uint64(round)<<32|uint64(block), size)
}

// Write runs a writer. It keeps the file open all the time, and so the handle that the server gave out.
func (w *Work) Write(a WriteArgs, r *WriteReply) error {
	state := w.state(a.Name)
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
			return fmt.Errorf("%s after %d blocks, %s: %w", what, r.Written, time.Since(begun), err)
		}
		return nil
	}
	for round := 0; round < a.Rounds || a.Rounds == 0 && !state.end.Load(); round++ {
		for n := range a.Blocks {
			copy(p, content(n, round, a.Block))
			write := func() error { _, err := f.WriteAt(p, int64(n)*int64(a.Block)); return err }
			err := timed("write", write)
			for ; err != nil && a.Retry && r.Failures < maxFailures; err = timed("write again", write) {
				r.Failures++
			}
			if err == nil && !a.Direct && n%a.SyncEvery == a.SyncEvery-1 {
				err = timed("sync", f.Sync)
			}
			if err != nil {
				return err
			}
			r.Written = state.blocks.Add(1)
		}
		r.Rounds++
	}
	return timed("the last sync", f.Sync)
}

func (w *Work) state(name string) *writing {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writers[name] == nil {
		w.writers[name] = &writing{}
	}
	return w.writers[name]
}

// End has a writer end with the round that it is in.
func (w *Work) End(name string, _ *struct{}) error {
	w.state(name).end.Store(true)
	return nil
}

// Blocks returns how many blocks a writer has written.
func (w *Work) Blocks(name string, blocks *int64) error {
	*blocks = w.state(name).blocks.Load()
	return nil
}

// AwaitArgs name a writer and how many blocks it shall have written.
type AwaitArgs struct {
	Name   string
	Blocks int64
}

// Await returns when a writer has got that far.
func (w *Work) Await(a AwaitArgs, _ *struct{}) error {
	blocks := &w.state(a.Name).blocks
	for late := time.Now().Add(2 * time.Minute); blocks.Load() < a.Blocks; <-time.After(5 * time.Millisecond) {
		if time.Now().After(late) {
			return fmt.Errorf("the writer is still at block %d", blocks.Load())
		}
	}
	return nil
}

// Check reads what a writer wrote past any page cache, and returns the number of the first block that is not as the last
// round left it, or -1.
func (*Work) Check(a WriteArgs, wrong *int) error {
	f, err := os.OpenFile(a.Path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	*wrong = -1
	p := page(a.Block)
	for n := range a.Blocks {
		if _, err := f.ReadAt(p, int64(n)*int64(a.Block)); err != nil {
			return err
		}
		if !bytes.Equal(p, content(n, a.Rounds-1, a.Block)) {
			*wrong = n
			return nil
		}
	}
	return nil
}

// Folder makes a folder.
func (*Work) Folder(path string, _ *struct{}) error { return os.MkdirAll(path, 0o755) }

// EndProgram ends all processes of a program.
func (*Work) EndProgram(program string, _ *struct{}) error {
	found, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return err
	}
	ended := 0
	for _, exe := range found {
		if is, err := os.Readlink(exe); err != nil || is != program {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
		if err != nil {
			return err
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err
		}
		ended++
	}
	if ended == 0 {
		return fmt.Errorf("no %s runs", program)
	}
	return nil
}
