package nfsdomain

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// What sanlock 3.8 keeps on disk: little-endian, sectors of 512 bytes, areas of 1 MiB.
const (
	sectorSize = 512
	areaSize   = 1 << 20
	maxHosts   = 2000
	maxHostID  = 250 // oVirt's

	lockspaceMagic   = 0x12212010
	lockspaceVersion = 0x00030004
	resourceMagic    = 0x06152010
	resourceVersion  = 0x00060004
	requestMagic     = 0x08292011
	align1M          = 0x10
)

// leader is a leader record: the slot of a host in a lockspace, or the head of a resource.
type leader struct {
	Magic, Version, Flags, Sector uint32
	NumHosts, MaxHosts            uint64
	Owner, Generation, Lver       uint64
	Space, Name                   [48]byte
	Timestamp                     uint64 // 0: free
	_                             uint64
	Checksum                      uint32
	_, IOTimeout                  uint16
	WriteID, WriteGen, WriteTime  uint64
}

// What a leader's checksum covers, and where the one of a dblock is.
const (
	leaderSummed = 168
	dblockSummed = 48
)

// checksum is a CRC-32C that begins at ~1 and is not inverted at the end.
func checksum(p []byte) uint32 { return ^crc32.Update(1, crc32.MakeTable(crc32.Castagnoli), p) }

func decodeLeader(sector []byte) (l leader) {
	if _, err := binary.Decode(sector, binary.LittleEndian, &l); err != nil {
		panic("nfsdomain: less than a sector of a leader: " + err.Error())
	}
	return l
}

// sector returns the record as it is written, with a new checksum.
func (l leader) sector() []byte {
	out := make([]byte, 0, sectorSize)
	out, err := binary.Append(out, binary.LittleEndian, l)
	if err != nil {
		panic("nfsdomain: a leader has no size: " + err.Error())
	}
	binary.LittleEndian.PutUint32(out[leaderSummed:], checksum(out[:leaderSummed]))
	return out[:sectorSize]
}

func text48(b [48]byte) string { return string(bytes.TrimRight(b[:], "\x00")) }

func name48(s string) (b [48]byte) {
	copy(b[:], s)
	return b
}

// Sanlock's own words for what is wrong with a record (sanlock_rv.h).
const (
	leaderMagic    = "SANLK_LEADER_MAGIC"
	leaderVersion  = "SANLK_LEADER_VERSION"
	leaderSector   = "SANLK_LEADER_SECTORSIZE"
	leaderSpace    = "SANLK_LEADER_LOCKSPACE"
	leaderResource = "SANLK_LEADER_RESOURCE"
	leaderHosts    = "SANLK_LEADER_NUMHOSTS"
	leaderChecksum = "SANLK_LEADER_CHECKSUM"
)

// short is sanlock's refusal of a file or a read of another length.
func short(file string, got, want int64) error {
	return refusal(errs.Corrupt, "SanlockException EMSGSIZE", file, "it has %d bytes where %d belong", got, want)
}

// checkLeader refuses a record that sanlock would: want has what must be equal. A resource's name is compared, a slot's is
// the name of whoever took it.
func checkLeader(file string, sector []byte, want leader) (leader, error) {
	l := decodeLeader(sector)
	bad := func(class, format string, args ...any) (leader, error) {
		return l, refusal(errs.Corrupt, "SanlockException "+class, file, format, args...)
	}
	switch {
	case l.Magic == 0 && bytes.Count(sector, []byte{0}) == len(sector):
		return bad(leaderMagic, "the lease does not exist: there are zeros where its first record belongs")
	case l.Magic != want.Magic:
		return bad(leaderMagic, "the magic number is %#x, not %#x", l.Magic, want.Magic)
	case l.Version>>16 != want.Version>>16:
		return bad(leaderVersion, "the version is %#x, not %#x", l.Version, want.Version)
	case l.Sector != want.Sector || l.Flags != want.Flags:
		return bad(leaderSector, "it is made for sectors of %d bytes with the flags %#x, not %d with %#x", l.Sector, l.Flags,
			want.Sector, want.Flags)
	case l.Space != want.Space:
		return bad(leaderSpace, "it is of the lockspace %q, not %q", text48(l.Space), text48(want.Space))
	case want.Name != [48]byte{} && l.Name != want.Name:
		return bad(leaderResource, "it is the lease of %q, not of %q", text48(l.Name), text48(want.Name))
	case l.NumHosts != want.NumHosts || l.MaxHosts != want.MaxHosts:
		return bad(leaderHosts, "it is for %d of %d hosts, not %d of %d", l.NumHosts, l.MaxHosts, want.NumHosts, want.MaxHosts)
	}
	if sum := checksum(sector[:leaderSummed]); sum != l.Checksum {
		return bad(leaderChecksum, "its checksum is %#x, that of its bytes is %#x", l.Checksum, sum)
	}
	return l, nil
}

// slotOf and resourceOf say what must be in a host's slot and at the head of a resource.
func slotOf(domain string) leader {
	return leader{Magic: lockspaceMagic, Version: lockspaceVersion, Flags: align1M, Sector: sectorSize, MaxHosts: 1,
		Space: name48(domain), IOTimeout: 10}
}

func resourceOf(domain, name string) leader {
	return leader{Magic: resourceMagic, Version: resourceVersion, Flags: align1M, Sector: sectorSize, NumHosts: maxHosts,
		MaxHosts: maxHosts, Space: name48(domain), Name: name48(name)}
}

// checkLockspace refuses an ids file in which any slot is not one.
func checkLockspace(file, domain string, area []byte) error {
	free := slotOf(domain).sector()
	for host := range maxHosts {
		slot := area[host*sectorSize:][:sectorSize]
		if bytes.Equal(slot, free) {
			continue // as most are
		}
		l, err := checkLeader(fmt.Sprintf("%s, slot %d", file, host+1), slot, slotOf(domain))
		if err != nil {
			return err
		}
		if l.IOTimeout != slotOf(domain).IOTimeout {
			return refusal(errs.Corrupt, "SanlockException", file, "slot %d has an I/O timeout of %d s", host+1,
				l.IOTimeout)
		}
	}
	return nil
}

// dblock is a host's ballot in a resource.
type dblock struct {
	MBal, Bal, Inp, InpGen, InpTime, Lver uint64
	Checksum, Flags                       uint32
}

// released says that the owner gave the lease back.
const released = 1

func (d dblock) sector() []byte {
	out := make([]byte, 0, sectorSize)
	out, err := binary.Append(out, binary.LittleEndian, d)
	if err != nil {
		panic("nfsdomain: a dblock has no size: " + err.Error())
	}
	binary.LittleEndian.PutUint32(out[dblockSummed:], checksum(out[:dblockSummed]))
	return out[:sectorSize]
}

// dblockAt is where a host's ballot lies in a resource: behind the leader and the record of requests.
func dblockAt(host int) int64 { return int64(host+1) * sectorSize }

// checkResource refuses a resource that is not whole, and returns its head and all ballots; host h's is at h-1.
func checkResource(file, domain, name string, area []byte) (leader, []dblock, error) {
	l, err := checkLeader(file, area[:sectorSize], resourceOf(domain, name))
	if err != nil {
		return l, nil, err
	}
	if magic := binary.LittleEndian.Uint32(area[sectorSize:]); magic != requestMagic {
		return l, nil, refusal(errs.Corrupt, "SanlockException", file, "its record of requests begins with %#x",
			magic)
	}
	ballots := make([]dblock, maxHosts)
	none := make([]byte, sectorSize)
	for i := range ballots {
		sector := area[dblockAt(i+1):][:sectorSize]
		if bytes.Equal(sector, none) {
			continue // most hosts never take part
		}
		if _, err := binary.Decode(sector, binary.LittleEndian, &ballots[i]); err != nil {
			return l, nil, errs.New("read a ballot", file, errs.Bug, err)
		}
		if ballots[i].Checksum != 0 && ballots[i].Checksum != checksum(sector[:dblockSummed]) {
			return l, nil, refusal(errs.Corrupt, "SanlockException SANLK_DBLOCK_CHECKSUM", file,
				"the ballot of host %d is damaged", i+1)
		}
	}
	return l, ballots, nil
}
