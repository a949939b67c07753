package api

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
)

// Service is the node, as the API drives it. Errors are *errs.Error with the kind that decides the HTTP status.
type Service interface {
	Managers
	VMs
	Points
	Store
	Sessions
	Restores
	Tasks
}

// Managers keeps the engines that the node knows.
type Managers interface {
	AddManager(ctx context.Context, s ManagerSpec) (appliance.Manager, error)
	ListManagers(ctx context.Context) ([]appliance.Manager, error)
	GetManager(ctx context.Context, name string) (appliance.Manager, error)
	// RemoveManager is errs.Busy while sessions or runs need it.
	RemoveManager(ctx context.Context, name string) error
}

// VMs lists and backs up VMs.
type VMs interface {
	// ListVMs returns the VMs of all engines and, as "gone" or "unknown", those that only the store knows. An engine that
	// cannot be asked is an error beside what the others answered.
	ListVMs(ctx context.Context) ([]appliance.VM, []error)
	GetVM(ctx context.Context, nameOrID string) (appliance.VM, error)
	StartBackup(ctx context.Context, s BackupSpec) (appliance.Task, error)
}

// Points keeps restore points.
type Points interface {
	ListPoints(ctx context.Context) ([]Point, []error)
	// RemovePoint is errs.Denied while the point is locked, and errs.Busy while a VM runs from it.
	RemovePoint(ctx context.Context, point string) (Point, error)
	// LockPoint keeps a point from being removed until a time. A lock is only ever extended.
	LockPoint(ctx context.Context, s LockSpec) (Point, error)
}

// Store looks after the store that the node holds.
type Store interface {
	GetStore(ctx context.Context) (StoreInfo, error)
	// StartCollect gives back the space of what no point needs.
	StartCollect(ctx context.Context, s CollectSpec) (appliance.Task, error)
	// ConfirmClock makes the store believe the machine's clock, because a person says that it is right.
	ConfirmClock(ctx context.Context) (StoreInfo, error)
}

// Sessions runs VMs from their backups.
type Sessions interface {
	StartInstant(ctx context.Context, s InstantSpec) (appliance.Session, appliance.Task, error)
	ListSessions(ctx context.Context) ([]appliance.Session, error)
	GetSession(ctx context.Context, id string) (appliance.Session, error)
	StartMigrate(ctx context.Context, id, to string) (appliance.Task, error)
	StartRelease(ctx context.Context, id string, discard bool) (appliance.Task, error)
	// StartKeep makes a restore point of what a session's disks are now. It is errs.Busy while the VM is not down, unless
	// running: then the VM's writes are held while its disks are read.
	StartKeep(ctx context.Context, id string, running bool) (appliance.Task, error)
}

// Restores copies VMs back to an engine.
type Restores interface {
	// PlanRestore checks a full restore and says what it would make. It changes nothing.
	PlanRestore(ctx context.Context, s RestoreSpec) (appliance.Restore, error)
	StartRestore(ctx context.Context, s RestoreSpec) (appliance.Restore, appliance.Task, error)
	ListRestores(ctx context.Context) ([]appliance.Restore, error)
	GetRestore(ctx context.Context, id string) (appliance.Restore, error)
}

// Tasks shows what is done.
type Tasks interface {
	ListTasks(ctx context.Context) ([]appliance.Task, error)
	GetTask(ctx context.Context, id string) (appliance.Task, error)
	CancelTask(ctx context.Context, id string) error
	// WatchTask calls f now and after each change, until f returns an error, the task has ended or ctx has.
	WatchTask(ctx context.Context, id string, f func(appliance.Task) error) error
}

// ManagerSpec asks for an engine to be added. Exactly one of CA and Fingerprint is given, or neither: then the answer is
// an errs.Denied that shows the fingerprint to be confirmed.
type ManagerSpec struct {
	Name        string `json:"name" minLength:"1" maxLength:"64" doc:"a name of your choice"`
	URL         string `json:"url" doc:"the engine, in any form: engine.example.com, https://engine.example.com/ovirt-engine/api"`
	User        string `json:"user" doc:"user@domain; admin@ovirt@internalsso where Keycloak is in use"`
	Password    string `json:"password"`
	CA          string `json:"ca,omitempty" doc:"PEM of the engine's certificate authority"`
	Fingerprint string `json:"fingerprint,omitempty" doc:"SHA-256 of that authority's certificate, hexadecimal: fetch it and trust it if it is this one"`
}

// BackupSpec asks for a backup.
type BackupSpec struct {
	VM       string `json:"vm" doc:"name or ID"`
	Manager  string `json:"manager,omitempty" doc:"needed only if two engines have a VM of that name"`
	Full     bool   `json:"full,omitempty" doc:"read everything, even if changes are known"`
	Strategy string `json:"strategy,omitempty" enum:"auto,cbt,transfer" doc:"auto: the best that the VM allows"`
	// KeepSnapshot is for transfer; cbt needs none.
	KeepSnapshot bool `json:"keep_snapshot,omitempty" doc:"with strategy transfer: keep the snapshot on the engine, so that the next backup reads only what changed since"`
}

// InstantSpec asks for an instant restore.
type InstantSpec struct {
	Point     string `json:"point" doc:"an ID or a unique prefix of one, or VM@latest, VM@2026-09-14T02, VM@-3d"`
	Manager   string `json:"manager,omitempty" doc:"the engine to restore to; by default the one the point came from"`
	Name      string `json:"name,omitempty" doc:"of the new VM; by default the old name, with a suffix if it is taken"`
	Cluster   string `json:"cluster,omitempty" doc:"name or ID; by default the old one"`
	PowerOn   bool   `json:"power_on,omitempty"`
	MigrateTo string `json:"migrate_to,omitempty" doc:"name or ID of a storage domain: migrate there as soon as the VM runs"`
	Format    string `json:"format,omitempty" enum:"qcow2,raw" doc:"how disks are published; qcow2 unless there is a reason"`
}

// RestoreSpec asks for a full restore of a VM.
type RestoreSpec struct {
	Point         string            `json:"point" doc:"an ID or a unique prefix of one, or VM@latest, VM@2026-09-14T02, VM@-3d"`
	Manager       string            `json:"manager,omitempty" doc:"the engine to restore to; by default the one the point came from"`
	Name          string            `json:"name,omitempty" doc:"of the new VM; by default the old name, with a suffix if it is taken"`
	Cluster       string            `json:"cluster,omitempty" doc:"name or ID; by default the old one"`
	StorageDomain string            `json:"storage_domain,omitempty" doc:"name or ID; by default where each disk was"`
	Disks         []int             `json:"disks,omitempty" doc:"numbers of the point's disks; all, if left out"`
	Networks      map[string]string `json:"networks,omitempty" doc:"from a network, vNIC profile or NIC of the point to a vNIC profile of the engine (PROFILE or NETWORK/PROFILE), or to nothing; by default to the same"`
	MAC           string            `json:"mac,omitempty" enum:"auto,keep,new" doc:"addresses of the NICs; auto: the old ones if nobody has them"`
	Verify        string            `json:"verify,omitempty" enum:"extents,full" doc:"how to see that what was uploaded is there; extents: data where the point has data; full: all of it is read back"`
	PowerOn       bool              `json:"power_on,omitempty"`
}

// Point is a restore point in lists.
type Point struct {
	Point string    `json:"point"`
	VM    string    `json:"vm"`
	Time  time.Time `json:"time"`
	Mode  string    `json:"mode,omitempty" doc:"full or incremental"`
	Size  int64     `json:"size_bytes"`
	Data  int64     `json:"data_bytes"`
	// LockedUntil is when the point may be removed again.
	LockedUntil *time.Time `json:"locked_until,omitempty"`
	// DamagedBytes of its disks are known to be unreadable, the first of them since DamagedSince.
	DamagedBytes int64      `json:"damaged_bytes,omitempty" doc:"of its disks, that cannot be read; absent if none are known"`
	DamagedSince *time.Time `json:"damaged_since,omitempty" doc:"when the first of that was found"`
}

// LockSpec asks for a point to be kept until a time.
type LockSpec struct {
	Point  string    `json:"point,omitempty" doc:"an ID or a unique prefix of one, or VM@latest, VM@2026-09-14T02, VM@-3d"`
	Until  time.Time `json:"until"`
	Reason string    `json:"reason,omitempty" maxLength:"1000" doc:"shown to whoever tries to remove it"`
}

// CollectSpec asks for space to be given back.
type CollectSpec struct {
	DryRun  bool `json:"dry_run,omitempty" doc:"only say how much that would be"`
	Compact bool `json:"compact,omitempty" doc:"then compress packs again, with more care, that are older than a day, as long as no other task runs"`
}

// StoreInfo says which store the node holds, and what time it believes.
type StoreInfo struct {
	UUID string `json:"uuid"`
	Dir  string `json:"dir" doc:"on the node"`
	// Believed is the time that locks are held against, Clock the machine's.
	Believed *time.Time `json:"believed_time,omitempty" doc:"absent if nothing was ever locked"`
	Clock    time.Time  `json:"clock"`
	Doubtful bool       `json:"clock_doubtful" doc:"the machine's clock jumped: locks stay shut until a person confirms it"`
	Damage   Damage     `json:"damage"`
	Scrub    Scrub      `json:"scrub"`
}

// Damage is what is known of damage in a store.
type Damage struct {
	Chunks    int64      `json:"chunks" doc:"in quarantine: damaged, until a backup brings them again"`
	Pages     int64      `json:"pages" doc:"of manifests, likewise"`
	LostPacks int64      `json:"lost_packs" doc:"of which nothing can be read"`
	Healed    int64      `json:"healed" doc:"chunks and pages that are damaged, and lie elsewhere in the store too"`
	Since     *time.Time `json:"since,omitempty" doc:"when the oldest of it was found that is not healed"`
	Points    int        `json:"points" doc:"that are hit"`
	Bytes     int64      `json:"bytes" doc:"of their disks"`
}

// Scrub says how the store is read again and again.
type Scrub struct {
	Running   *Pass `json:"running,omitempty" doc:"that is on its way"`
	LeftBytes int64 `json:"left_bytes,omitempty" doc:"of packs that it has not read yet"`
	Last      *Pass `json:"last,omitempty" doc:"that came to its end"`
	Verified  *Pass `json:"verified,omitempty" doc:"the last store verify, of the whole store"`
}

// Pass is one look at the whole store.
type Pass struct {
	Began   time.Time  `json:"began"`
	Ended   *time.Time `json:"ended,omitempty"`
	Quick   bool       `json:"quick,omitempty" doc:"content was not read"`
	Packs   int64      `json:"packs"`
	Bytes   int64      `json:"bytes" doc:"read and hashed again"`
	Found   int64      `json:"found" doc:"chunks and pages that were found damaged, which was not known"`
	Faults  int64      `json:"faults" doc:"what is not as it was stored, and not healed"`
	Objects []string   `json:"objects,omitempty" doc:"damaged files, at most 20"`
}
