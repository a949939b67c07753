// Package domain writes the bytes of an oVirt storage domain: an NFS data domain, version 5, as vdsm would have made it
// and sanlock formatted it, with the disks of one session as its images. An engine imports it, hosts use and change it.
//
// Terms. An image is a disk of the engine's, a folder on the domain. It has one volume here, a file with a text of
// metadata and a lease beside it. A lease is an area of 1 MiB in which sanlock, on the hosts, agrees on who owns
// something; the ids file is where hosts say that they live.
//
// Invariants:
//
//  1. A domain is written once. What is in it afterwards is the hosts' and is neither read nor repaired here: they
//     change the metadata when they attach it, they hold leases in it, and they remove images that were moved away.
//     Neither a changed file nor a removed one, nor the whole domain when it was formatted, ever comes back.
//  2. No host sees half a domain: it is built beside the export's root and moved into it by one rename, after
//     everything in it is durable. A note beside the root then says that it is done. Write may be cut at any point;
//     the next one finishes.
//  3. Nobody formats leases later: vdsm takes them as they are, so each is valid and free from the start.
//  4. A volume's file is an empty placeholder. The tree that serves the folder puts the disk in its place; an empty file
//     can never be taken for an empty disk, as one of the disk's size could.
//
// The same Spec gives the same bytes. docs/format/domain.md draws the layout and says who changes what; facts about
// vdsm's reader are from vdsm 4.40 to 4.50.5.1 and sanlock 3.8.
//
// The tests hold the bytes to vectors that real vdsm accepted, compare the leases with those that the real sanlock
// formats, and cut Write at every sync.
package domain

import (
	"path"
	"time"
)

// Spec is a whole domain.
type Spec struct {
	UUID        string
	Description string // the name that the engine proposes when it imports the domain; at most 50 characters of one line
	RemotePath  string // address:/path as hosts mount it
	Volumes     []Volume
}

// Volume is one disk with its one volume. Its JSON is part of the session record, a stored format.
type Volume struct {
	Disk    string    // the engine's disk, vdsm's image: a UUID
	Image   string    // the engine's image, vdsm's volume: a UUID
	Size    int64     // virtual size in bytes, a multiple of 4096
	Format  string    // "cow" or "raw"
	Alias   string    // the disk's name on the engine
	Created time.Time // shown as the disk's creation time
}

// VolumePath returns where the volume's content belongs, relative to the export's root, with slashes.
func (s Spec) VolumePath(v Volume) string { return path.Join(s.UUID, "images", v.Disk, v.Image) }

// names of what lies in a domain, as vdsm knows them.
const (
	metaDir   = "dom_md"
	imagesDir = "images"
	metaExt   = ".meta"
	leaseExt  = ".lease"
)

const mib = 1 << 20

// item is a folder or a file of a domain.
type item struct {
	path string // below the domain's own folder, with slashes; "" is that folder
	perm uint32
	dir  bool
	size int64         // of a file, in bytes; what content does not fill is zeros
	data func() []byte // made when it is needed, for some are megabytes; nil is no content
}

// items returns everything in the domain, a folder before what lies in it. Sizes and modes are those that vdsm gives.
func (s Spec) items() []item {
	md := func(name string, size int64, data func() []byte) item {
		return item{path: path.Join(metaDir, name), perm: 0o660, size: size, data: data}
	}
	all := []item{
		{perm: 0o755, dir: true},
		{path: metaDir, perm: 0o755, dir: true},
		text(path.Join(metaDir, "metadata"), s.metadata()),
		md("ids", leaseSize, func() []byte { return lockspace(s.UUID) }),
		md("leases", 2*mib, func() []byte { return append(make([]byte, mib), resource(s.UUID, "SDM")...) }),
		md("inbox", mailboxSize, nil),
		md("outbox", mailboxSize, nil),
		md("xleases", xleasesSize, func() []byte { return xleases(s.UUID, s.created()) }),
		{path: imagesDir, perm: 0o755, dir: true},
	}
	for _, v := range s.Volumes {
		image := path.Join(imagesDir, v.Disk)
		volume := path.Join(image, v.Image)
		all = append(all,
			item{path: image, perm: 0o755, dir: true},
			item{path: volume, perm: 0o660},
			text(volume+metaExt, v.metadata(s.UUID)),
			item{path: volume + leaseExt, perm: 0o660, size: leaseSize,
				data: func() []byte { return resource(s.UUID, v.Image) }},
		)
	}
	return all
}

func text(name, content string) item {
	return item{path: name, perm: 0o644, size: int64(len(content)), data: func() []byte { return []byte(content) }}
}

// mailboxSize is what vdsm gives a mailbox. Nobody uses them unless the domain becomes master, and zeros are no mail.
const mailboxSize = 16 * mib

// created returns the time of the newest volume, for what has no time of its own.
func (s Spec) created() time.Time {
	newest := time.Unix(0, 0)
	for _, v := range s.Volumes {
		if v.Created.After(newest) {
			newest = v.Created
		}
	}
	return newest
}
