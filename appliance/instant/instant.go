// Package instant runs a VM from its backup: an instant restore, here called a session. The node publishes an NFS export
// that is a valid oVirt storage domain with the disks of a restore point on it, has the engine attach it, makes the VM
// and starts it; later the disks move to production storage while the VM runs, and everything of the session is taken
// away again.
//
// Terms. A session goes through appliance.SessionStates in order; a Record is what must be known of it after a crash. An
// Exporter is the serving side (appliance/node); the engine client is what the Engine interfaces say. To set up is to go
// from prepare to running; to release is to take apart.
//
// Invariants:
//
//  1. A record says what is about to be asked for before it is asked for, and every step looks first: it can be repeated
//     after a crash at any point, whether the engine carried out the last request or not.
//  2. Objects are known by what we chose: the domain, disks and volumes have IDs of ours; the connection has a path of
//     ours; the VM has a description that names the session. Nothing that is not ours is touched.
//  3. What fails in setting up is taken apart again, and the session is failed; what cannot be taken apart now is tried
//     again at the node's next start, and shown until then.
//  4. A domain is exported until the engine has let go of it. A VM that runs from the session is never stopped but by
//     somebody's explicit wish, and a disk whose migration failed goes on being served.
//  5. The restore point is never changed: what the VM writes lies in the session's overlays.
//
// The bytes of the domain are appliance/instant/domain's. Sources: facts about vdsm's domains and the engine's calls,
// with the recordings of a real engine.
package instant

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/instant/domain"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/chunkstore"
)

// Inventory is what the engine client knows of the engine's surroundings.
type Inventory interface {
	DataCenters(ctx context.Context) ([]ovirt.DataCenter, error)
	Clusters(ctx context.Context) ([]ovirt.Cluster, error)
	Hosts(ctx context.Context) ([]ovirt.Host, error)
	Domains(ctx context.Context, dc ovirt.ID) ([]ovirt.Domain, error)
	Disk(ctx context.Context, id ovirt.ID) (ovirt.Disk, error)
	VM(ctx context.Context, id ovirt.ID) (ovirt.VM, error)
	FindVM(ctx context.Context, name string) (ovirt.VM, error)
}

// Storage is what it does with storage domains.
type Storage interface {
	FindConnection(ctx context.Context, address, path string) (ovirt.Connection, error)
	AddConnection(ctx context.Context, c ovirt.Connection) (ovirt.Connection, error)
	RemoveConnection(ctx context.Context, id, host ovirt.ID) error
	FindDomain(ctx context.Context, id ovirt.ID) (ovirt.Domain, error)
	ImportDomain(ctx context.Context, s ovirt.DomainSpec) (ovirt.Domain, error)
	AttachDomain(ctx context.Context, dc, id ovirt.ID) error
	Domain(ctx context.Context, dc, id ovirt.ID) (ovirt.Domain, error)
	ActivateDomain(ctx context.Context, dc, id ovirt.ID) error
	DeactivateDomain(ctx context.Context, dc, id ovirt.ID) error
	DetachDomain(ctx context.Context, dc, id ovirt.ID) error
	RemoveDomain(ctx context.Context, id, host ovirt.ID) error
	UnregisteredDisks(ctx context.Context, id ovirt.ID) ([]ovirt.Disk, error)
	RegisterDisk(ctx context.Context, dc, id, disk ovirt.ID) error
}

// Machines is what it does with VMs and disks.
type Machines interface {
	CreateVM(ctx context.Context, v ovirt.NewVM) (ovirt.VM, error)
	AttachDisk(ctx context.Context, vm ovirt.ID, a ovirt.NewAttachment) error
	SetIncremental(ctx context.Context, disk ovirt.ID) error
	StartVM(ctx context.Context, vm ovirt.ID) error
	StopVM(ctx context.Context, vm ovirt.ID) error
	RemoveVM(ctx context.Context, vm ovirt.ID, keepDisks bool) error
	RemoveDisk(ctx context.Context, disk ovirt.ID) error
	MoveDisk(ctx context.Context, disk, domain ovirt.ID) error
	Jobs(ctx context.Context, correlation string) ([]ovirt.Job, error)
	Snapshots(ctx context.Context, vm ovirt.ID) ([]ovirt.Snapshot, error)
	PostEvent(ctx context.Context, e ovirt.Event) error
}

// Engine is the engine client.
type Engine interface {
	Inventory
	Storage
	Machines
}

// Exporter serves sessions. Its methods can be repeated.
type Exporter interface {
	// Open writes the domain's files, if they are not there yet, and serves them with the point's disks.
	Open(ctx context.Context, r Record) error
	// Traffic tells what was read of and written to a disk.
	Traffic(session string, disk int) (readBytes, dirtyBytes int64)
	// Close stops serving and drops what was written.
	Close(ctx context.Context, session string) error
}

// Journal keeps records, durably on return.
type Journal interface {
	KeepSession(r Record) error
}

// Reporter is told how far the work is; a task's handle is one.
type Reporter interface {
	Step(name string)
	StepFailed() // the steps that follow undo what was begun
	Detail(text string)
	Note(text string)
	Progress(p appliance.Progress)
}

// Record is all that must be known of a session after a crash. Its JSON is a stored format.
type Record struct {
	appliance.Session
	Undoing    bool            `json:"undoing"` // it is being taken apart because setting it up failed
	RemoveVM   bool            `json:"remove_vm"`
	PowerOn    bool            `json:"power_on"`
	AllTheWay  bool            `json:"all_the_way"` // as soon as the VM runs, migrate its disks and release
	Address    string          `json:"address"`     // of the export, as hosts reach it
	Path       string          `json:"path"`        // of the export
	ExportID   uint32          `json:"export_id"`   // never used for another session
	Port       uint16          `json:"port"`
	Volumes    []domain.Volume `json:"volumes"`
	Numbers    []int           `json:"numbers"` // of the point's disks, beside Volumes
	Interfaces []string        `json:"interfaces"`
	Bootable   []bool          `json:"bootable"`
	OVF        string          `json:"ovf,omitempty"` // stripped of its disks
	MemoryMiB  int64           `json:"memory_mib"`
	Cluster    ovirt.ID        `json:"cluster"`
	DataCenter ovirt.ID        `json:"data_center"`
	Host       ovirt.ID        `json:"host"`
	Connection ovirt.ID        `json:"connection,omitempty"`
	Target     ovirt.ID        `json:"target,omitempty"`   // storage domain to migrate to
	MoveTag    string          `json:"move_tag,omitempty"` // correlation of the move that is under way
}

// Request asks for a session.
type Request struct {
	Manager   string
	Point     *chunkstore.Point
	Name      string // of the new VM; "" for the old name, if it is free
	Cluster   string // name or ID; "" for the old one
	PowerOn   bool
	MigrateTo string // name or ID of a storage domain; "" to stay
	Format    string // "cow" or "raw"; "" for cow
}

// Options are what sessions work with.
type Options struct {
	Engine   Engine
	Exporter Exporter
	Journal  Journal
	Address  string // under which hosts reach this node
	Port     uint16
	Poll     time.Duration    // default 1 s
	Now      func() time.Time // default time.Now
}
