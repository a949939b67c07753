// Package ovirt is the client of an oVirt engine (also OLVM, RHV): the few calls that backup and restore need, in our
// own words. It is the only package that knows go-ovirt, and the traps of the engine's REST API; nobody above it sees
// XML.
//
// Terms are oVirt's: engine, data center, cluster, host, VM, disk, snapshot, checkpoint, backup, image transfer, storage
// connection, storage domain. A Client talks to one engine as one user.
//
// Of go-ovirt we use the model and its readers: every VM, disk, attachment, storage domain, connection, host, cluster,
// data center, job, snapshot, checkpoint, backup's disk and image transfer is read by it, and turned into our words in
// sdk.go. Its Connection and services are not used, for what they do to a daemon: no context, a TLS handshake for every
// call, a login that is never renewed and whose token Close does not revoke, faults without their status, and a log
// function that makes a request fail after the engine carried it out. So the requests are ours: net/http with kept
// connections and one token, bodies by encoding/xml (go-ovirt's writers do not escape), a fault read from JSON, XML or
// HTML. Its readers panic over truncated documents or take them for short ones, and print; they get whole documents only,
// and a panic becomes an error. Backups are read from JSON by ourselves, since its model has no snapshot in them.
//
// Invariants:
//
//  1. Every call takes a context, ends when it does, and has a deadline of its own: three minutes, ten for what waits for
//     storage.
//  2. Nothing is retried but what may be: reads, three times, when the engine cannot be reached or answers with an
//     error page; requests that carry an ID of ours (StartBackup, PostEvent); and what the engine refused because the login
//     had expired, once. A request whose answer was lost is never simply sent again: either its ID makes it harmless, or
//     the call looks first, or its comment says how the caller does. Busy is for the caller to try again.
//  3. Faults become kinds of error: the caller decides by errs.Is, never by text. Conflict and locked objects are
//     errs.Busy whatever HTTP status the engine chose; a name or ID that is taken is errs.Exists; a missing object is
//     errs.NotFound, also where the engine answers with an empty list or falls over; a checkpoint that is not believed in
//     is errs.Stale; an expired login is renewed once and then errs.Denied; an engine that cannot be reached is
//     errs.Transient. What was so already (a VM that runs, a backup that has ended) is no error.
//  4. The certificate authority is the one that was given or pinned; there is no way to skip the check. FetchCA, which
//     asks for it, sends nothing secret and is believed only after somebody has compared the fingerprint.
//  5. Passwords, tokens and ticket URLs are never logged and never part of an error.
//  6. A refused login is not tried again within a minute: engines lock users out.
//
// Sources: the engine's API model 4.6, the recorded exchanges with a real engine that the tests replay, and go-ovirt at
// the version in go.mod. A Client may be used by many goroutines. The tests replay recordings (testdata), and run whole
// life cycles against the simulated engine of internal/lab/engine.
package ovirt

import "time"

// ID is an engine's object: a UUID in lower case.
type ID string

// Info describes an engine.
type Info struct {
	Vendor, Product string
	Version         string // full_version, as the engine says it
	Major, Minor    int
	User            string // who we are to the engine
}

// VMStatus is a VM's state in the engine's words.
type VMStatus string

// The states we act upon; others exist.
const (
	VMUp   VMStatus = "up"
	VMDown VMStatus = "down"
)

// VM is a virtual machine as lists show it.
type VM struct {
	ID          ID
	Name        string
	Status      VMStatus
	Cluster     ID
	Host        ID       // where it runs; "" when down
	Tags        []string // names
	Disks       []Attachment
	MemoryMiB   int64
	Description string
	HostedHere  bool // the hosted engine's own VM: never to be backed up through itself
}

// Attachment is a disk as one VM has it.
type Attachment struct {
	Disk      ID
	Interface string // "virtio_scsi", "virtio", "sata"
	Bootable  bool
	Active    bool
	ReadOnly  bool
}

// DiskFormat is how a volume is laid out.
type DiskFormat string

// The formats.
const (
	FormatCow DiskFormat = "cow" // qcow2
	FormatRaw DiskFormat = "raw"
)

// DiskStatus is a disk's state in the engine's words.
type DiskStatus string

// The states.
const (
	DiskOK      DiskStatus = "ok"
	DiskLocked  DiskStatus = "locked"
	DiskIllegal DiskStatus = "illegal"
)

// Disk is a disk.
type Disk struct {
	ID          ID
	Image       ID // the active volume
	Alias       string
	Status      DiskStatus
	Format      DiskFormat
	Provisioned int64  // virtual size in bytes
	Actual      int64  // bytes used
	Domain      ID     // the storage domain it lies on; "" for a LUN
	Storage     string // "image", "lun", "cinder", "managed_block_storage"
	Shareable   bool
	Incremental bool // backup=incremental is set
	ContentType string
}

// BackupPhase is a backup's state in the engine's words.
type BackupPhase string

// The phases.
const (
	BackupInitializing BackupPhase = "initializing"
	BackupStarting     BackupPhase = "starting"
	BackupReady        BackupPhase = "ready"
	BackupFinalizing   BackupPhase = "finalizing"
	BackupSucceeded    BackupPhase = "succeeded"
	BackupFailed       BackupPhase = "failed"
)

// BackupSpec asks for a backup.
type BackupSpec struct {
	ID                 ID // ours: makes the request safe to send again
	From               ID // checkpoint; "" for a full backup
	Disks              []ID
	Description        string
	RequireConsistency bool
	Legacy             bool // the live way, also where the engine would take a snapshot of its own
}

// Backup is a running or ended backup.
type Backup struct {
	ID                           ID
	Phase                        BackupPhase
	FromCheckpoint, ToCheckpoint ID // To is true only once the backup is ready
	Host                         ID
	Snapshot                     ID // of a hybrid backup
	Created                      time.Time
}

// BackupDisk is a disk in a backup, with what it can deliver: trust it, not what was asked for.
type BackupDisk struct {
	Disk        ID
	Incremental bool
}

// Checkpoint is a point from which changes are known.
type Checkpoint struct {
	ID, Parent ID
	Created    time.Time
	Valid      bool
}

// Snapshot is a VM's snapshot. The list of a VM begins with one of type "active", which is no snapshot.
type Snapshot struct {
	ID          ID
	Description string
	Status      string // "ok", "locked", "in_preview"
	Type        string // "active", "regular", "preview"
}

// SnapshotSpec asks for a snapshot without memory.
type SnapshotSpec struct {
	Description string // all that a snapshot can be known by before the engine has answered: make it unique
	Disks       []ID   // the VM's others are left out
}

// Volume is one of the images that a disk consists of: a snapshot leaves the one it found as it is, and what is written
// from then on goes into another that lies on it.
type Volume struct {
	ID       ID
	Parent   ID // the volume it lies on; "" for the lowest
	Snapshot ID // whose state of the disk it ends with
	Format   DiskFormat
}

// SnapshotDisk is a disk as a snapshot has it.
type SnapshotDisk struct {
	Disk, Volume ID
}

// TransferPhase is an image transfer's state in the engine's words.
type TransferPhase string

// The phases we act upon; others exist.
const (
	TransferInitializing    TransferPhase = "initializing"
	TransferTransferring    TransferPhase = "transferring"
	TransferPausedSystem    TransferPhase = "paused_system"
	TransferCancelledSystem TransferPhase = "cancelled_system"
	TransferFinishedSuccess TransferPhase = "finished_success"
	TransferFinishedFailure TransferPhase = "finished_failure"
	TransferFinishedCleanup TransferPhase = "finished_cleanup"
)

// TransferSpec asks for a download of a disk of a backup or of a snapshot's volume, or for an upload into a disk of its
// own.
type TransferSpec struct {
	Disk       ID
	Backup     ID            // of a download
	Volume     ID            // of a download without a backup: what the disk was at its snapshot; Disk is then for messages only
	Shallow    bool          // only what the volume itself has: the rest are holes
	Upload     bool          // an upload that fails or is given up takes its disk with it
	Inactivity time.Duration // at least a minute; 0 breaks the daemon
}

// Transfer is an image transfer. Its URLs carry the ticket: they are secrets.
type Transfer struct {
	ID          ID
	Phase       TransferPhase
	Disk        ID
	TransferURL string // on the host
	ProxyURL    string // through the engine's machine
	Download    bool
}

// NewDisk asks for an empty disk.
type NewDisk struct {
	ID          ID // ours: makes the request safe to send again
	Alias       string
	Description string
	Domain      ID
	Format      DiskFormat
	Sparse      bool
	Size        int64 // virtual size in bytes
	Initial     int64 // bytes that a sparse disk on block storage has from the start; 0 to leave it to the engine
	Incremental bool  // its changes are tracked by backups; cow only
	Shareable   bool
}

// DomainStatus is a storage domain's state in its data center, in the engine's words; "unattached" where it has none.
type DomainStatus string

// The states we act upon.
const (
	DomainUnattached  DomainStatus = "unattached"
	DomainActive      DomainStatus = "active"
	DomainInactive    DomainStatus = "inactive"
	DomainLocked      DomainStatus = "locked"
	DomainMaintenance DomainStatus = "maintenance"
	DomainPreparing   DomainStatus = "preparing_for_maintenance"
	DomainUnknown     DomainStatus = "unknown"
)

// Domain is a storage domain.
type Domain struct {
	ID          ID
	Name        string
	Type        string // "data", "iso", "export"
	Status      DomainStatus
	Master      bool
	StorageType string // "nfs", "localfs", …
	Available   int64  // bytes
	Used        int64
	Format      string // "v5"
	DataCenter  ID     // "" if not attached
}

// Connection is where a file-based storage domain lies.
type Connection struct {
	ID           ID
	Address      string
	Path         string
	MountOptions string
}

// DomainSpec asks for an NFS data domain that exists to be imported.
type DomainSpec struct {
	Name       string
	Connection ID
	Host       ID // an Up host, which looks at the export
	Expect     ID // the domain that must be there; "" for any, and then the caller has to look at what it got
}

// Host is a hypervisor.
type Host struct {
	ID      ID
	Name    string
	Address string
	Cluster ID
	Status  string // "up", "non_operational", …
}

// Cluster is a cluster.
type Cluster struct {
	ID         ID
	Name       string
	DataCenter ID
	Version    string // compatibility level, "4.7"
}

// DataCenter is a data center.
type DataCenter struct {
	ID     ID
	Name   string
	Status string
}

// NewVM asks for a VM.
type NewVM struct {
	Name        string
	Cluster     ID
	OVF         string // of the backed up VM, its disks taken out; IDs and MACs are made anew. "" for a plain VM
	MemoryMiB   int64  // for a plain VM
	Description string
}

// NewAttachment asks for a disk to be attached.
type NewAttachment struct {
	Disk      ID
	Interface string
	Bootable  bool
}

// NIC is a VM's network interface.
type NIC struct {
	ID      ID
	Name    string
	MAC     string
	Profile ID // vNIC profile; "" for none
	VM      ID
}

// VNICProfile is how a NIC hangs on a network.
type VNICProfile struct {
	ID          ID
	Name        string
	Network     ID
	NetworkName string
	DataCenter  ID
}

// Job is an engine's task list entry.
type Job struct {
	ID          ID
	Description string
	Status      string // "started", "finished", "failed", "aborted"
}

// Severity of an event.
type Severity string

// The severities.
const (
	EventNormal  Severity = "normal"
	EventWarning Severity = "warning"
	EventError   Severity = "error"
)

// Event is what we tell the engine's event log.
type Event struct {
	Severity Severity
	Text     string
	VM       ID // may be ""
}
