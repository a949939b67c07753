package engine

import "context"

// Host is what the simulated engine needs of the machine below it: real VMs, real disks, real tickets. internal/lab/host
// implements it with qemu, ovirt-imageio and libnfs; the simulator's own unit tests use a fake. IDs are the engine's, in
// lower case. Calls block until the work is done; the simulator runs them in the background and shows the states and
// delays a real engine shows. An error's text becomes the fault's or event's text.
type Host interface {
	VMHost
	BackupHost
	SnapshotHost
	StorageHost
}

// DiskPlace says where a disk's active volume lies, and what it is.
type DiskPlace struct {
	Domain string // storage domain
	Disk   string // image group
	Image  string // volume
	Format string // "cow" or "raw"
	Size   int64  // virtual, in bytes
}

// VMSpec is a VM to be started.
type VMSpec struct {
	ID     string
	Name   string
	MiB    int64
	VCPUs  int
	Disks  []DiskPlace // the first one boots
	Ifaces []string    // interface of each disk: virtio_scsi, virtio
}

// VMHost runs VMs.
type VMHost interface {
	// StartVM starts a VM and returns when its process runs (not when its guest is ready).
	StartVM(ctx context.Context, vm VMSpec) error
	// ShutdownVM asks the guest to power off and waits until the process is gone.
	ShutdownVM(ctx context.Context, vm string) error
	// StopVM pulls the plug.
	StopVM(ctx context.Context, vm string) error
	// RunningVMs lists the VMs that run.
	RunningVMs() []string
}

// BackupHost does what vdsm does for backups.
type BackupHost interface {
	// StartBackup makes the disks of a VM readable as they are now, and begins checkpoint to. from is "" for a full
	// backup. hybrid says that the engine shows a snapshot meanwhile; the bytes are made available in the same way. It
	// returns which disks can tell their changes since from. An error whose text contains "Bitmap does not exist" is
	// what a lost checkpoint looks like.
	StartBackup(ctx context.Context, vm, backup, from, to string, disks []DiskPlace, hybrid bool) (incremental map[string]bool, err error)
	// StopBackup ends it; the checkpoint stays.
	StopBackup(ctx context.Context, vm, backup string) error
	// RemoveCheckpoint drops a checkpoint's bitmaps.
	RemoveCheckpoint(ctx context.Context, vm, checkpoint string, disks []DiskPlace) error
	// AddTicket makes a disk of a backup readable through ovirt-imageio and returns the URL of the image.
	AddTicket(ctx context.Context, backup, disk, ticket string, inactivitySeconds int) (url string, err error)
	// RemoveTicket withdraws it, waiting for what is being read.
	RemoveTicket(ctx context.Context, ticket string) error
	// TicketIdle returns for how many seconds nobody used the ticket, and the bytes transferred.
	TicketIdle(ctx context.Context, ticket string) (seconds int, transferred int64, err error)
}

// SnapshotHost does what vdsm does for snapshots: a disk is then a chain of volumes, of which only the last one changes.
type SnapshotHost interface {
	// TakeSnapshot puts a new qcow2 volume on each disk, at one moment for all; tops names them, by disk. What was the
	// disk's volume until then does not change any more.
	TakeSnapshot(ctx context.Context, vm string, disks []DiskPlace, tops map[string]string) error
	// MergeVolume writes the volume child, which lies on v, into v and removes it. above is the volume that lies on
	// child, "" if none does: v is the disk's own volume then.
	MergeVolume(ctx context.Context, vm string, v DiskPlace, child, above string) error
	// AddVolumeTicket makes a volume that does not change readable through ovirt-imageio, like BackupHost's AddTicket:
	// with what it lies on, or shallow, without.
	AddVolumeTicket(ctx context.Context, v DiskPlace, shallow bool, ticket string, inactivitySeconds int) (url string, err error)
}

// DomainInfo is what a host finds at an export.
type DomainInfo struct {
	ID        string
	Name      string
	Pool      string // data center it is attached to, "" if none
	Version   int
	Available int64 // bytes
	Used      int64
}

// FoundDisk is an image that a host finds on a domain.
type FoundDisk struct {
	Disk, Image string
	Format      string
	Size        int64 // virtual
	Used        int64
	Alias       string
	Volumes     int // more than one cannot be registered
}

// StorageHost does what vdsm does with storage domains. It reads as vdsm reads and refuses what vdsm refuses.
type StorageHost interface {
	// ProbeDomain connects to an NFS export ("address:/path" with mount options) and returns the data domain there, or
	// nil if there is none.
	ProbeDomain(ctx context.Context, export, options string) (*DomainInfo, error)
	// AttachDomain joins the domain to a pool: checks ids and leases, rewrites the metadata.
	AttachDomain(ctx context.Context, domain, pool string) error
	// ScanDisks lists the images on a domain that was probed.
	ScanDisks(ctx context.Context, domain string) ([]FoundDisk, error)
	// DeactivateDomain and DetachDomain end its use; detach rewrites the metadata.
	DeactivateDomain(ctx context.Context, domain string) error
	DetachDomain(ctx context.Context, domain string) error
	// FormatDomain removes everything from it; ForgetDomain disconnects.
	FormatDomain(ctx context.Context, domain string) error
	ForgetDomain(ctx context.Context, domain string) error
	// DomainSpace returns available and used bytes, as the host's monitor sees them.
	DomainSpace(ctx context.Context, domain string) (available, used int64, err error)
	// CreateDisk makes an empty disk on a local domain.
	CreateDisk(ctx context.Context, d DiskPlace) error
	// RemoveDisk deletes a disk from a domain.
	RemoveDisk(ctx context.Context, d DiskPlace) error
	// MoveDisk moves a disk to another domain, live if the VM runs (snapshot, copy of the base by qemu-img with its own
	// format, mirror of the top, pivot, merge), and returns where it lies now. progress is called with bytes.
	MoveDisk(ctx context.Context, vm string, d DiskPlace, domain string, progress func(done, total int64)) (DiskPlace, error)
}
