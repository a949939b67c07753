package chunkstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast/chunkstore/backend"
	"github.com/holdfast-backup/holdfast/chunkstore/pack"
)

// packKey names a pack, whatever file it lies in.
type packKey struct {
	kind   pack.Kind
	number uint32
}

// packForm is the form in which a pack lies in the store.
type packForm uint8

const (
	asWritten packForm = iota // as a session wrote it
	compact                   // written anew by Compact: it counts once the file of the other form is gone
)

func formOf(isCompact bool) packForm {
	if isCompact {
		return compact
	}
	return asWritten
}

// packFile is a pack and the form it has.
type packFile struct {
	packKey
	form packForm
}

// first is the file that a session writes.
func (k packKey) first() packFile { return packFile{k, asWritten} }

// files returns where a pack may lie, in the order in which to look.
func (k packKey) files() [2]packFile { return [2]packFile{{k, asWritten}, {k, compact}} }

// The endings of names, by form. These never change.
var (
	packSuffix = [...]string{asWritten: ".pack", compact: ".compact"}
	restSuffix = [...]string{asWritten: ".rest", compact: ".compact-rest"}
)

func (k packKey) stem() string { return fmt.Sprintf("%s/%06x/%08x", k.kind, k.number>>10, k.number) }

// name is where the file lies; 1024 packs to a folder.
func (f packFile) name() string { return f.stem() + packSuffix[f.form] }

// rest is where the pack's rest lies, if space of it was given back.
func (f packFile) rest() string { return f.stem() + restSuffix[f.form] }

// packName is where a session writes a pack.
func packName(kind pack.Kind, number uint32) string { return packKey{kind, number}.first().name() }

// parsePack takes the name of a pack's file, or of its rest, apart.
func parsePack(kind pack.Kind, name string) (f packFile, isRest, ok bool) {
	base, ending, _ := strings.Cut(path.Base(name), ".")
	b, err := hex.DecodeString(base)
	if err != nil || len(b) != 4 {
		return packFile{}, false, false
	}
	f.kind, f.number = kind, uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3])
	if i := slices.Index(packSuffix[:], "."+ending); i >= 0 {
		f.form = packForm(i)
		return f, false, f.number > 0 && f.name() == name
	}
	if i := slices.Index(restSuffix[:], "."+ending); i >= 0 {
		f.form = packForm(i)
		return f, true, f.number > 0 && f.rest() == name
	}
	return packFile{}, false, false
}

// havePack is a pack as it lies in the store. number is 0 where no pack is.
type havePack struct {
	packFile
	info      backend.Info
	sealed    bool
	hasRest   bool
	restBytes int64    // on the disk
	leftover  []string // files beside it that do not count: of a compaction or a collection that was cut short
	foreign   []string // that are not ours
}

// packsIn makes packs of a list of objects, in the order of their numbers.
func packsIn(kind pack.Kind, infos []backend.Info) (out []havePack) {
	var all []havePack
	for from := 0; from < len(infos); {
		f, _, ok := parsePack(kind, infos[from].Name)
		to := from + 1
		if !ok {
			out = append(out, havePack{foreign: []string{infos[from].Name}})
			from = to
			continue
		}
		for to < len(infos) {
			g, _, ok := parsePack(kind, infos[to].Name)
			if !ok || g.packKey != f.packKey {
				break
			}
			to++
		}
		all = append(all, packOf(kind, infos[from:to]))
		from = to
	}
	return append(out, all...)
}

// packOf makes a pack of the files of one number.
func packOf(kind pack.Kind, infos []backend.Info) (h havePack) {
	found := map[string]backend.Info{}
	var key packKey
	for _, i := range infos {
		found[i.Name] = i
		f, _, _ := parsePack(kind, i.Name)
		key = f.packKey
	}
	for _, f := range key.files() {
		info, there := found[f.name()]
		rest, restThere := found[f.rest()]
		if there && h.number == 0 && (info.Sealed || f.form == asWritten) {
			h = havePack{packFile: f, info: info, sealed: info.Sealed, hasRest: restThere, restBytes: rest.Occupied, leftover: h.leftover}
			continue
		}
		if there {
			h.leftover = append(h.leftover, f.name())
		}
		if restThere {
			h.leftover = append(h.leftover, f.rest())
		}
	}
	return h
}

// objectOf returns the name of the file that a pack lies in.
func (r *Reader) objectOf(key packKey) string {
	for _, f := range key.files() {
		if there, err := r.lists(context.Background(), f.name()); there && err == nil {
			return f.name()
		}
	}
	return key.first().name()
}

// exists tells whether there is a pack.
func (r *Reader) exists(ctx context.Context, key packKey) (bool, error) {
	for _, f := range key.files() {
		if there, err := r.lists(ctx, f.name()); there || err != nil {
			return there, err
		}
	}
	return false, nil
}

// lists tells whether there is an object of a name.
func (r *Reader) lists(ctx context.Context, name string) (bool, error) {
	found, err := r.b.List(ctx, name)
	return slices.ContainsFunc(found, func(i backend.Info) bool { return i.Name == name }), err
}
