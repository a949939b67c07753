// Package handle names nodes to NFS clients and knows which exports there are.
//
// Terms. An Export is a tree offered to named clients under a path. A handle is the opaque name a client keeps for a
// node, for months if its mount lives that long. A Table holds the exports of one server and makes and reads handles.
//
// What holds:
//
//  1. A handle names its export and its node and nothing else: no memory stands behind it, so a server with the same
//     key and the same exports understands it after a restart.
//  2. A handle that this key did not make is answered BADHANDLE; one whose export is gone, STALE.
//  3. Every use of a handle is checked against its export's allow list: having learnt a handle opens nothing.
//
// Layout of a handle, 24 bytes, big endian; never change:
//
//	0  1  version, 1
//	1  3  zero
//	4  4  export ID
//	8  8  node ID (fs.ID)
//	16 8  the first 8 bytes of AES-128 over bytes 0 to 15
//
// One AES block is a sound MAC for messages of exactly one block, and costs less than a map lookup. The key is derived
// from Options.Key with SHA-256, so that the same key may serve other purposes.
//
// Concurrency: the exports are an immutable map behind an atomic pointer; calls never wait for Add or Remove.
//
// Tests: layout vectors, forgeries at every bit, a fuzz target, allow lists with IPv4, IPv6 and 4-in-6 addresses.
package handle

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	nfs "github.com/willscott/go-nfs"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Len is the length of every handle in bytes. Never change.
const Len = 24

const version = 1

// Max is the longest handle a client may send (RFC 1813, section 2.4).
const Max = nfs.FHSize

// Export is a tree offered to named clients.
type Export struct {
	// Path is what clients mount: absolute and clean.
	Path string
	// ID is part of every handle and of the file system id that clients see. It must not change as long as any client
	// has the export mounted, and must not be used for another tree.
	ID   uint32
	Tree fs.Tree
	// Allow lists the clients; an empty list allows nobody.
	Allow    []netip.Prefix
	ReadOnly bool
}

// Allows tells whether a client may use the export.
func (e *Export) Allows(peer netip.Addr) bool {
	peer = peer.Unmap().WithZone("")
	for _, p := range e.Allow {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// Entry is an export in a table, with what the server remembers of it.
type Entry struct {
	Export
	verifier atomic.Uint64
}

// FSID returns the file system id in every attribute of the export: never 0, the same after a restart.
func (e *Entry) FSID() uint64 { return 0x4846<<48 | uint64(e.ID) }

// Verifier returns the write verifier: as long as it stays the same, unstable writes are not lost.
func (e *Entry) Verifier() uint64 { return e.verifier.Load() }

// Lost changes the write verifier: clients send again what they have not committed.
func (e *Entry) Lost() { e.verifier.Add(1) }

// Table is the set of exports of one server.
type Table struct {
	block cipher.Block
	boot  uint64

	mu      sync.Mutex // serializes changes
	exports atomic.Pointer[exports]
}

type exports struct {
	byID   map[uint32]*Entry
	byPath map[string]*Entry
}

// NewTable returns an empty table. Handles made under one key are understood by every table with the same key. An
// empty key means a random one.
func NewTable(key []byte) (*Table, error) {
	if len(key) == 0 {
		key = make([]byte, 32)
		_, _ = rand.Read(key) // never fails
	}
	h := sha256.New()
	_, _ = h.Write([]byte("holdfast nfs handle 1\x00")) // a hash never fails
	_, _ = h.Write(key)
	block, err := aes.NewCipher(h.Sum(nil)[:16])
	if err != nil {
		return nil, errs.New("make the handle key", "", errs.Bug, err)
	}
	var boot [8]byte
	_, _ = rand.Read(boot[:])
	t := &Table{block: block, boot: binary.BigEndian.Uint64(boot[:])}
	t.exports.Store(&exports{byID: map[uint32]*Entry{}, byPath: map[string]*Entry{}})
	return t, nil
}

// Add offers an export. Path and ID must be free.
func (t *Table) Add(e Export) error {
	const op = "add export"
	if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || len(e.Path) > nfs.MntPathLen {
		return errs.Text(op, e.Path, errs.Invalid, "the path is not absolute and clean, or too long")
	}
	if e.Tree == nil {
		return errs.Text(op, e.Path, errs.Invalid, "there is no tree")
	}
	e.Allow = slices.Clone(e.Allow)
	for i, p := range e.Allow {
		if !p.IsValid() {
			return errs.Text(op, e.Path, errs.Invalid, "an allowed network is not valid")
		}
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return errs.Text(op, e.Path, errs.Invalid, "an allowed network mixes IPv4 and IPv6: "+p.String())
			}
			e.Allow[i] = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.exports.Load()
	if old.byPath[e.Path] != nil {
		return errs.Text(op, e.Path, errs.Exists, "the path is exported already")
	}
	if old.byID[e.ID] != nil {
		return errs.Text(op, e.Path, errs.Exists, "the export ID is taken by "+old.byID[e.ID].Path)
	}
	entry := &Entry{Export: e}
	entry.verifier.Store(t.boot)
	next := &exports{byID: maps.Clone(old.byID), byPath: maps.Clone(old.byPath)}
	next.byID[e.ID], next.byPath[e.Path] = entry, entry
	t.exports.Store(next)
	return nil
}

// Remove takes an export away; its handles become stale. Calls that run may still finish.
func (t *Table) Remove(p string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.exports.Load()
	e := old.byPath[p]
	if e == nil {
		return errs.Text("remove export", p, errs.NotFound, "there is no such export")
	}
	next := &exports{byID: maps.Clone(old.byID), byPath: maps.Clone(old.byPath)}
	delete(next.byID, e.ID)
	delete(next.byPath, p)
	t.exports.Store(next)
	return nil
}

// List returns the exports sorted by path.
func (t *Table) List() []*Entry {
	return slices.SortedFunc(maps.Values(t.exports.Load().byPath), func(a, b *Entry) int {
		return strings.Compare(a.Path, b.Path)
	})
}

// Known tells whether any export allows the client.
func (t *Table) Known(peer netip.Addr) bool {
	for _, e := range t.exports.Load().byID {
		if e.Allows(peer) {
			return true
		}
	}
	return false
}

// Match finds the export that holds a path, and the rest of the path below the export's root.
func (t *Table) Match(p string) (e *Entry, rest string, ok bool) {
	if !path.IsAbs(p) {
		return nil, "", false
	}
	x := t.exports.Load()
	p = path.Clean(p)
	for at := p; ; at = path.Dir(at) {
		if e := x.byPath[at]; e != nil {
			return e, strings.TrimPrefix(p[len(at):], "/"), true
		}
		if at == "/" {
			return nil, "", false
		}
	}
}

// Append appends the handle of a node.
func (t *Table) Append(out []byte, e *Entry, id fs.ID) []byte {
	at := len(out)
	out = append(out, version, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, e.ID)
	out = binary.BigEndian.AppendUint64(out, uint64(id))
	out = binary.BigEndian.AppendUint64(out, 0) // room for the cipher's whole block
	out = binary.BigEndian.AppendUint64(out, 0)
	t.block.Encrypt(out[at+16:at+32], out[at:at+16])
	return out[:at+Len]
}

// Parse reads a handle and checks that the client may use it. The statuses are StatusBadHandle, StatusStale,
// StatusAccess and StatusOK.
func (t *Table) Parse(h []byte, peer netip.Addr) (*Entry, fs.ID, fs.Status) {
	if len(h) != Len || h[0] != version || h[1]|h[2]|h[3] != 0 {
		return nil, 0, fs.StatusBadHandle
	}
	var mac [16]byte
	t.block.Encrypt(mac[:], h[:16])
	if subtle.ConstantTimeCompare(mac[:8], h[16:]) != 1 {
		return nil, 0, fs.StatusBadHandle
	}
	e := t.exports.Load().byID[binary.BigEndian.Uint32(h[4:])]
	if e == nil {
		return nil, 0, fs.StatusStale
	}
	if !e.Allows(peer) {
		return nil, 0, fs.StatusAccess
	}
	return e, fs.ID(binary.BigEndian.Uint64(h[8:])), fs.StatusOK
}
