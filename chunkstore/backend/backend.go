// Package backend is what the chunk store needs of the place its objects lie in. It fits a local folder
// (backend/local) and S3-compatible objects: names are never overwritten, there is no rename, reads are ranged.
//
// Objects are of two sorts. A small one (superblock, key, point record) appears whole with Put. A long one (pack) is
// appended front to back; what Sync has covered survives a crash, and Seal makes it an object like any other. A long
// object that was never sealed is listed with Sealed false: the store's recovery decides what becomes of it.
//
// Names are slash-separated, of [a-z0-9._-], at most 200 bytes. The suite in chunkstore/storetest holds an
// implementation to all of this.
package backend

import (
	"context"
	"io"
)

// Info describes an object.
type Info struct {
	Name     string
	Size     int64 // bytes
	Occupied int64 // bytes it takes where it lies: less than Size once space of it was given back
	Sealed   bool
}

// Object is an open object. ReadAt is as io.ReaderAt and may be called concurrently.
type Object interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Appender writes a long object. It is used by one goroutine. After any error but of Close it is poisoned: every later
// call fails, nothing is retried.
type Appender interface {
	// Write appends all of p.
	io.Writer
	// Sync makes everything appended so far durable.
	Sync() error
	// Seal makes the object durable, complete and immutable, and closes it.
	Seal() error
	// Close gives up without sealing; what Sync covered stays for recovery. After Seal it does nothing.
	Close() error
}

// Backend keeps objects.
type Backend interface {
	// Put makes a small object, durably and all at once. errs.Exists if the name is taken.
	Put(ctx context.Context, name string, data []byte) error
	// Append begins a long object. errs.Exists if the name is taken, sealed or not.
	Append(ctx context.Context, name string) (Appender, error)
	// Open opens a sealed object or a small one, or an unsealed one for recovery. errs.NotFound if there is none.
	Open(ctx context.Context, name string) (Object, error)
	// List returns the objects whose names begin with prefix, sorted by name.
	List(ctx context.Context, prefix string) ([]Info, error)
	// Remove deletes an object, sealed or not, durably. errs.NotFound if there is none.
	Remove(ctx context.Context, name string) error
}

// Resumer is implemented by backends on which recovery can finish an unsealed object in place.
type Resumer interface {
	// Resume cuts the unsealed object to keep bytes and continues it behind them.
	Resume(ctx context.Context, name string, keep int64) (Appender, error)
}

// Replacer is implemented by backends on which the few small objects that may change (the wrapped key after a change
// of passphrase) can be replaced atomically and durably.
type Replacer interface {
	Replace(ctx context.Context, name string, data []byte) error
}

// Sweeper is implemented by backends where a Put that was cut short leaves something behind that has no name.
type Sweeper interface {
	// Sweep takes that away below a folder. Only the one writer may call it, while no Put runs.
	Sweep(ctx context.Context, folder string) error
}

// Range is a stretch of an object in bytes.
type Range struct{ Off, Len int64 }

// Reclaimer is implemented by backends that can give back space of a sealed object without making it anew.
type Reclaimer interface {
	// CanPunch fails with errs.Unsupported if Punch would not free space of the object, or would change what is not ours.
	CanPunch(ctx context.Context, name string) error
	// Punch gives back ranges of a sealed object, durably, and returns how many bytes it takes less. The ranges read as
	// zeros from then on; the size stays. After an error any part of them may have been given back.
	Punch(ctx context.Context, name string, ranges []Range) (freed int64, err error)
	// Discard is Remove for a sealed object that others may have open: its space is free at once, and they can read no
	// more of it. It returns how many bytes that was.
	Discard(ctx context.Context, name string) (freed int64, err error)
}
