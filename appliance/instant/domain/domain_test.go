package domain

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// example is the domain of the vectors: real vdsm and sanlock took these very bytes.
func example() Spec {
	return Spec{
		UUID: "7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f30", Description: "instant-restore-1", RemotePath: "10.0.0.1:/exports/restore1",
		Volumes: []Volume{
			{Disk: "aaaaaaaa-1111-4111-8111-000000000001", Image: "bbbbbbbb-1111-4111-8111-000000000001", Size: 10737418240,
				Format: "raw", Alias: "vm1_Disk1", Created: time.Unix(1795383895, 0)},
			{Disk: "aaaaaaaa-1111-4111-8111-000000000002", Image: "bbbbbbbb-1111-4111-8111-000000000002", Size: 4096,
				Format: "cow", Alias: "Größe", Created: time.Unix(1795383896, 0)},
		},
	}
}

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

const goldenVolume1 = `CAP=10737418240
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

const goldenVolume2 = `CAP=4096
CTIME=1795383896
DESCRIPTION={"DiskAlias":"47007200f600df006500","DiskDescription":"","Enc":"1"}
DISKTYPE=DATA
DOMAIN=7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f30
FORMAT=COW
GEN=0
IMAGE=aaaaaaaa-1111-4111-8111-000000000002
LEGALITY=LEGAL
PUUID=00000000-0000-0000-0000-000000000000
SEQ=0
TYPE=SPARSE
VOLTYPE=LEAF
EOF
`

// unhex puts bytes from hexadecimal digits and text in quotes together, and fills up with zeros to size.
func unhex(t *testing.T, size int, parts ...string) []byte {
	t.Helper()
	var out []byte
	for _, p := range parts {
		if text, isText := strings.CutPrefix(p, "'"); isText {
			out = append(out, text...)
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(p, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return append(out, make([]byte, size-len(out))...)
}

const (
	goldenSpace = "'7f1c3d2e-9b4a-4c57-8a31-5b0c9d1e2f30"
	zeros12     = "000000000000000000000000"
	zeros48     = zeros12 + zeros12 + zeros12 + zeros12
)

// goldenLease is what `sanlock direct init -r` writes. The name is 48 bytes.
func goldenLease(t *testing.T, sum string, name ...string) []byte {
	t.Helper()
	leader := []string{"10201506 04000600 10000000 00020000 d007000000000000 d007000000000000", zeros12 + zeros12, goldenSpace, zeros12}
	leader = append(append(leader, name...), zeros12+"00000000", sum)
	return append(unhex(t, 512, leader...), unhex(t, mib-512, "11202908 01000100")...)
}

// goldenIDs is what `sanlock direct init -s` writes.
func goldenIDs(t *testing.T) []byte {
	t.Helper()
	slot := unhex(t, 512, "10202112 04000300 10000000 00020000 0000000000000000 0100000000000000", zeros12+zeros12,
		goldenSpace, zeros12, zeros48, zeros12+"00000000", "ba86c2b8 0000 0a00")
	return append(bytes.Repeat(slot, 2000), make([]byte, mib-2000*512)...)
}

// goldenXleases is what vdsm's format_index leaves, at the time of the newest volume.
func goldenXleases(t *testing.T) []byte {
	t.Helper()
	head := unhex(t, 511, "12152016 00", "'0001", "00", goldenSpace, zeros12, "00", "'1795383896", "00", "'-")
	index := append(head, '\n')
	for range 3960 {
		index = append(index, unhex(t, 64, zeros48+"00", "'00000000000", "00", "'--\n")...)
	}
	return append(make([]byte, mib), index...)
}

// golden is the whole tree of the example: path → mode and content, nil for folders.
func golden(t *testing.T) map[string]goldenFile {
	t.Helper()
	d1, d2 := "aaaaaaaa-1111-4111-8111-000000000001", "aaaaaaaa-1111-4111-8111-000000000002"
	v1, v2 := "bbbbbbbb-1111-4111-8111-000000000001", "bbbbbbbb-1111-4111-8111-000000000002"
	return map[string]goldenFile{
		".":                                  {0o755, nil},
		"dom_md":                             {0o755, nil},
		"dom_md/metadata":                    {0o644, []byte(goldenMetadata)},
		"dom_md/ids":                         {0o660, goldenIDs(t)},
		"dom_md/leases":                      {0o660, append(make([]byte, mib), goldenLease(t, "dcfbbc88", "'SDM\x00", zeros12+zeros12+zeros12, "0000000000000000")...)},
		"dom_md/inbox":                       {0o660, make([]byte, 16777216)},
		"dom_md/outbox":                      {0o660, make([]byte, 16777216)},
		"dom_md/xleases":                     {0o660, goldenXleases(t)},
		"images":                             {0o755, nil},
		"images/" + d1:                       {0o755, nil},
		"images/" + d1 + "/" + v1:            {0o660, []byte{}},
		"images/" + d1 + "/" + v1 + ".meta":  {0o644, []byte(goldenVolume1)},
		"images/" + d1 + "/" + v1 + ".lease": {0o660, goldenLease(t, "393be2ad", "'"+v1, zeros12)},
		"images/" + d2:                       {0o755, nil},
		"images/" + d2 + "/" + v2:            {0o660, []byte{}},
		"images/" + d2 + "/" + v2 + ".meta":  {0o644, []byte(goldenVolume2)},
		"images/" + d2 + "/" + v2 + ".lease": {0o660, goldenLease(t, "a71062b0", "'"+v2, zeros12)},
	}
}

type goldenFile struct {
	perm    fs.FileMode
	content []byte
}

// TestTree holds the whole tree, with its sizes and modes, to the bytes that real vdsm and sanlock write.
func TestTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	s := example()
	if err := Write(dir+"/", s); err != nil {
		t.Fatal(err)
	}
	want := golden(t)
	root := os.DirFS(filepath.Join(dir, s.UUID))
	err := fs.WalkDir(root, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		w, expected := want[name]
		delete(want, name)
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch {
		case !expected:
			t.Errorf("%s should not be there", name)
		case info.Mode().Perm() != w.perm || info.IsDir() != (w.content == nil):
			t.Errorf("%s is %v, want permissions %v", name, info.Mode(), w.perm)
		case !info.IsDir():
			got, err := fs.ReadFile(root, name)
			if err != nil {
				return err
			}
			if diff := differ(got, w.content); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range want {
		t.Errorf("%s is missing", name)
	}
	wantNames(t, dir, s.UUID)
	wantNames(t, filepath.Dir(dir), "root", "root.written")
}

// differ says where two contents differ, or "".
func differ(got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d is %#02x, want %#02x", i, got[i], want[i])
		}
	}
	return ""
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

// TestRootIsOpenToQemu: the folder may have been made by somebody who keeps folders to himself.
func TestRootIsOpenToQemu(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, example()); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o755 {
		t.Error(st.Mode(), err)
	}
}

func TestVolumePath(t *testing.T) {
	s := example()
	want := path.Join(s.UUID, "images", s.Volumes[1].Disk, s.Volumes[1].Image)
	if got := s.VolumePath(s.Volumes[1]); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestWithoutVolumes: such a domain is legal, and its index of leases is of 1970.
func TestWithoutVolumes(t *testing.T) {
	dir := t.TempDir()
	s := example()
	s.Volumes = nil
	if err := Write(dir, s); err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(dir, s.UUID, "dom_md/xleases"))
	if err != nil || string(index[mib+59:mib+71]) != "0000000000\x00-" {
		t.Errorf("%q, %v", index[mib+59:mib+71], err)
	}
	wantNames(t, filepath.Join(dir, s.UUID, "images"))
}

// TestPage holds the page for people to the vectors.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/format/domain.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, vector := range []string{"b6aa513e044cf48a4627a1a05dd87f184ee7a431", "0xb8c286ba", "0x88bcfbdc", "0xade23b39"} {
		if !bytes.Contains(page, []byte(vector)) {
			t.Errorf("docs/format/domain.md does not mention %s", vector)
		}
	}
}
