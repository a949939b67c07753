package domain

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"
)

// What sanlock keeps on disk, for sectors of 512 bytes and areas of 1 MiB, the only ones that oVirt uses on NFS. These
// are sanlock's formats (its leader.h and ondisk.c), little-endian, and never change for domains of version 5.
const (
	sector    = 512
	leaseSize = mib // of a lockspace and of a resource
	maxHosts  = 2000

	lockspaceMagic   = 0x12212010
	lockspaceVersion = 0x00030004
	resourceMagic    = 0x06152010
	resourceVersion  = 0x00060004
	requestMagic     = 0x08292011
	requestVersion   = 0x00010001
	flagAlign1M      = 0x10

	ioTimeout = 10 // seconds; what sanlock assumes of the storage, and what oVirt uses
)

// leader is the record that begins a resource, and each host's slot of a lockspace.
type leader struct {
	Magic, Version, Flags, SectorSize        uint32
	NumHosts, MaxHosts                       uint64
	OwnerID, OwnerGeneration, LeaseVersion   uint64 // 0 until the first owner
	Space, Resource                          [48]byte
	Timestamp                                uint64 // 0: free
	_                                        uint64
	Checksum                                 uint32
	_                                        uint16
	IOTimeout                                uint16 // seconds
	WriteID, WriteGeneration, WriteTimestamp uint64
}

// checksummed is how many bytes of a leader its checksum covers: all before it.
const checksummed = 168

// encode returns the record with its checksum. sanlock computes a CRC-32C that starts at ~1 where everybody else starts
// at ~0, and leaves out the final inversion.
func (l leader) encode() []byte {
	b, err := binary.Append(nil, binary.LittleEndian, l)
	if err != nil {
		panic("domain: a leader has no fixed size: " + err.Error())
	}
	sum := ^crc32.Update(1, crc32.MakeTable(crc32.Castagnoli), b[:checksummed])
	binary.LittleEndian.PutUint32(b[checksummed:], sum)
	return b
}

func name48(s string) (out [48]byte) {
	copy(out[:], s)
	return out
}

// lockspace returns the ids file: a slot for each host, none of them taken. A slot is known by its place, so that all
// are alike until hosts write into theirs.
func lockspace(domain string) []byte {
	slot := leader{
		Magic: lockspaceMagic, Version: lockspaceVersion, Flags: flagAlign1M, SectorSize: sector, MaxHosts: 1,
		Space: name48(domain), IOTimeout: ioTimeout,
	}.encode()
	out := make([]byte, leaseSize)
	for host := range maxHosts {
		copy(out[host*sector:], slot)
	}
	return out
}

// resource returns a lease that nobody holds: the leader, the record in which hosts ask the owner for it, and a sector
// for each host, all zeros until that host takes part.
func resource(domain, name string) []byte {
	out := make([]byte, leaseSize)
	copy(out, leader{
		Magic: resourceMagic, Version: resourceVersion, Flags: flagAlign1M, SectorSize: sector,
		NumHosts: maxHosts, MaxHosts: maxHosts, Space: name48(domain), Resource: name48(name),
	}.encode())
	binary.LittleEndian.PutUint32(out[sector:], requestMagic)
	binary.LittleEndian.PutUint32(out[sector+4:], requestVersion)
	return out
}

// vdsm's index of the leases of highly available VMs (its xlease.py): big-endian and otherwise text. Leases follow it,
// from 3 MiB on, when an engine asks for the first one; the file ends with the index until then.
const (
	xleasesMagic   = 0x12152016
	xleasesAt      = mib // the first MiB is not used
	xleasesRecords = 3960
	xleasesHead    = 512
	xleasesRecord  = 64
	xleasesSize    = xleasesAt + 62*4096 // the index, rounded up to pages
)

// xleases returns an index without leases.
func xleases(domain string, created time.Time) []byte {
	out := make([]byte, xleasesSize)
	index := out[xleasesAt:]
	binary.BigEndian.PutUint32(index, xleasesMagic)
	copy(index[5:], "0001")
	copy(index[10:], domain)
	copy(index[59:], fmt.Sprintf("%010d", created.Unix()))
	index[70] = '-' // not being updated
	index[xleasesHead-1] = '\n'
	for i := range xleasesRecords {
		// No name, the offset 0, and not being updated.
		r := index[xleasesHead+i*xleasesRecord:][:xleasesRecord]
		copy(r[49:], "00000000000")
		copy(r[61:], "--\n")
	}
	return out
}
