package chunkstore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/chunk"
	"github.com/holdfast-backup/holdfast/chunkstore/manifest"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// PointID names a restore point: 16 lower-case hexadecimal digits, chosen at random.
type PointID string

// NewPointID draws an ID.
func NewPointID() PointID {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return PointID(hex.EncodeToString(b[:]))
}

// Valid tells whether the text can be an ID.
func (id PointID) Valid() bool {
	b, err := hex.DecodeString(string(id))
	return err == nil && len(b) == 8 && strings.ToLower(string(id)) == string(id)
}

// Point is a restore point: what one machine's disks held at one time.
type Point struct {
	ID     PointID
	Time   time.Time         // UTC, when the content was true
	Labels map[string]string // UTF-8; the store gives them no meaning
	Config []byte            // opaque to the store; may be empty
	Disks  []Disk            // ascending by Number
}

// Disk is one disk of a point.
type Disk struct {
	Number int
	Root   manifest.Root
	Cutter string // how it was cut; see cut.ByName
	Digest string // how its chunks are named; see Superblock.Digest
}

// Disk finds a disk by its number.
func (p *Point) Disk(number int) (Disk, error) {
	for _, d := range p.Disks {
		if d.Number == number {
			return d, nil
		}
	}
	have := make([]string, len(p.Disks))
	for i, d := range p.Disks {
		have[i] = fmt.Sprint(d.Number)
	}
	return Disk{}, errs.Text("find disk", fmt.Sprintf("%d of point %s", number, p.ID), errs.NotFound,
		"the point does not hold that disk").WithNext("It holds: " + strings.Join(have, ", ") + ".")
}

// The record's layout; docs/format/point.md draws it. These never change.
const (
	pointMagic   = "HFPT"
	pointVersion = 1
	pointHeader  = 32 // magic 4, version 2, reserved 2, id 8, nonce 12, reserved 4
	pointMaxSize = 64 << 20
	pointPrefix  = "points/"
)

func pointName(id PointID) string { return pointPrefix + string(id) }

// pointJSON is the sealed part of a record. Field names are the format.
type pointJSON struct {
	ID     PointID           `json:"id"`
	Time   time.Time         `json:"time"`
	Labels map[string]string `json:"labels,omitempty"`
	Config []byte            `json:"config,omitempty"`
	Disks  []diskJSON        `json:"disks"`
}

type diskJSON struct {
	Number int    `json:"disk"`
	Size   int64  `json:"size_bytes"`
	Data   int64  `json:"data_bytes"`
	Level  int    `json:"level"`
	Root   string `json:"root"`
	Pack   uint32 `json:"pack"`
	Offset uint32 `json:"offset"`
	Stored uint32 `json:"stored"`
	Cutter string `json:"cutter"`
	Digest string `json:"digest"`
}

func pointCipher(key [32]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("chunkstore: " + err.Error()) // the key has 32 bytes
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic("chunkstore: " + err.Error())
	}
	return gcm
}

// encodePoint seals a record: plaintext header, then AES-256-GCM of the JSON with the header as additional data.
func encodePoint(key [32]byte, p *Point) ([]byte, error) {
	var nonce [12]byte
	_, _ = rand.Read(nonce[:]) // never fails (crypto/rand)
	return sealPoint(key, nonce, p)
}

func sealPoint(key [32]byte, nonce [12]byte, p *Point) ([]byte, error) {
	j := pointJSON{ID: p.ID, Time: p.Time.UTC(), Labels: p.Labels, Config: p.Config}
	for _, d := range p.Disks {
		j.Disks = append(j.Disks, diskJSON{
			Number: d.Number, Size: d.Root.Size, Data: d.Root.Data, Level: d.Root.Level, Root: d.Root.Digest.String(),
			Pack: d.Root.Place.Pack, Offset: d.Root.Place.Offset, Stored: d.Root.Place.Stored,
			Cutter: d.Cutter, Digest: d.Digest,
		})
	}
	plain, err := json.Marshal(j)
	if err != nil {
		return nil, errs.New("encode point", string(p.ID), errs.Bug, err)
	}
	if pointHeader+len(plain)+16 > pointMaxSize {
		return nil, errs.Text("encode point", string(p.ID), errs.Invalid,
			fmt.Sprintf("labels and configuration make a record of %d bytes, more than can be read back", len(plain)))
	}
	head := make([]byte, pointHeader, pointHeader+len(plain)+16)
	copy(head, pointMagic)
	binary.LittleEndian.PutUint16(head[4:], pointVersion)
	if n, err := hex.Decode(head[8:16], []byte(p.ID)); err != nil || n != 8 {
		return nil, errs.Text("encode point", string(p.ID), errs.Bug, "not an ID")
	}
	copy(head[16:28], nonce[:])
	return pointCipher(key).Seal(head, head[16:28], plain, head), nil
}

// decodePoint opens a record that was found under the name of id.
func decodePoint(key [32]byte, id PointID, b []byte) (*Point, error) {
	corrupt := func(why string) error {
		return errs.Text("read point", string(id), errs.Corrupt, why).
			WithNext("The other points are not affected; restore from one of them, and see `holdfast store verify`.")
	}
	if len(b) < pointHeader || string(b[:4]) != pointMagic {
		return nil, corrupt("this is not a point record")
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != pointVersion {
		return nil, errs.Text("read point", string(id), errs.Unsupported, fmt.Sprintf("record version %d", v)).
			WithNext("It was written by a newer Holdfast: use that one.")
	}
	plain, err := pointCipher(key).Open(nil, b[16:28], b[pointHeader:], b[:pointHeader])
	if err != nil {
		return nil, corrupt("the record is damaged")
	}
	var j pointJSON
	if err := json.Unmarshal(plain, &j); err != nil {
		return nil, corrupt("the record cannot be parsed")
	}
	if j.ID != id {
		return nil, corrupt("the record is that of point " + string(j.ID))
	}
	p := &Point{ID: id, Time: j.Time.UTC(), Labels: j.Labels, Config: j.Config}
	for _, d := range j.Disks {
		root, err := d.root()
		if err != nil {
			return nil, corrupt(err.Error())
		}
		p.Disks = append(p.Disks, Disk{Number: d.Number, Root: root, Cutter: d.Cutter, Digest: d.Digest})
	}
	return p, nil
}

func (d diskJSON) root() (manifest.Root, error) {
	digest, err := hex.DecodeString(d.Root)
	if err != nil || len(digest) != len(chunk.Digest{}) || d.Size < 0 || d.Size > manifest.MaxSize ||
		d.Level != manifest.LevelFor(d.Size) {
		return manifest.Root{}, fmt.Errorf("disk %d has an impossible root", d.Number)
	}
	return manifest.Root{
		Size: d.Size, Data: d.Data, Level: d.Level, Digest: chunk.Digest(digest),
		Place: chunk.Place{Pack: d.Pack, Offset: d.Offset, Stored: d.Stored},
	}, nil
}
