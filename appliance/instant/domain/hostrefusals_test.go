package domain_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/nfsdomain"
)

// damage changes one thing in a sound domain.
type damage func(t *testing.T, m *fstest.Memory)

// Where things are in the example.
var (
	root    = hostSpec().UUID
	mdFile  = path.Join(root, "dom_md/metadata")
	ids     = path.Join(root, "dom_md/ids")
	leases  = path.Join(root, "dom_md/leases")
	cowFile = hostSpec().VolumePath(cow)
	rawFile = hostSpec().VolumePath(raw)
)

// TestAHostRefuses breaks one thing at a time. The step and the words are those in which vdsm or sanlock would fail, as
// far as those are known; what they would let pass and a host of the lab does not is at the end.
// Long: one table.
func TestAHostRefuses(t *testing.T) {
	needParts(t)
	dir, spec := write(t)
	for _, c := range []struct {
		name  string
		harm  damage
		step  string
		kind  errs.Kind
		words string // in the error, in this order
	}{
		{"nothing", func(*testing.T, *fstest.Memory) {}, "", 0, ""},

		{"no metadata", remove(mdFile), "probe", errs.NotFound, "StorageDomainMetadataNotFound, dom_md/metadata"},
		{"checksum", edit(mdFile, "ROLE=Regular", "ROLE=Regulax"), "probe", errs.Corrupt, "MetaDataSealIsBroken, dom_md/metadata, checksum"},
		{"a key of the lease is missing", meta("LEASETIMESEC", ""), "probe", errs.Corrupt, "MetaDataKeyNotFoundError, LEASETIMESEC"},
		{"ISO domain", meta("CLASS", "Iso"), "probe", errs.Unsupported, "StorageDomainClassError, CLASS=Iso"},
		{"future version", meta("VERSION", "6"), "probe", errs.Unsupported, "UnsupportedDomainVersion, VERSION=6"},
		{"another block size", meta("BLOCK_SIZE", "4096"), "probe", errs.Unsupported, "StorageDomainBlockSizeMismatch, BLOCK_SIZE=4096"},
		{"attached elsewhere", meta("POOL_UUID", "00000000-1111-2222-3333-444444444444"), "attach", errs.Busy,
			"StorageDomainAlreadyAttached, POOL_UUID=00000000-1111-2222-3333-444444444444"},
		{"read-only export", fail("create", fs.StatusReadOnly), "probe", errs.Denied, "StorageDomainAccessError, .prob-, cannot be made"},

		{"no ids", remove(ids), "attach", errs.NotFound, "SanlockException ENOENT, dom_md/ids"},
		{"empty ids", resize(ids, 0), "attach", errs.Corrupt, "SanlockException EMSGSIZE, dom_md/ids, 0 bytes"},
		{"short ids", resize(ids, 1<<20-512), "attach", errs.Corrupt, "SanlockException EMSGSIZE, dom_md/ids"},
		{"zeroed ids", zero(ids, 0, 1<<20), "attach", errs.Corrupt, "SANLK_LEADER_MAGIC, dom_md/ids, does not exist"},
		{"a slot's checksum", poke(ids, 3*512+168, 1), "attach", errs.Corrupt, "SANLK_LEADER_CHECKSUM, dom_md/ids, slot 4"},
		{"another lockspace", leader(ids, 0, func(b []byte) { b[56] = 'x' }), "attach", errs.Corrupt, "SANLK_LEADER_LOCKSPACE, dom_md/ids"},
		{"host id taken", leader(ids, 0, func(b []byte) { copy(b[104:], "somebody"); b[152] = 1 }), "attach", errs.Busy,
			"CannotAcquireHostId, dom_md/ids, somebody"},
		{"no leases", remove(leases), "attach", errs.NotFound, "SanlockException ENOENT, dom_md/leases"},
		{"short leases", resize(leases, 1<<20), "attach", errs.Corrupt, "SanlockException EMSGSIZE, dom_md/leases"},
		{"no SDM", zero(leases, 1<<20, 1<<20), "attach", errs.Corrupt, "SANLK_LEADER_MAGIC, dom_md/leases, does not exist"},
		{"another resource", leader(leases, 1<<20, func(b []byte) { b[104] = 'X' }), "attach", errs.Corrupt, "SANLK_LEADER_RESOURCE, dom_md/leases, XDM"},
		{"SDM owned", leader(leases, 1<<20, func(b []byte) { b[32], b[152] = 7, 1 }), "attach", errs.Busy, "AcquireLockFailure, dom_md/leases, host id 7"},
		{"a ballot is damaged", poke(leases, 1<<20+3*512+48, 9), "attach", errs.Corrupt, "SANLK_DBLOCK_CHECKSUM, host 2"},
		{"SDM for few hosts", leader(leases, 1<<20, func(b []byte) { b[16], b[17] = 1, 0 }), "attach", errs.Corrupt, "SANLK_LEADER_NUMHOSTS, dom_md/leases"},

		{"no volume", remove(rawFile), "scan", errs.NotFound, "VolumeDoesNotExist, " + raw.Image},
		{"placeholder", resize(cowFile, 0), "scan", errs.Corrupt, "VolumeSizeError, " + cow.Image + ", 0 bytes"},
		{"size beyond data", fail("read", fs.StatusIO, rawFile), "scan", errs.Corrupt, "read, " + raw.Image},
		{"no capacity", edit(rawFile+".meta", "CAP=", "XAP="), "scan", errs.Corrupt, "MetaDataKeyNotFoundError, " + raw.Image + ".meta, CAP"},
		{"unknown format", edit(rawFile+".meta", "FORMAT=RAW", "FORMAT=VMDK"), "scan", errs.Corrupt, "InvalidMetadata, FORMAT=VMDK"},
		{"illegal", edit(rawFile+".meta", "LEGALITY=LEGAL", "LEGALITY=ILLEGAL"), "scan", errs.Invalid, "prepareIllegalVolumeError, LEGALITY=ILLEGAL"},
		{"other domain's", edit(rawFile+".meta", "DOMAIN=7f1c", "DOMAIN=8f1c"), "scan", errs.Corrupt, "InvalidMetadata, DOMAIN=8f1c"},
		{"other image's", edit(rawFile+".meta", "IMAGE=aaaa", "IMAGE=abaa"), "scan", errs.Corrupt, "InvalidMetadata, IMAGE=abaa"},
		{"long metadata", edit(rawFile+".meta", "EOF\n", "EOF\n"+strings.Repeat("x", 512)), "scan", errs.Corrupt, "VolumeMetadataOverflow"},
		{"not qcow2", zero(cowFile, 0, 512), "scan", errs.Corrupt, "InvalidFormat, " + cow.Image + ", qcow2"},
		{"backing file", poke(cowFile, 15, 1), "scan", errs.Corrupt, "InvalidFormat, backing file"},
		{"no lease", remove(rawFile + ".lease"), "scan", errs.NotFound, "SanlockException ENOENT, " + raw.Image + ".lease"},
		{"empty lease", resize(rawFile+".lease", 0), "scan", errs.Corrupt, "SanlockException EMSGSIZE, " + raw.Image + ".lease"},
		{"zeroed lease", zero(rawFile+".lease", 0, 1<<20), "scan", errs.Corrupt, "SANLK_LEADER_MAGIC, " + raw.Image + ".lease"},
		{"lease owned", leader(rawFile+".lease", 0, func(b []byte) { b[32], b[152] = 9, 1 }), "scan", errs.Busy, "TemporaryFailure, host id 9"},

		// Stricter than vdsm.
		{"no vdsm's file", owner(ids, 0), "attach", errs.Denied, "StorageDomainAccessError, dom_md/ids, 0:0"},
		{"volume that qemu cannot write", perm(cowFile, 0o640), "scan", errs.Denied, "StorageDomainAccessError, 0640"},
		{"block domain", meta("TYPE", "ISCSI"), "probe", errs.Invalid, "StorageDomainTypeError, TYPE=ISCSI"},
		{"other folder's metadata", meta("SDUUID", cow.Disk), "probe", errs.Corrupt, "InvalidMetadata, SDUUID="},
		{"raw volume of another size", resize(rawFile, diskSize-4096), "scan", errs.Invalid, "VolumeSizeError, CAP=1048576, 1044480"},
		{"qcow2 of another size", poke(cowFile, 30, 1), "scan", errs.Corrupt, "VolumeSizeError, CAP=1048576"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := load(t, dir)
			options, _ := serve(t, m, "127.0.0.1:0")
			c.harm(t, m)
			step, _, err := use(t, newHost(t, nfsdomain.Options{}), options, spec)
			if c.step == "" {
				if err != nil {
					t.Errorf("a sound domain fails at %s: %v", step, err)
				}
				return
			}
			if err == nil || step != c.step || !errs.Is(err, c.kind) {
				t.Fatalf("step %q, error %v; want %s with kind %s", step, err, c.step, c.kind)
			}
			rest := err.Error()
			for w := range strings.SplitSeq(c.words, ", ") {
				_, after, found := strings.Cut(rest, w)
				if !found {
					t.Fatalf("error %q: no %q", err, w)
				}
				rest = after
			}
		})
	}
}

// TestAnImageOfTwoVolumesIsListedAsSuch: an engine leaves it alone and goes on.
func TestAnImageOfTwoVolumesIsListedAsSuch(t *testing.T) {
	needParts(t)
	dir, spec := write(t)
	m := load(t, dir)
	second := path.Join(path.Dir(cowFile), "bbbbbbbb-1111-4111-8111-000000000009")
	text := strings.ReplaceAll(string(read(t, m, cowFile+".meta")), "PUUID=00000000-0000-0000-0000-000000000000", "PUUID="+cow.Image)
	if _, err := m.Put(second+".meta", []byte(text)); err != nil {
		t.Fatal(err)
	}
	options, _ := serve(t, m, "127.0.0.1:0")
	_, found, err := use(t, newHost(t, nfsdomain.Options{}), options, spec)
	if err != nil || len(found) != 2 || found[0].Volumes != 2 || found[1].Volumes != 1 {
		t.Errorf("found %+v, error %v", found, err)
	}
}

func remove(name string) damage {
	return func(t *testing.T, m *fstest.Memory) {
		if err := lookup(t, m, path.Dir(name)).(fs.Remover).Remove(t.Context(), path.Base(name)); err != nil {
			t.Fatal(err)
		}
	}
}

func resize(name string, size int64) damage { return set(name, fs.SetAttr{Size: &size}) }

func owner(name string, id uint32) damage { return set(name, fs.SetAttr{UID: &id, GID: &id}) }

func perm(name string, bits uint32) damage { return set(name, fs.SetAttr{Perm: &bits}) }

func set(name string, attr fs.SetAttr) damage {
	return func(t *testing.T, m *fstest.Memory) {
		if _, err := lookup(t, m, name).(fs.AttrSetter).SetAttr(t.Context(), attr, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func put(t *testing.T, m *fstest.Memory, name string, off int64, p []byte) {
	if err := lookup(t, m, name).(fs.Writer).WriteAt(t.Context(), p, off, true); err != nil {
		t.Fatal(err)
	}
}

func zero(name string, off int64, n int) damage {
	return func(t *testing.T, m *fstest.Memory) { put(t, m, name, off, make([]byte, n)) }
}

// poke adds to one byte.
func poke(name string, off int64, plus byte) damage {
	return func(t *testing.T, m *fstest.Memory) { put(t, m, name, off, []byte{read(t, m, name)[off] + plus}) }
}

// edit replaces text in a file.
func edit(name, old, new string) damage {
	return func(t *testing.T, m *fstest.Memory) {
		before := string(read(t, m, name))
		after := strings.Replace(before, old, new, 1)
		if after == before {
			t.Fatalf("%s has no %q", name, old)
		}
		resize(name, int64(len(after)))(t, m)
		put(t, m, name, 0, []byte(after))
	}
}

// meta changes a key of the domain's metadata, or removes it, and seals it again.
func meta(key, value string) damage {
	return func(t *testing.T, m *fstest.Memory) {
		var lines []string
		for line := range strings.Lines(string(read(t, m, mdFile))) {
			line = strings.TrimSpace(line)
			if k, _, _ := strings.Cut(line, "="); k != key && k != "_SHA_CKSUM" {
				lines = append(lines, line)
			}
		}
		if value != "" {
			lines = append(lines, key+"="+value)
		}
		slices.Sort(lines)
		sum := sha1.Sum([]byte(strings.Join(lines, "")))
		text := strings.Join(append(lines, "_SHA_CKSUM="+hex.EncodeToString(sum[:])), "\n") + "\n"
		resize(mdFile, int64(len(text)))(t, m)
		put(t, m, mdFile, 0, []byte(text))
	}
}

// leader changes a record of sanlock's and seals it again.
func leader(name string, off int64, change func(record []byte)) damage {
	return func(t *testing.T, m *fstest.Memory) {
		record := bytes.Clone(read(t, m, name)[off:][:512])
		change(record)
		sum := ^crc32.Update(1, crc32.MakeTable(crc32.Castagnoli), record[:168])
		binary.LittleEndian.PutUint32(record[168:], sum)
		put(t, m, name, off, record)
	}
}

// fail makes an operation answer with an error, on some files or on all.
func fail(op string, status fs.Status, names ...string) damage {
	return func(t *testing.T, m *fstest.Memory) {
		var nodes []fs.ID
		for _, name := range names {
			nodes = append(nodes, lookup(t, m, name).ID())
		}
		m.SetHook(func(o string, id fs.ID) error {
			if o == op && (len(nodes) == 0 || slices.Contains(nodes, id)) {
				return status
			}
			return nil
		})
	}
}

// TestAServerThatHangsIsAnError: no request takes longer than a host waits.
func TestAServerThatHangsIsAnError(t *testing.T) {
	needParts(t)
	dir, spec := write(t)
	m := load(t, dir)
	options, _ := serve(t, m, "127.0.0.1:0")
	h := newHost(t, nfsdomain.Options{Timeout: time.Second})
	if step, _, err := use(t, h, options, spec); err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	release := make(chan struct{})
	m.SetHook(func(op string, _ fs.ID) error {
		if op == "read" {
			<-release
		}
		return nil
	})
	begun := time.Now()
	_, _, err := h.DomainSpace(t.Context(), spec.UUID)
	if !errs.Is(err, errs.Transient) || !strings.Contains(fmt.Sprint(err), "did not answer within 1s") {
		t.Errorf("error %v", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	m.SetHook(nil)
	close(release)
	if _, _, err := h.DomainSpace(t.Context(), spec.UUID); err != nil {
		t.Errorf("once the server answers again: %v", err)
	}
	gone, giveUp := context.WithCancel(t.Context())
	giveUp()
	if _, _, err := h.DomainSpace(gone, spec.UUID); !errs.Is(err, errs.Canceled) {
		t.Errorf("a request that was given up: %v", err)
	}
}
