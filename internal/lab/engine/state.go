package engine

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// state is everything the engine knows. Maps by id, plus the order in which things came. Engine.mu guards it all.
type state struct {
	center, cluster, host string // ids

	vms         table[*vm]
	disks       table[*disk]
	domains     table[*domain]
	connections table[*connection]
	backups     table[*backup]
	transfers   table[*transfer]
	tags        table[*tag]
	jobs        table[*job]
	events      []*event
	nextMAC     int
	refusals    int                 // of requests that met the engine's own lock
	sessions    map[string]*session // by token
}

// table is a map that remembers the order of its entries.
type table[T any] struct {
	byID  map[string]T
	order []string
}

func (t *table[T]) get(id string) (T, bool) {
	v, ok := t.byID[strings.ToLower(id)]
	return v, ok
}

func (t *table[T]) put(id string, v T) {
	if t.byID == nil {
		t.byID = map[string]T{}
	}
	if _, ok := t.byID[id]; !ok {
		t.order = append(t.order, id)
	}
	t.byID[id] = v
}

func (t *table[T]) remove(id string) {
	delete(t.byID, id)
	t.order = slices.DeleteFunc(t.order, func(o string) bool { return o == id })
}

// all returns the entries, oldest first.
func (t *table[T]) all() []T {
	out := make([]T, 0, len(t.order))
	for _, id := range t.order {
		out = append(out, t.byID[id])
	}
	return out
}

type vm struct {
	id, name, description, comment string
	status                         string
	memory                         int64 // bytes
	sockets, cores, threads        int
	created, started, stopped      time.Time
	origin                         string
	protected                      bool
	stateless                      bool
	attachments                    []*attachment
	nics                           []*nic
	tags                           []string // ids
	snapshots                      []*snapshot
	checkpoints                    []*checkpoint
	locked                         bool // the engine's own lock: requests are refused with an empty list of reasons
	seen                           bool // a host has shown it running
}

func (v *vm) running() bool { return v.status != "down" && v.status != "image_locked" }

type attachment struct {
	disk      string
	iface     string
	bootable  bool
	active    bool
	readOnly  bool
	discard   bool
	snapshot  string
	bootOrder int
}

type nic struct {
	id, name, iface, mac string
	profile              string // "" for a NIC without network
	linked, plugged      bool
}

type snapshot struct {
	id, description, status, kind string
	date                          time.Time
	memory                        bool
	disks                         []string
	volumes                       []DiskPlace // of its disks, as they were; an engine's own snapshot has none
	byBackup                      bool
}

type checkpoint struct {
	id, parent, state, description string
	created                        time.Time
	disks                          []string
}

// disk is an image. Status is what the API shows; hold says which work keeps others away, and may outlast the status:
// a hybrid backup's disks show ok and are still held.
type disk struct {
	id, image, alias, description string
	leaf                          string // the volume the API shows since a snapshot; the host knows none of it
	status, hold                  string
	format                        string
	sparse, shareable             bool
	size, actual                  int64
	domain                        string
	incremental                   bool
	mode                          string // backup_mode of the last backup
	content                       string
	moving                        bool
	frozen                        bool // as a snapshot has it
}

// Why a disk is held.
const (
	holdWork     = "work" // made, removed, registered
	holdBackup   = "backup"
	holdSnapshot = "snapshot"
	holdTransfer = "transfer"
	holdMove     = "move"
)

// volume is the image_id that the API shows: each snapshot brings another.
func (d *disk) volume() string {
	if d.leaf != "" {
		return d.leaf
	}
	return d.image
}

func (d *disk) place() DiskPlace {
	return DiskPlace{Domain: d.domain, Disk: d.id, Image: d.image, Format: d.format, Size: d.size}
}

type domain struct {
	id, name, comment string
	description       string
	connection        string
	center            string // "" while not attached
	status            string // in the data center
	outside           string // at the top, while not attached: "unknown" right after the import, then "unattached"
	master            bool
	local             bool // belongs to the lab; its space is the host's matter
	kind              string
	available, used   int64
	found             []FoundDisk // unregistered images
}

type connection struct {
	id, address, path, kind, version, options string
	timeo, retrans                            string
}

func (c *connection) export() string { return c.address + ":" + c.path }

type backup struct {
	id, vm, description      string
	phase                    string
	from, to, snapshot, host string
	created, modified        time.Time
	disks                    []string
	modes                    map[string]string
	hybrid, onHost, stopping bool
	correlation              string
	job                      *job
}

func (b *backup) ended() bool { return b.phase == "succeeded" || b.phase == "failed" }

type transfer struct {
	id, disk, backup          string
	volume                    string // of a snapshot; "" for a disk, or a disk of a backup
	direction, format, policy string
	phase                     string
	timeout                   int64 // seconds without activity
	ticket, url               string
	transferred               int64
	active, shallow           bool
	idlePolls                 int
	job                       *job
}

func (t *transfer) ended() bool { return strings.HasPrefix(t.phase, "finished") }

type tag struct{ id, name, description, parent string }

type job struct {
	id, description, status, correlation string
	started, ended, updated              time.Time
}

type event struct {
	index, code, customID int
	severity, origin      string
	correlation           string
	description           string
	time                  time.Time
	vm, vmName            string
	domain                string
	userName              string
}

// newID makes an identity: a random UUID in lower case.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// sortedKeys is for answers whose order the engine does not promise either, but tests like.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (s *state) vmByName(name string) *vm {
	for _, v := range s.vms.all() {
		if v.name == name {
			return v
		}
	}
	return nil
}

// vmOf returns the VM a disk is attached to, nil for a floating one.
func (s *state) vmOf(diskID string) (*vm, *attachment) {
	for _, v := range s.vms.all() {
		for _, a := range v.attachments {
			if a.disk == diskID {
				return v, a
			}
		}
	}
	return nil, nil
}

func (v *vm) attachment(diskID string) *attachment {
	for _, a := range v.attachments {
		if a.disk == diskID {
			return a
		}
	}
	return nil
}

// aliases names disks as the engine's messages do.
func aliases(disks []*disk) string {
	names := make([]string, len(disks))
	for i, d := range disks {
		names[i] = d.alias
	}
	return strings.Join(names, ", ")
}

// runningBackup returns the VM's backup that has not ended.
func (s *state) runningBackup(vmID string) *backup {
	for _, b := range s.backups.all() {
		if b.vm == vmID && !b.ended() {
			return b
		}
	}
	return nil
}
