package appliance

import "time"

// RestoreState is a step of a full restore.
type RestoreState string

// The states, in order. Each is written down before the work that it names begins.
const (
	RestorePrepare RestoreState = "prepare" // point picked, names, space and networks checked
	RestoreUpload  RestoreState = "upload"  // disks are made on the engine and filled
	RestoreCreate  RestoreState = "create"  // the VM is made, gets its disks, networks and tags
	RestoreStart   RestoreState = "start"   // the VM is started, if it was asked for
	RestoreDone    RestoreState = "done"
	RestoreUndo    RestoreState = "undo"   // being taken apart after an error
	RestoreFailed  RestoreState = "failed" // taken apart; Problem says why
)

// Restore is a full restore of a VM as people and programs see it: what is, or would be, made.
type Restore struct {
	ID       string        `json:"id,omitempty" doc:"absent of one that is only looked at"`
	State    RestoreState  `json:"state"`
	Manager  string        `json:"manager"`
	Point    string        `json:"point"`
	SourceVM string        `json:"source_vm" doc:"name of the VM that was backed up"`
	VM       string        `json:"vm" doc:"name of the VM that is made"`
	VMID     string        `json:"vm_id,omitempty"`
	Cluster  string        `json:"cluster"`
	PowerOn  bool          `json:"power_on"`
	Verify   string        `json:"verify" doc:"extents or full"`
	Disks    []RestoreDisk `json:"disks"`
	NICs     []RestoreNIC  `json:"nics"`
	Tags     []string      `json:"tags,omitempty"`
	Notes    []string      `json:"notes,omitempty" doc:"what a person should know before: choices that were made, and what is not restored"`
	Created  time.Time     `json:"created"`
	Task     string        `json:"task,omitempty"`
	Problem  *Problem      `json:"problem,omitempty"`
}

// RestoreDisk is a disk that a full restore makes.
type RestoreDisk struct {
	Number    int    `json:"disk"`
	ID        string `json:"id,omitempty" doc:"the engine's disk; absent of a restore that is only looked at"`
	Alias     string `json:"alias"`
	SizeBytes int64  `json:"size_bytes"`
	DataBytes int64  `json:"data_bytes" doc:"that are not zeros, and will be uploaded"`
	Format    string `json:"format" doc:"cow or raw"`
	Sparse    bool   `json:"sparse"`
	Domain    string `json:"domain" doc:"name of the storage domain"`
	Interface string `json:"interface"`
	Bootable  bool   `json:"bootable"`
	Uploaded  bool   `json:"uploaded"`
}

// RestoreNIC is a network interface that the VM gets.
type RestoreNIC struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty" doc:"absent if the engine draws a new one"`
	Profile string `json:"profile,omitempty" doc:"network/vNIC profile; absent if it is left without a network"`
}
