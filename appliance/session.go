package appliance

import "time"

// SessionState is a step of an instant restore, from export to release.
type SessionState string

// The states, in order. Each is written down before the work that leads to the next one begins.
const (
	SessionPrepare   SessionState = "prepare"   // point picked, names and space checked
	SessionExport    SessionState = "export"    // the storage domain is written and served
	SessionAttach    SessionState = "attach"    // the engine imports and activates it
	SessionRegister  SessionState = "register"  // its disks become the engine's
	SessionCreate    SessionState = "create"    // the VM is made and gets its disks
	SessionStart     SessionState = "start"     // the VM is started, if it was asked for
	SessionRunning   SessionState = "running"   // disks are served until somebody migrates or releases
	SessionMigrating SessionState = "migrating" // disks move to production storage
	SessionMigrated  SessionState = "migrated"  // no disk is served any more
	SessionRelease   SessionState = "release"   // being taken apart
	SessionReleased  SessionState = "released"  // nothing is left
	SessionFailed    SessionState = "failed"    // taken apart after an error; Problem says which
)

// Session is one instant restore as people and programs see it.
type Session struct {
	ID        string        `json:"id"`
	State     SessionState  `json:"state"`
	Manager   string        `json:"manager"`
	Point     string        `json:"point"`
	SourceVM  string        `json:"source_vm" doc:"name of the VM that was backed up"`
	VM        string        `json:"vm" doc:"name of the restored VM"`
	VMID      string        `json:"vm_id,omitempty"`
	Domain    string        `json:"domain" doc:"name of the storage domain on the engine"`
	DomainID  string        `json:"domain_id"`
	Export    string        `json:"export" doc:"address:/path as the hosts mount it"`
	Created   time.Time     `json:"created"`
	Task      string        `json:"task" doc:"the task that works on it, or did last"`
	Disks     []SessionDisk `json:"disks"`
	MigrateTo string        `json:"migrate_to,omitempty"`
	Problem   *Problem      `json:"problem,omitempty"`
}

// SessionDisk is a disk of a session.
type SessionDisk struct {
	Number     int    `json:"disk"`
	ID         string `json:"id" doc:"the engine's disk"`
	SizeBytes  int64  `json:"size_bytes"`
	DataBytes  int64  `json:"data_bytes" doc:"of the restore point's disk that are not zeros"`
	DirtyBytes int64  `json:"dirty_bytes" doc:"written since the session began"`
	ReadBytes  int64  `json:"read_bytes"`
	Format     string `json:"format"`
	Migrated   bool   `json:"migrated"`
}

// Manager is an oVirt engine with its credentials, without the secret ones.
type Manager struct {
	Name        string    `json:"name"`
	URL         string    `json:"url"`
	User        string    `json:"user"`
	Fingerprint string    `json:"fingerprint" doc:"SHA-256 of the certificate authority's certificate"`
	Version     string    `json:"version,omitempty"`
	Added       time.Time `json:"added"`
}

// VM is a virtual machine, on an engine now or only in the store.
type VM struct {
	ID      string   `json:"id,omitempty"`
	Name    string   `json:"name"`
	Manager string   `json:"manager,omitempty"`
	Status  string   `json:"status" doc:"the engine's word; \"gone\" if no engine has it; \"unknown\" if its engine cannot be asked"`
	Tags    []string `json:"tags,omitempty"`
	Disks   []VMDisk `json:"disks,omitempty"`
	Points  int      `json:"points"`
	Newest  *Newest  `json:"newest,omitempty"`
}

// VMDisk is a disk of a VM.
type VMDisk struct {
	ID        string `json:"id"`
	Alias     string `json:"alias"`
	SizeBytes int64  `json:"size_bytes"`
	Format    string `json:"format"`
	CBT       bool   `json:"incremental_backup"`
	Hole      string `json:"hole,omitempty" doc:"why it cannot be backed up; empty if it can"`
}

// Newest is a VM's newest restore point.
type Newest struct {
	Point string    `json:"point"`
	Time  time.Time `json:"time"`
}
