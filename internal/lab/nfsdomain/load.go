package nfsdomain

import (
	"context"
	"crypto/rand"
	"path"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

// directRead is what vdsm's monitor reads of the metadata.
const directRead = 4096

// ProbeDomain connects to an NFS export and loads the domain there. Without one it returns nil.
func (h *Host) ProbeDomain(ctx context.Context, export, options string) (*engine.DomainInfo, error) {
	const op = "connect to storage"
	w, err := parseWhere(export, options)
	if err != nil {
		return nil, errs.Wrap(op, export, err)
	}
	fresh := &domain{nfs: newClient(w, h.o.Timeout), turn: make(chan struct{}, 1)}
	fresh.turn <- struct{}{}
	info, err := h.probe(ctx, fresh)
	known := false
	if err == nil && info != nil {
		known, err = h.remember(fresh)
	}
	if err != nil || info == nil || known {
		fresh.disconnect()
	}
	if err != nil {
		return nil, errs.Wrap(op, export, err)
	}
	return info, nil
}

func (h *Host) probe(ctx context.Context, d *domain) (*engine.DomainInfo, error) {
	if err := d.nfs.checkAccess(ctx); err != nil {
		return nil, err
	}
	var err error
	if d.id, err = d.nfs.find(ctx); err != nil || d.id == "" {
		return nil, err
	}
	m, err := d.load(ctx)
	if err != nil {
		return nil, err
	}
	available, total, err := d.nfs.space(ctx)
	if err != nil {
		return nil, err
	}
	h.log.Debug("a storage domain was found", "domain", d.id, "export", d.nfs.where.String(), "pool", m.pool())
	return &engine.DomainInfo{ID: d.id, Name: m["DESCRIPTION"], Pool: m.pool(), Version: domVersion, Available: available,
		Used: total - available}, nil
}

// Bits of access(2).
const (
	mayExecute = 1
	mayWrite   = 2
	mayRead    = 4
)

// checkAccess asks for what vdsm and qemu need in an export's root.
func (c *client) checkAccess(ctx context.Context) error {
	for _, need := range []struct {
		who  credentials
		bits int
		text string
	}{
		{asVDSM, mayRead | mayWrite | mayExecute, "read, write and search"}, {asQemu, mayRead | mayExecute, "read and search"},
	} {
		bits, err := c.access(ctx, need.who, "/")
		if err != nil {
			return err
		}
		if bits&need.bits != need.bits {
			return refusal(errs.Denied, "StorageServerAccessPermissionError", c.where.String(),
				"%s (uid %d, gid %d) may not %s its root folder", need.who.name, need.who.uid, need.who.gid, need.text)
		}
	}
	return nil
}

// find returns the name of the folder that holds a domain, or "". vdsm takes the first match of *-*-*-*-*/dom_md.
func (c *client) find(ctx context.Context) (string, error) {
	names, err := c.names(ctx, "/")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if strings.Count(name, "-") < 4 || strings.HasPrefix(name, ".") {
			continue
		}
		if _, err := c.stat(ctx, path.Join(name, "dom_md")); err == nil {
			return name, nil
		} else if !missing(err) {
			return "", err
		}
	}
	return "", nil
}

// load is what vdsm does each time before it uses a domain.
func (d *domain) load(ctx context.Context) (metadata, error) {
	if err := d.nfs.probeBlockSize(ctx); err != nil {
		return nil, err
	}
	if err := d.purge(ctx); err != nil {
		return nil, err
	}
	m, err := d.metadata(ctx)
	if err != nil {
		return nil, err
	}
	return m, m.check(d.id)
}

// probeBlockSize writes a file of its own into the export's root. A server over which a single byte can be written
// without a cache has no block size that matters.
func (c *client) probeBlockSize(ctx context.Context) error {
	name := ".prob-" + strings.ToLower(rand.Text())
	if err := c.create(ctx, name, 0o600, true); err != nil {
		return refusal(errs.KindOf(err), "StorageDomainAccessError", name,
			"the file that vdsm tries the export with cannot be made: %v", err)
	}
	for _, size := range []int{1, 512, 4096} {
		if err := c.write(ctx, name, 0, make([]byte, size)); err != nil {
			return refusal(errs.KindOf(err), "StorageDomainAccessError", name,
				"%d bytes cannot be written into it: %v", size, err)
		}
	}
	return c.unlink(ctx, name)
}

// purge removes what a deletion left behind that was cut short.
func (d *domain) purge(ctx context.Context) error {
	images := d.path("images")
	names, err := d.nfs.names(ctx, images)
	if missing(err) {
		return nil
	}
	for _, name := range names {
		if strings.HasPrefix(name, removedPrefix) && err == nil {
			err = d.nfs.remove(ctx, path.Join(images, name))
		}
	}
	return err
}

// metadata reads the domain's metadata as vdsm's monitor does, in one read that is longer than the file.
func (d *domain) metadata(ctx context.Context) (metadata, error) {
	file := d.path(metadataFile)
	s, err := d.nfs.stat(ctx, file)
	if err != nil {
		return nil, absent(err, "StorageDomainMetadataNotFound", metadataFile)
	}
	if err := checkOwner(metadataFile, s, 0o600); err != nil {
		return nil, err
	}
	content, err := d.nfs.read(ctx, file, 0, directRead)
	if err != nil {
		return nil, err
	}
	if int64(len(content)) != min(s.Size, directRead) {
		return nil, refusal(errs.Corrupt, "InvalidMetadata", metadataFile, "a read gave %d of its %d bytes",
			len(content), s.Size)
	}
	return parseMetadata(content)
}

func (d *domain) path(file string) string { return path.Join(d.id, file) }

// absent names the refusal of a file that is not there; other errors stay what they are.
func absent(err error, class, file string) error {
	if missing(err) {
		return refusal(errs.NotFound, class, file, "there is no such file")
	}
	return err
}

// checkOwner refuses a file that is not vdsm's, or lacks permissions. What a server of ours lets anybody do, another
// process than vdsm may still find itself kept from, by its own kernel.
func checkOwner(file string, s stat, perm uint64) error {
	const vdsm = 36
	switch {
	case s.UID != vdsm || s.GID != vdsm:
		return refusal(errs.Denied, "StorageDomainAccessError", file,
			"it belongs to %d:%d, and everything of vdsm's to 36:36", s.UID, s.GID)
	case s.perm()&perm != perm:
		return refusal(errs.Denied, "StorageDomainAccessError", file, "its mode is %04o, and %04o is needed",
			s.perm(), perm)
	}
	return nil
}
