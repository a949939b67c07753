// Package catalog is what the node knows and must not forget: managers, tasks, runs, sessions, restores, and with them the journal
// of every object it made on an engine. Restore points are not here: the store describes itself, and losing the catalog
// loses no backup.
//
// A document is a JSON value under a kind and an ID, kept in one file (<dir>/<kind>/<id>.json), replaced atomically and
// durably. That is enough: there are thousands of documents, not millions, each is changed by one owner, and a person
// can read them at 3 a.m. with less (docs/adr/0002).
//
// Invariants: Put returns after the document is durable, so what is put before a request to an engine is known after any
// crash; a document is either the old one or the new one, never a mix; a damaged document is reported by name and hides
// no other. All methods may be called concurrently; two writers of one document are the caller's mistake.
//
// Tested with crash clones at every sync and the n-th operation failing for every n.
package catalog

import (
	"encoding/json"
	"path"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Kind is a sort of document; it is the name of a folder.
type Kind string

// The kinds of documents. They never change.
const (
	Managers Kind = "managers"
	Tasks    Kind = "tasks"
	Runs     Kind = "runs"
	Sessions Kind = "sessions"
	Restores Kind = "restores"
)

// Kinds lists every kind.
var Kinds = [...]Kind{Managers, Tasks, Runs, Sessions, Restores}

// one is the kind's name for people, of one document.
func (k Kind) one() string { return strings.TrimSuffix(string(k), "s") }

// maxDocument bounds a document in bytes: a VM's configuration is tens of KiB.
const maxDocument = 8 << 20

// Catalog is an open catalog.
type Catalog struct {
	d   disk.Disk
	dir string
	mu  sync.Mutex // one Publish of a name at a time (see disk.Publish); held during I/O of small files only
}

// Open opens the catalog in a folder, and makes it if need be.
func Open(d disk.Disk, dir string) (*Catalog, error) {
	for _, k := range Kinds {
		if err := d.MkdirAll(path.Join(dir, string(k))); err != nil {
			return nil, errs.Wrap("open catalog", dir, err)
		}
	}
	return &Catalog{d: d, dir: dir}, nil
}

// file returns where a document lies. An ID comes from us or from a person; as a file name it is harmless or refused.
func (c *Catalog) file(kind Kind, id string) (string, error) {
	if id == "" || len(id) > 128 || strings.HasPrefix(id, ".") || strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) {
		return "", errs.Text("name document", id, errs.Invalid, "a name is 1 to 128 of the characters a-z, A-Z, 0-9, '-', '_' and '.', and does not begin with a dot")
	}
	return path.Join(c.dir, string(kind), id+".json"), nil
}

// Put makes v the document, durably.
func (c *Catalog) Put(kind Kind, id string, v any) error {
	file, err := c.file(kind, id)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return errs.New("keep "+kind.one(), id, errs.Bug, err)
	}
	if len(b) > maxDocument {
		return errs.Text("keep "+kind.one(), id, errs.Invalid, "the document is too large")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return errs.Wrap("keep "+kind.one(), id, disk.Publish(c.d, file, append(b, '\n')))
}

// Get reads a document into v. errs.NotFound if there is none, errs.Corrupt if it cannot be understood.
func (c *Catalog) Get(kind Kind, id string, v any) error {
	file, err := c.file(kind, id)
	if err != nil {
		return err
	}
	b, err := disk.ReadFile(c.d, file, maxDocument)
	if errs.Is(err, errs.NotFound) {
		return errs.Text("find "+kind.one(), id, errs.NotFound, "there is none of that name")
	}
	if err != nil {
		return errs.Wrap("read "+kind.one(), id, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return errs.New("read "+kind.one(), id, errs.Corrupt, err).WithNext("Look at " + file + "; a copy of the node's state folder has a whole one.")
	}
	return nil
}

// IDs lists the documents of a kind, sorted.
func (c *Catalog) IDs(kind Kind) ([]string, error) {
	entries, err := c.d.ReadDir(path.Join(c.dir, string(kind)))
	if err != nil {
		return nil, errs.Wrap("list "+string(kind), "", err)
	}
	var out []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			out = append(out, id)
		}
	}
	return out, nil
}

// Delete removes a document, durably. errs.NotFound if there is none.
func (c *Catalog) Delete(kind Kind, id string) error {
	file, err := c.file(kind, id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.d.Remove(file)
	if errs.Is(err, errs.NotFound) {
		return errs.Text("remove "+kind.one(), id, errs.NotFound, "there is none of that name")
	}
	if err == nil {
		err = c.d.SyncDir(path.Dir(file))
	}
	return errs.Wrap("remove "+kind.one(), id, err)
}

// List reads all documents of a kind. A damaged one is reported beside the others.
func List[T any](c *Catalog, kind Kind) (docs []T, bad []error) {
	ids, err := c.IDs(kind)
	if err != nil {
		return nil, []error{err}
	}
	for _, id := range ids {
		var v T
		switch err := c.Get(kind, id, &v); {
		case err == nil:
			docs = append(docs, v)
		case errs.Is(err, errs.NotFound): // removed meanwhile
		default:
			bad = append(bad, err)
		}
	}
	return docs, bad
}
