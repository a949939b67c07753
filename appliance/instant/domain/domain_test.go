package domain

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func example() Spec {
	return Spec{
		UUID: "7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f30", Description: "instant-restore-1", RemotePath: "10.0.0.1:/exports/restore1",
		Volumes: []Volume{
			{Disk: "aaaaaaaa-1111-4111-8111-000000000001", Image: "bbbbbbbb-1111-4111-8111-000000000001", Size: 10737418240,
				Format: "raw", Alias: "vm1_Disk1", Created: time.Unix(1795383895, 0)},
			{Disk: "aaaaaaaa-1111-4111-8111-000000000002", Image: "bbbbbbbb-1111-4111-8111-000000000002", Size: 4096,
				Format: "cow", Alias: "vm1_Disk2", Created: time.Unix(1795383896, 0)},
		},
	}
}

// The texts that real vdsm wrote, or took.
const (
	goldenMetadata = `ALIGNMENT=1048576
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
	goldenVolume = `CAP=10737418240
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
)

func TestTexts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	s := example()
	if err := Write(dir, s); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		s.UUID + "/dom_md/metadata":          goldenMetadata,
		s.VolumePath(s.Volumes[0]) + ".meta": goldenVolume,
	} {
		got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
}
