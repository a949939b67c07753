package ovirt

import (
	"context"
	"log/slog"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Options say which engine, and as whom.
type Options struct {
	URL      string // any form that NormalizeURL takes
	User     string // user@domain
	Password string
	CA       []byte        // PEM; nothing else is trusted
	Logger   *slog.Logger  // nil is silent
	Timeout  time.Duration // of one request; 0 for the default, 180 s
}

// Client is a login to one engine.
type Client struct{}

// Dial logs in.
func Dial(ctx context.Context, o Options) (*Client, error) { return nil, unbuilt() }

// NormalizeURL returns the one form of an engine's address.
func NormalizeURL(url string) (string, error) { return "", unbuilt() }

// CheckUser tells whether a user's name has the form the engine needs.
func CheckUser(user string) error { return unbuilt() }

// FetchCA asks an engine for the certificate of its authority, without trusting the answer.
func FetchCA(ctx context.Context, url string) (pem []byte, fingerprint string, err error) {
	return nil, "", unbuilt()
}

// Fingerprint returns the SHA-256 of a certificate, in hex.
func Fingerprint(pem []byte) (string, error) { return "", unbuilt() }

// SameFingerprint tells whether two fingerprints are equal, however they are written.
func SameFingerprint(a, b string) bool { return false }

// WithCorrelation returns a context whose requests the engine keeps under a name.
func WithCorrelation(ctx context.Context, id string) context.Context { return ctx }

// StripOVF takes disks and snapshots out of an OVF.
func StripOVF(ovf string) (string, error) { return "", unbuilt() }

func unbuilt() error { return errs.Text("use the engine client", "", errs.Bug, "not built yet") }

// Close is not built yet.
func (c *Client) Close(ctx context.Context) error { return unbuilt() }

// Info is not built yet.
func (c *Client) Info(ctx context.Context) (Info, error) { return Info{}, unbuilt() }

// VMs is not built yet.
func (c *Client) VMs(ctx context.Context) ([]VM, error) { return nil, unbuilt() }

// VM is not built yet.
func (c *Client) VM(ctx context.Context, id ID) (VM, error) { return VM{}, unbuilt() }

// FindVM is not built yet.
func (c *Client) FindVM(ctx context.Context, name string) (VM, error) { return VM{}, unbuilt() }

// VMConfig is not built yet.
func (c *Client) VMConfig(ctx context.Context, id ID) (string, error) { return "", unbuilt() }

// Disks is not built yet.
func (c *Client) Disks(ctx context.Context, vm ID) ([]Disk, error) { return nil, unbuilt() }

// Disk is not built yet.
func (c *Client) Disk(ctx context.Context, id ID) (Disk, error) { return Disk{}, unbuilt() }

// SetIncremental is not built yet.
func (c *Client) SetIncremental(ctx context.Context, disk ID) error { return unbuilt() }

// StartBackup is not built yet.
func (c *Client) StartBackup(ctx context.Context, vm ID, s BackupSpec) (Backup, error) {
	return Backup{}, unbuilt()
}

// Backup is not built yet.
func (c *Client) Backup(ctx context.Context, vm, id ID) (Backup, error) { return Backup{}, unbuilt() }

// BackupDisks is not built yet.
func (c *Client) BackupDisks(ctx context.Context, vm, id ID) ([]BackupDisk, error) {
	return nil, unbuilt()
}

// FinalizeBackup is not built yet.
func (c *Client) FinalizeBackup(ctx context.Context, vm, id ID) error { return unbuilt() }

// Checkpoints is not built yet.
func (c *Client) Checkpoints(ctx context.Context, vm ID) ([]Checkpoint, error) { return nil, unbuilt() }

// RemoveCheckpoint is not built yet.
func (c *Client) RemoveCheckpoint(ctx context.Context, vm, id ID) error { return unbuilt() }

// StartTransfer is not built yet.
func (c *Client) StartTransfer(ctx context.Context, s TransferSpec) (Transfer, error) {
	return Transfer{}, unbuilt()
}

// Transfer is not built yet.
func (c *Client) Transfer(ctx context.Context, id ID) (Transfer, error) { return Transfer{}, unbuilt() }

// Transfers is not built yet.
func (c *Client) Transfers(ctx context.Context, backup ID) ([]Transfer, error) { return nil, unbuilt() }

// FinalizeTransfer is not built yet.
func (c *Client) FinalizeTransfer(ctx context.Context, id ID) error { return unbuilt() }

// CancelTransfer is not built yet.
func (c *Client) CancelTransfer(ctx context.Context, id ID) error { return unbuilt() }

// ExtendTransfer is not built yet.
func (c *Client) ExtendTransfer(ctx context.Context, id ID) error { return unbuilt() }

// DataCenters is not built yet.
func (c *Client) DataCenters(ctx context.Context) ([]DataCenter, error) { return nil, unbuilt() }

// Clusters is not built yet.
func (c *Client) Clusters(ctx context.Context) ([]Cluster, error) { return nil, unbuilt() }

// Hosts is not built yet.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) { return nil, unbuilt() }

// Domains is not built yet.
func (c *Client) Domains(ctx context.Context, dc ID) ([]Domain, error) { return nil, unbuilt() }

// FindDomain is not built yet.
func (c *Client) FindDomain(ctx context.Context, id ID) (Domain, error) { return Domain{}, unbuilt() }

// FindDomainByName is not built yet.
func (c *Client) FindDomainByName(ctx context.Context, name string) (Domain, error) {
	return Domain{}, unbuilt()
}

// Domain is not built yet.
func (c *Client) Domain(ctx context.Context, dc, id ID) (Domain, error) { return Domain{}, unbuilt() }

// FindConnection is not built yet.
func (c *Client) FindConnection(ctx context.Context, address, path string) (Connection, error) {
	return Connection{}, unbuilt()
}

// AddConnection is not built yet.
func (c *Client) AddConnection(ctx context.Context, n Connection) (Connection, error) {
	return Connection{}, unbuilt()
}

// RemoveConnection is not built yet.
func (c *Client) RemoveConnection(ctx context.Context, id, host ID) error { return unbuilt() }

// ImportDomain is not built yet.
func (c *Client) ImportDomain(ctx context.Context, s DomainSpec) (Domain, error) {
	return Domain{}, unbuilt()
}

// AttachDomain is not built yet.
func (c *Client) AttachDomain(ctx context.Context, dc, id ID) error { return unbuilt() }

// ActivateDomain is not built yet.
func (c *Client) ActivateDomain(ctx context.Context, dc, id ID) error { return unbuilt() }

// DeactivateDomain is not built yet.
func (c *Client) DeactivateDomain(ctx context.Context, dc, id ID) error { return unbuilt() }

// DetachDomain is not built yet.
func (c *Client) DetachDomain(ctx context.Context, dc, id ID) error { return unbuilt() }

// RemoveDomain is not built yet.
func (c *Client) RemoveDomain(ctx context.Context, id, host ID) error { return unbuilt() }

// DestroyDomain is not built yet.
func (c *Client) DestroyDomain(ctx context.Context, id ID) error { return unbuilt() }

// UnregisteredDisks is not built yet.
func (c *Client) UnregisteredDisks(ctx context.Context, domain ID) ([]Disk, error) {
	return nil, unbuilt()
}

// RegisterDisk is not built yet.
func (c *Client) RegisterDisk(ctx context.Context, dc, domain, disk ID) error { return unbuilt() }

// CreateVM is not built yet.
func (c *Client) CreateVM(ctx context.Context, n NewVM) (VM, error) { return VM{}, unbuilt() }

// AttachDisk is not built yet.
func (c *Client) AttachDisk(ctx context.Context, vm ID, a NewAttachment) error { return unbuilt() }

// DetachDisk is not built yet.
func (c *Client) DetachDisk(ctx context.Context, vm, disk ID) error { return unbuilt() }

// StartVM is not built yet.
func (c *Client) StartVM(ctx context.Context, vm ID) error { return unbuilt() }

// ShutdownVM is not built yet.
func (c *Client) ShutdownVM(ctx context.Context, vm ID) error { return unbuilt() }

// StopVM is not built yet.
func (c *Client) StopVM(ctx context.Context, vm ID) error { return unbuilt() }

// RemoveVM is not built yet.
func (c *Client) RemoveVM(ctx context.Context, vm ID, keepDisks bool) error { return unbuilt() }

// RemoveDisk is not built yet.
func (c *Client) RemoveDisk(ctx context.Context, disk ID) error { return unbuilt() }

// MoveDisk is not built yet.
func (c *Client) MoveDisk(ctx context.Context, disk, domain ID) error { return unbuilt() }

// Snapshots is not built yet.
func (c *Client) Snapshots(ctx context.Context, vm ID) ([]Snapshot, error) { return nil, unbuilt() }

// RemoveSnapshot is not built yet.
func (c *Client) RemoveSnapshot(ctx context.Context, vm, id ID) error { return unbuilt() }

// Jobs is not built yet.
func (c *Client) Jobs(ctx context.Context, correlation string) ([]Job, error) { return nil, unbuilt() }

// PostEvent is not built yet.
func (c *Client) PostEvent(ctx context.Context, e Event) error { return unbuilt() }
