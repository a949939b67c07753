package ovirt

import (
	"context"
	"encoding/xml"
	"net/url"
	"regexp"
	"slices"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

type xmlBackup struct {
	XMLName     xml.Name `xml:"backup"`
	ID          ID       `xml:"id,attr,omitempty"`
	Description string   `xml:"description,omitempty"`
	From        ID       `xml:"from_checkpoint_id,omitempty"`
	Disks       []xmlRef `xml:"disks>disk"`
}

// jsonBackup is a backup with its snapshot, which go-ovirt's model does not have. Dates are numbers.
type jsonBackup struct {
	ID      ID          `json:"id"`
	Phase   BackupPhase `json:"phase"`
	From    ID          `json:"from_checkpoint_id"`
	To      ID          `json:"to_checkpoint_id"`
	Created int64       `json:"creation_date"` // ms
	Host    struct {
		ID ID `json:"id"`
	} `json:"host"`
	Snapshot struct {
		ID ID `json:"id"`
	} `json:"snapshot"`
}

func (b jsonBackup) word() Backup {
	w := Backup{ID: b.ID, Phase: b.Phase, FromCheckpoint: b.From, ToCheckpoint: b.To, Host: b.Host.ID, Snapshot: b.Snapshot.ID}
	if b.Created > 0 {
		w.Created = time.UnixMilli(b.Created).UTC()
	}
	return w
}

const startTries = 3

// keyTwice is what some builds between 4.5.5 and 4.5.7 say to every backup with a snapshot of the engine's own.
var keyTwice = regexp.MustCompile(`(?i)duplicate key|vm_backups_pkey`)

// StartBackup starts a backup under an ID of ours. Whatever goes wrong it looks whether the engine has that backup, and
// returns it if so; an answer that was lost makes no second backup. A checkpoint that the engine does not know, or does
// not believe in, is errs.Stale.
func (c *Client) StartBackup(ctx context.Context, vm ID, s BackupSpec) (Backup, error) {
	const op = "start backup of VM"
	if err := checkID(op, append([]ID{vm, s.ID}, s.Disks...)...); err != nil {
		return Backup{}, err
	}
	if len(s.Disks) == 0 {
		return Backup{}, errs.Text(op, string(vm), errs.Invalid, "no disk was named")
	}
	c.remember(s.ID, vm)
	pause := c.pause
	for n := 1; ; n++ {
		b, err := c.askBackup(ctx, vm, s)
		if err == nil || errs.Is(err, errs.Denied) || errs.Is(err, errs.Canceled) {
			return b, err
		}
		have, lookErr := c.Backup(ctx, vm, s.ID)
		switch {
		case lookErr == nil:
			return have, nil
		case refusedWith(err, keyTwice) && !s.Legacy:
			s.Legacy = true
		case n >= startTries || !errs.Is(err, errs.Transient) || !errs.Is(lookErr, errs.NotFound):
			return Backup{}, err
		}
		if sleep(ctx, pause) != nil {
			return Backup{}, err
		}
		pause *= 2
	}
}

func (c *Client) askBackup(ctx context.Context, vm ID, s BackupSpec) (Backup, error) {
	x := xmlBackup{ID: s.ID, Description: s.Description, From: s.From}
	for _, d := range s.Disks {
		x.Disks = append(x.Disks, xmlRef{d})
	}
	r := post("start backup of VM", string(vm), "/vms/"+string(vm)+"/backups", x)
	r.query = url.Values{}
	if s.RequireConsistency {
		r.query.Set("require_consistency", "true")
	}
	if s.Legacy {
		r.query.Set("legacy", "true")
	}
	b, err := fetchJSON[jsonBackup](ctx, c, r)
	return b.word(), err
}

// maxRemembered bounds the memory of which VM a backup is of.
const maxRemembered = 4096

func (c *Client) remember(backup, vm ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.backups) >= maxRemembered {
		clear(c.backups)
	}
	c.backups[backup] = vm
}

func (c *Client) remembered(backup ID) (vm ID, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	vm, ok = c.backups[backup]
	return vm, ok
}

// Backup returns a backup, also one that has ended; the engine forgets it about a quarter of an hour later.
func (c *Client) Backup(ctx context.Context, vm, id ID) (Backup, error) {
	const op = "look at backup"
	if err := checkID(op, vm, id); err != nil {
		return Backup{}, err
	}
	b, err := fetchJSON[jsonBackup](ctx, c, get(op, string(id), "/vms/"+string(vm)+"/backups/"+string(id)))
	if err == nil {
		c.remember(id, vm)
	}
	return b.word(), err
}

// BackupDisks lists the disks of a backup and what each can deliver.
func (c *Client) BackupDisks(ctx context.Context, vm, id ID) ([]BackupDisk, error) {
	const op = "list disks of backup"
	if err := checkID(op, vm, id); err != nil {
		return nil, err
	}
	list, err := readMany(ctx, c, get(op, string(id), "/vms/"+string(vm)+"/backups/"+string(id)+"/disks"), "disks", ovirtsdk.XMLDiskReadMany,
		func(d *ovirtsdk.Disk) BackupDisk {
			return BackupDisk{Disk: ID(or(d.Id())), Incremental: or(d.BackupMode()) == ovirtsdk.DISKBACKUPMODE_INCREMENTAL}
		})
	if err == nil && len(list) == 0 {
		_, err = c.Backup(ctx, vm, id)
	}
	return list, err
}

var stoppedAlready = regexp.MustCompile(`(?i)already stopped|already in '?\w*'? ?phase`)

// FinalizeBackup ends a backup, and returns before it has ended: for some seconds the engine goes on showing it as ready.
// One that is ending or has ended is no error. An active transfer is errs.Busy.
func (c *Client) FinalizeBackup(ctx context.Context, vm, id ID) error {
	const op = "finalize backup"
	if err := checkID(op, vm, id); err != nil {
		return err
	}
	_, err := c.do(ctx, post(op, string(id), "/vms/"+string(vm)+"/backups/"+string(id)+"/finalize", xmlAction{}))
	if refusedWith(err, stoppedAlready) {
		return nil
	}
	return err
}

// Checkpoints lists a VM's checkpoints, the oldest first.
func (c *Client) Checkpoints(ctx context.Context, vm ID) ([]Checkpoint, error) {
	const op = "list checkpoints of VM"
	if err := checkID(op, vm); err != nil {
		return nil, err
	}
	list, err := readMany(ctx, c, get(op, string(vm), "/vms/"+string(vm)+"/checkpoints"), "checkpoints", ovirtsdk.XMLCheckpointReadMany, checkpointWord)
	return checked(ctx, c, vm, list, err)
}

// RemoveCheckpoint removes a checkpoint, wherever it is in the chain.
func (c *Client) RemoveCheckpoint(ctx context.Context, vm, id ID) error {
	const op = "remove checkpoint"
	if err := checkID(op, vm, id); err != nil {
		return err
	}
	_, err := c.do(ctx, remove(op, string(id), "/vms/"+string(vm)+"/checkpoints/"+string(id)))
	return err
}

type xmlTransfer struct {
	XMLName    xml.Name `xml:"image_transfer"`
	Disk       *xmlRef  `xml:"disk"`
	Volume     *xmlRef  `xml:"snapshot"`
	Backup     *xmlRef  `xml:"backup"`
	Direction  string   `xml:"direction"`
	Format     string   `xml:"format"`
	Shallow    bool     `xml:"shallow,omitempty"`
	Inactivity int64    `xml:"inactivity_timeout"`
	Policy     string   `xml:"timeout_policy"`
}

// StartTransfer asks for a download or an upload. Its answer may not have URLs yet. If the answer is lost a transfer may
// exist: Transfers, DiskTransfers of an upload, or LiveTransfers finds it.
func (c *Client) StartTransfer(ctx context.Context, s TransferSpec) (Transfer, error) {
	const op = "start transfer of disk"
	x := xmlTransfer{Direction: "download", Format: "raw", Shallow: s.Shallow, Inactivity: int64(s.Inactivity / time.Second), Policy: "cancel"}
	var err error
	switch {
	case s.Upload:
		x.Direction, x.Disk, err = "upload", ref(s.Disk), checkID(op, s.Disk)
	case s.Volume != "": // the element is called snapshot, and has a volume's ID
		x.Volume, err = ref(s.Volume), checkID(op, s.Disk, s.Volume)
	default:
		x.Disk, x.Backup, err = ref(s.Disk), ref(s.Backup), checkID(op, s.Disk, s.Backup)
	}
	if err != nil {
		return Transfer{}, err
	}
	if s.Inactivity < time.Minute {
		return Transfer{}, errs.Text(op, string(s.Disk), errs.Invalid, "the daemon would end it within a minute")
	}
	t, err := readOne(ctx, c, post(op, string(s.Disk), "/imagetransfers", x), "image_transfer", ovirtsdk.XMLImageTransferReadOne)
	if err != nil {
		return Transfer{}, err
	}
	return transferWord(t), nil
}

// Transfer returns a transfer, also one that has ended.
func (c *Client) Transfer(ctx context.Context, id ID) (Transfer, error) {
	const op = "look at transfer"
	if err := checkID(op, id); err != nil {
		return Transfer{}, err
	}
	t, err := readOne(ctx, c, get(op, string(id), "/imagetransfers/"+string(id)), "image_transfer", ovirtsdk.XMLImageTransferReadOne)
	if err != nil {
		return Transfer{}, err
	}
	return transferWord(t), nil
}

// Transfers lists the transfers of a backup that have not ended. The engine does not say of which backup a transfer is,
// so that this is: those that have not ended and whose disk the backup has. A transfer of another backup of the same disk
// can only be there while that backup is, and a disk is in one backup at a time.
func (c *Client) Transfers(ctx context.Context, backup ID) ([]Transfer, error) {
	const op = "list transfers of backup"
	if err := checkID(op, backup); err != nil {
		return nil, err
	}
	live, err := c.LiveTransfers(ctx)
	if err != nil || len(live) == 0 {
		return live, errs.Wrap(op, string(backup), err)
	}
	vm, err := c.vmOf(ctx, backup, live)
	if errs.Is(err, errs.NotFound) {
		return nil, nil // no such backup: no transfer is its
	}
	if err != nil {
		return nil, errs.Wrap(op, string(backup), err)
	}
	disks, err := c.BackupDisks(ctx, vm, backup)
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	return slices.DeleteFunc(live, func(t Transfer) bool {
		return !slices.ContainsFunc(disks, func(d BackupDisk) bool { return d.Disk == t.Disk })
	}), err
}

// DiskTransfers lists the transfers of a disk that have not ended.
func (c *Client) DiskTransfers(ctx context.Context, disk ID) ([]Transfer, error) {
	const op = "list transfers of disk"
	if err := checkID(op, disk); err != nil {
		return nil, err
	}
	all, err := c.LiveTransfers(ctx)
	return slices.DeleteFunc(all, func(t Transfer) bool { return t.Disk != disk }), errs.Wrap(op, string(disk), err)
}

// LiveTransfers lists the transfers of all disks that have not ended.
func (c *Client) LiveTransfers(ctx context.Context) ([]Transfer, error) {
	all, err := readMany(ctx, c, get("list transfers", "", "/imagetransfers"), "image_transfers", ovirtsdk.XMLImageTransferReadMany, transferWord)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(t Transfer) bool { return finished(t.Phase) }), nil
}

// finished tells whether a transfer holds nothing any more.
func finished(p TransferPhase) bool {
	return p == TransferFinishedSuccess || p == TransferFinishedFailure || p == TransferFinishedCleanup
}

// vmOf finds the VM of a backup: the one that was seen with it, else the one among those with the transfers' disks that
// has such a backup.
func (c *Client) vmOf(ctx context.Context, backup ID, live []Transfer) (ID, error) {
	if vm, ok := c.remembered(backup); ok {
		return vm, nil
	}
	vms, err := c.VMs(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range vms {
		if !slices.ContainsFunc(v.Disks, func(a Attachment) bool {
			return slices.ContainsFunc(live, func(t Transfer) bool { return t.Disk == a.Disk })
		}) {
			continue
		}
		if _, err := c.Backup(ctx, v.ID, backup); err == nil {
			return v.ID, nil
		} else if !errs.Is(err, errs.NotFound) {
			return "", err
		}
	}
	return "", errs.Text("find the VM of backup", string(backup), errs.NotFound, "no VM has it")
}

// FinalizeTransfer ends a transfer well, and returns before it has ended. One that has ended is no error.
func (c *Client) FinalizeTransfer(ctx context.Context, id ID) error {
	return c.endTransfer(ctx, "finalize transfer", id, "finalize")
}

// CancelTransfer gives a transfer up, and returns before it has ended. One that has ended is no error.
func (c *Client) CancelTransfer(ctx context.Context, id ID) error {
	return c.endTransfer(ctx, "cancel transfer", id, "cancel")
}

// ExtendTransfer keeps a transfer alive that nobody reads from.
func (c *Client) ExtendTransfer(ctx context.Context, id ID) error {
	return c.endTransfer(ctx, "extend transfer", id, "extend")
}

// endTransfer looks first: the engine says yes to anything that is asked of a transfer it does not know.
func (c *Client) endTransfer(ctx context.Context, op string, id ID, action string) error {
	if _, err := c.Transfer(ctx, id); err != nil {
		return errs.Wrap(op, string(id), err)
	}
	_, err := c.do(ctx, post(op, string(id), "/imagetransfers/"+string(id)+"/"+action, xmlAction{}))
	return err
}
