package nfsdomain

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const domainID = "7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f30"

// goldenMetadata was written by vdsm.
const goldenMetadata = `ALIGNMENT=1048576
BLOCK_SIZE=512
CLASS=Data
DESCRIPTION=instant-restore-1
IOOPTIMEOUTSEC=10
LEASERETRIES=3
LEASETIMESEC=60
LOCKPOLICY=
LOCKRENEWALINTERVALSEC=5
POOL_UUID=
REMOTE_PATH=10.0.0.1:/exports/restore1
ROLE=Regular
SDUUID=7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f30
TYPE=NFS
VERSION=5
_SHA_CKSUM=b6aa513e044cf48a4627a1a05dd87f184ee7a431
`

// goldenVolume was written by vdsm.
const goldenVolume = `CAP=10737418240
CTIME=1795383895
DESCRIPTION={"DiskAlias":"vm1_Disk1","DiskDescription":""}
DISKTYPE=DATA
DOMAIN=7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f30
FORMAT=RAW
GEN=0
IMAGE=aaaaaaaa-1111-4111-8111-000000000001
LEGALITY=LEGAL
PUUID=00000000-0000-0000-0000-000000000000
SEQ=0
TYPE=SPARSE
VOLTYPE=LEAF
EOF
`

func TestMetadataIsVdsms(t *testing.T) {
	m, err := parseMetadata([]byte(goldenMetadata + "\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.check(domainID); err != nil {
		t.Error(err)
	}
	if got := string(m.encode()); got != goldenMetadata {
		t.Errorf("written again it is\n%s", got)
	}
	attached := m.with("POOL_UUID", "p1")
	if attached.pool() != "p1" || m.pool() != "" {
		t.Errorf("pools %q and %q", attached.pool(), m.pool())
	}
	if again, err := parseMetadata(attached.encode()); err != nil || again.pool() != "p1" {
		t.Errorf("after a change: %v, %v", again, err)
	}
	if strings.Contains(string(attached.encode()), "b6aa513e") {
		t.Error("the checksum did not change")
	}
}

// TestMetadataChecksumCountsReferences: é is six characters to vdsm's checksum.
func TestMetadataChecksumCountsReferences(t *testing.T) {
	if (metadata{"DESCRIPTION": "é"}).checksum() != (metadata{"DESCRIPTION": "&#233;"}).checksum() {
		t.Error("é is not counted as &#233;")
	}
	if (metadata{"A": "1", "B": "2"}).checksum() != (metadata{"A": "1B=2"}).checksum() {
		t.Error("something stands between the lines")
	}
}

func TestMetadataWithoutChecksumIsTaken(t *testing.T) {
	open, _, _ := strings.Cut(goldenMetadata, checksumKey)
	if m, err := parseMetadata([]byte(open)); err != nil || m["SDUUID"] != domainID {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := parseMetadata([]byte(open + "rubbish\n")); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a line without =: %v", err)
	}
}

func TestVolumeMetadataIsVdsms(t *testing.T) {
	v, err := parseVolumeMeta("x.meta", []byte(goldenVolume+"FORMAT=COW\n")) // nothing counts after EOF
	if err != nil {
		t.Fatal(err)
	}
	if v.Capacity != 10737418240 || v.Format != "RAW" || v.Parent != noVolume || v.alias() != "vm1_Disk1" {
		t.Errorf("%+v", v)
	}
	if err := v.check("x.meta", domainID, "aaaaaaaa-1111-4111-8111-000000000001"); err != nil {
		t.Error(err)
	}
	other := strings.NewReplacer("GEN=0\n", "", "SEQ=0\n", "NEW=1\n").Replace(goldenVolume)
	if _, err := parseVolumeMeta("x.meta", []byte(other)); err != nil {
		t.Errorf("without GEN and SEQ, with a key of the future: %v", err)
	}
}

func TestVolumeMetadataRefused(t *testing.T) {
	for _, c := range []struct {
		pairs []string // old text, new text
		words string
	}{
		{[]string{"CTIME=1795383895\n", ""}, "MetaDataKeyNotFoundError x.meta: the key CTIME is missing"},
		{[]string{"CTIME=1795383895", "CTIME=noon"}, "CTIME=noon is no time"},
		{[]string{"CAP=10737418240", "CAP=0"}, "CAP=0 is no size"},
		{[]string{"CAP=10737418240", "CAP=10737418241"}, "no multiple of 4096"},
		{[]string{"DISKTYPE=DATA", "DISKTYPE=TAPE"}, "DISKTYPE=TAPE is not known"},
		{[]string{"LEGALITY=LEGAL", "LEGALITY=ILLEGAL"}, "prepareIllegalVolumeError x.meta: LEGALITY=ILLEGAL"},
		{[]string{"FORMAT=RAW", "FORMAT=COW", "TYPE=SPARSE", "TYPE=PREALLOCATED"}, "TYPE=PREALLOCATED"},
		{[]string{`"DiskDescription":""`, `"DiskDescription":"` + strings.Repeat("x", 170) + `"`}, "its description has"},
		{[]string{"DOMAIN=7f", "DOMAIN=8f"}, "DOMAIN=8f1c3d2e"},
		{[]string{"IMAGE=a", "IMAGE=b"}, "IMAGE=baaaaaaa"},
	} {
		text := strings.NewReplacer(c.pairs...).Replace(goldenVolume)
		v, err := parseVolumeMeta("x.meta", []byte(text))
		if err == nil {
			err = v.check("x.meta", domainID, "aaaaaaaa-1111-4111-8111-000000000001")
		}
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%q: error %v, want %q", c.pairs, err, c.words)
		}
	}
}

func TestAliases(t *testing.T) {
	for description, want := range map[string]string{
		`{"DiskAlias":"vm1_Disk1","DiskDescription":""}`:                      "vm1_Disk1",
		`{"DiskAlias":"47007200f600df006500","DiskDescription":"","Enc":"1"}`: "Größe",
		`{"DiskAlias":"47007200f600df006500","DiskDescription":"","Enc":1}`:   "Größe",
		`{"DiskAlias":"3dd800de","DiskDescription":"","Enc":"1"}`:             "😀",
		`{"DiskAlias":"abc","DiskDescription":"6100","Enc":"2"}`:              "abc", // only the description is encoded
		`{"DiskAlias":"xyz","DiskDescription":"","Enc":"1"}`:                  "",
		"not JSON": "",
		"":         "",
	} {
		if got := (volumeMeta{Description: description}).alias(); got != want {
			t.Errorf("alias of %s is %q, want %q", description, got, want)
		}
	}
}

// TestLeadersAreSanlocks: checksums of records that sanlock took.
func TestLeadersAreSanlocks(t *testing.T) {
	for _, c := range []struct {
		record leader
		sum    uint32
	}{
		{slotOf(domainID), 0xb8c286ba},
		{resourceOf(domainID, sdmName), 0x88bcfbdc},
		{resourceOf(domainID, "bbbbbbbb-1111-4111-8111-000000000001"), 0xade23b39},
	} {
		sector := c.record.sector()
		if got := binary.LittleEndian.Uint32(sector[leaderSummed:]); got != c.sum {
			t.Errorf("checksum %#x, want %#x", got, c.sum)
		}
		if len(sector) != sectorSize || !bytes.Equal(sector[200:], make([]byte, sectorSize-200)) {
			t.Errorf("a sector of %d bytes with something behind the record", len(sector))
		}
		if _, err := checkLeader("ids", sector, c.record); err != nil {
			t.Error(err)
		}
	}
}

// TestEveryByteOfALeaderCounts: one flipped bit in what the checksum covers, or in the checksum, is found.
func TestEveryByteOfALeaderCounts(t *testing.T) {
	want := resourceOf(domainID, sdmName)
	for i := range leaderSummed + 4 {
		sector := want.sector()
		sector[i] ^= 4
		if _, err := checkLeader("leases", sector, want); !errs.Is(err, errs.Corrupt) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

func TestBallots(t *testing.T) {
	area := make([]byte, areaSize)
	copy(area, resourceOf(domainID, sdmName).sector())
	binary.LittleEndian.PutUint32(area[sectorSize:], requestMagic)
	copy(area[dblockAt(7):], dblock{MBal: 4007, Bal: 4007, Inp: 7, Lver: 3}.sector())
	_, ballots, err := checkResource("leases", domainID, sdmName, area)
	if err != nil {
		t.Fatal(err)
	}
	if ballots[6].MBal != 4007 || ballots[6].Lver != 3 || ballots[5].MBal != 0 {
		t.Errorf("ballots of hosts 6 and 7: %+v", ballots[5:7])
	}
	if dblockAt(1) != 1024 || dblockAt(maxHosts) != 2001*512 {
		t.Error("host 1's ballot is in the third sector, host 2000's in the 2002nd")
	}
	area[dblockAt(7)+40]++
	if _, _, err := checkResource("leases", domainID, sdmName, area); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a damaged ballot: %v", err)
	}
	area[dblockAt(7)+40]--
	area[sectorSize] = 0
	if _, _, err := checkResource("leases", domainID, sdmName, area); !errs.Is(err, errs.Corrupt) {
		t.Errorf("no record of requests: %v", err)
	}
}

func TestHeaders(t *testing.T) {
	header := make([]byte, sectorSize)
	binary.BigEndian.PutUint32(header, qcow2Magic)
	binary.BigEndian.PutUint32(header[4:], 3)
	binary.BigEndian.PutUint64(header[24:], 1<<30)
	if err := checkHeader("v", header, 1<<30); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		at    int
		words string
	}{{0, "no qcow2 header"}, {7, "the qcow2 version is"}, {15, "backing file"}, {31, "CAP=1073741824"}} {
		broken := bytes.Clone(header)
		broken[c.at]++
		if err := checkHeader("v", broken, 1<<30); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("byte %d: %v", c.at, err)
		}
	}
	if err := checkHeader("v", header[:50], 1<<30); err == nil {
		t.Error("half a header is taken")
	}
}

// FuzzRead: what lies on an export may be anything, and never brings the host down.
func FuzzRead(f *testing.F) {
	f.Add([]byte(goldenMetadata))
	f.Add([]byte(goldenVolume))
	f.Add([]byte(`{"DiskAlias":"ff","Enc":[1]}`))
	f.Add(slotOf(domainID).sector())
	f.Fuzz(func(t *testing.T, p []byte) {
		if m, err := parseMetadata(p); err == nil {
			again, err := parseMetadata(m.encode())
			if err != nil || again.checksum() != m.checksum() {
				t.Errorf("written again: %v, %v", again, err)
			}
		}
		v, _ := parseVolumeMeta("x", p)
		v.Description = string(p)
		_ = v.alias()
		sector := make([]byte, sectorSize)
		copy(sector, p)
		_, _ = checkLeader("x", sector, slotOf(domainID))
		_ = checkHeader("x", p, 4096)
	})
}
