package ovirt

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// document parses an answer as far as its root, after having seen that all of it is there: go-ovirt's readers take a
// truncated document for a short one, or panic over it, and print to standard output.
func document(answer []byte, root string) (*ovirtsdk.XMLReader, *xml.StartElement, error) {
	d := xml.NewDecoder(bytes.NewReader(answer))
	for {
		if _, err := d.RawToken(); err == io.EOF {
			break
		} else if err != nil {
			return nil, nil, err
		}
	}
	r := ovirtsdk.NewXMLReader(answer)
	for {
		t, err := r.Token()
		if err != nil {
			return nil, nil, errors.New("it is empty")
		}
		if s, ok := t.(xml.StartElement); ok {
			if s.Name.Local != root {
				return nil, nil, fmt.Errorf("<%s> where <%s> was expected", s.Name.Local, root)
			}
			s = s.Copy()
			return r, &s, whole(answer)
		}
	}
}

// whole tells whether every element is closed.
func whole(answer []byte) error {
	d := xml.NewDecoder(bytes.NewReader(answer))
	for {
		if _, err := d.Token(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// guarded calls one of go-ovirt's readers and makes an error of its panic.
func guarded[T any](read func() (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("go-ovirt: %v", p)
		}
	}()
	return read()
}

type reader[T any] func(*ovirtsdk.XMLReader, *xml.StartElement, string) (*T, error)

// readOne sends a request and reads one entity of go-ovirt's model.
func readOne[T any](ctx context.Context, c *Client, r request, root string, read reader[T]) (*T, error) {
	answer, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	x, start, err := document(answer, root)
	if err == nil {
		var one *T
		if one, err = guarded(func() (*T, error) { return read(x, start, root) }); err == nil && one != nil {
			return one, nil
		}
	}
	return nil, notUnderstood(r, err)
}

// notUnderstood drops the values that parsers quote: one may be a ticket.
func notUnderstood(r request, err error) error {
	var number *strconv.NumError
	var date *time.ParseError
	switch {
	case errors.As(err, &number):
		err = fmt.Errorf("a number is damaged: %w", number.Err)
	case errors.As(err, &date):
		err = errors.New("a date is damaged")
	}
	return errs.New(r.op, r.subject, errs.Bug, fmt.Errorf("the engine's answer is not understood: %w", err))
}

// slice is one of go-ovirt's lists.
type slice[T any] interface{ Slice() []*T }

// readMany sends a request and reads a list of entities into our words.
func readMany[T any, S slice[T], W any](ctx context.Context, c *Client, r request, root string,
	read func(*ovirtsdk.XMLReader, *xml.StartElement) (S, error), word func(*T) W) ([]W, error) {
	answer, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	var list S
	x, start, err := document(answer, root)
	if err == nil {
		list, err = guarded(func() (S, error) { return read(x, start) })
	}
	if err != nil {
		return nil, notUnderstood(r, err)
	}
	words := make([]W, 0, len(list.Slice()))
	for _, one := range list.Slice() {
		words = append(words, word(one))
	}
	return words, nil
}

// or drops go-ovirt's second result: what is absent is the zero value in our words.
func or[T any](v T, _ bool) T { return v }

type identified interface{ Id() (string, bool) }

// idOf returns the ID of what one of go-ovirt's getters gave.
func idOf[T identified](v T, ok bool) ID {
	if !ok {
		return ""
	}
	return ID(or(v.Id()))
}

func vmWord(v *ovirtsdk.Vm) VM {
	origin := or(v.Origin())
	w := VM{
		ID: ID(or(v.Id())), Name: or(v.Name()), Status: VMStatus(or(v.Status())), Cluster: idOf(v.Cluster()), Host: idOf(v.Host()),
		MemoryMiB: or(v.Memory()) >> 20, Description: or(v.Description()),
		HostedHere: origin == "managed_hosted_engine" || origin == "hosted_engine",
	}
	if tags, ok := v.Tags(); ok {
		for _, t := range tags.Slice() {
			w.Tags = append(w.Tags, or(t.Name()))
		}
	}
	if list, ok := v.DiskAttachments(); ok {
		for _, a := range list.Slice() {
			w.Disks = append(w.Disks, attachmentWord(a))
		}
	}
	return w
}

func attachmentWord(a *ovirtsdk.DiskAttachment) Attachment {
	w := Attachment{
		Disk: idOf(a.Disk()), Interface: string(or(a.Interface())),
		Bootable: or(a.Bootable()), Active: or(a.Active()), ReadOnly: or(a.ReadOnly()),
	}
	if w.Disk == "" {
		w.Disk = ID(or(a.Id())) // an attachment has its disk's ID
	}
	return w
}

func diskWord(d *ovirtsdk.Disk) Disk {
	w := Disk{
		ID: ID(or(d.Id())), Image: ID(or(d.ImageId())), Alias: or(d.Alias()), Status: DiskStatus(or(d.Status())),
		Format: DiskFormat(or(d.Format())), Provisioned: or(d.ProvisionedSize()), Actual: or(d.ActualSize()),
		Storage: string(or(d.StorageType())), Shareable: or(d.Shareable()),
		Incremental: or(d.Backup()) == ovirtsdk.DISKBACKUP_INCREMENTAL, ContentType: string(or(d.ContentType())),
	}
	if list, ok := d.StorageDomains(); ok && len(list.Slice()) > 0 {
		w.Domain = ID(or(list.Slice()[0].Id()))
	}
	return w
}

func domainWord(d *ovirtsdk.StorageDomain) Domain {
	w := Domain{
		ID: ID(or(d.Id())), Name: or(d.Name()), Type: string(or(d.Type())), Status: DomainStatus(or(d.Status())),
		Master: or(d.Master()), Available: or(d.Available()), Used: or(d.Used()), Format: string(or(d.StorageFormat())),
		DataCenter: idOf(d.DataCenter()),
	}
	if s, ok := d.Storage(); ok {
		w.StorageType = string(or(s.Type()))
	}
	if list, ok := d.DataCenters(); ok && w.DataCenter == "" && len(list.Slice()) > 0 {
		w.DataCenter = ID(or(list.Slice()[0].Id()))
	}
	return w
}

func connectionWord(s *ovirtsdk.StorageConnection) Connection {
	return Connection{ID: ID(or(s.Id())), Address: or(s.Address()), Path: or(s.Path()), MountOptions: or(s.MountOptions())}
}

func hostWord(h *ovirtsdk.Host) Host {
	return Host{ID: ID(or(h.Id())), Name: or(h.Name()), Address: or(h.Address()), Cluster: idOf(h.Cluster()), Status: string(or(h.Status()))}
}

func clusterWord(c *ovirtsdk.Cluster) Cluster {
	w := Cluster{ID: ID(or(c.Id())), Name: or(c.Name()), DataCenter: idOf(c.DataCenter())}
	if v, ok := c.Version(); ok {
		w.Version = fmt.Sprintf("%d.%d", or(v.Major()), or(v.Minor()))
	}
	return w
}

func dataCenterWord(d *ovirtsdk.DataCenter) DataCenter {
	return DataCenter{ID: ID(or(d.Id())), Name: or(d.Name()), Status: string(or(d.Status()))}
}

func jobWord(j *ovirtsdk.Job) Job {
	return Job{ID: ID(or(j.Id())), Description: or(j.Description()), Status: string(or(j.Status()))}
}

func snapshotWord(s *ovirtsdk.Snapshot) Snapshot {
	return Snapshot{
		ID: ID(or(s.Id())), Description: or(s.Description()), Status: string(or(s.SnapshotStatus())), Type: string(or(s.SnapshotType())),
	}
}

func volumeWord(s *ovirtsdk.DiskSnapshot) Volume {
	return Volume{ID: ID(or(s.Id())), Parent: idOf(s.Parent()), Snapshot: idOf(s.Snapshot()), Format: DiskFormat(or(s.Format()))}
}

func checkpointWord(p *ovirtsdk.Checkpoint) Checkpoint {
	return Checkpoint{
		ID: ID(or(p.Id())), Parent: ID(or(p.ParentId())), Created: or(p.CreationDate()),
		Valid: or(p.State()) != ovirtsdk.CHECKPOINTSTATE_INVALID,
	}
}

func transferWord(t *ovirtsdk.ImageTransfer) Transfer {
	w := Transfer{
		ID: ID(or(t.Id())), Phase: TransferPhase(or(t.Phase())), Disk: idOf(t.Image()),
		Download: or(t.Direction()) == ovirtsdk.IMAGETRANSFERDIRECTION_DOWNLOAD, TransferURL: or(t.TransferUrl()), ProxyURL: or(t.ProxyUrl()),
	}
	if w.Disk == "" {
		w.Disk = idOf(t.Disk()) // requests name the disk, answers call it image
	}
	return w
}
