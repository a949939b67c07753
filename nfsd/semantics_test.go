package nfsd_test

import (
	"bytes"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	nfs "github.com/willscott/go-nfs"
	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs/overlay"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// The tests here hold, one by one and over the wire, what a VM and a host rely on. The trees have suites of their own
// (fs/fstest, fs/overlay); these are about what arrives at the client.

func TestHandlesAndNumbersOutliveARestart(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	dir := w.mkdir(w.root, "dom_md")
	handles := map[string][]byte{"folder": dir, "file": w.file(dir, "ids", "content"),
		"disk": w.c.Lookup(w.root, wireDiskName), "root": w.root,
		"link": w.made(nfs.NFSProcedureSymlink, at(dir, "link").Raw(same()).Text("ids"))}
	w.c.MustNFS(nfs.NFSProcedureRename, at(dir, "ids").Raw(at(w.root, "moved")))
	gone := w.file(w.root, "gone", "")
	w.c.MustNFS(nfs.NFSProcedureRemove, at(w.root, "gone"))
	before := map[string]nfs.FileAttribute{}
	for name, fh := range handles {
		before[name] = w.attr(fh)
	}
	for range 2 {
		w.restart()
		for name, fh := range handles {
			a, b := w.attr(fh), before[name]
			if a.Fileid != b.Fileid || a.FSID != b.FSID || a.Type != b.Type || a.Filesize != b.Filesize || a.FileMode != b.FileMode {
				t.Errorf("%s: %+v after a restart, %+v before", name, a, b)
			}
		}
		if fh := w.c.Lookup(w.root, "moved"); !bytes.Equal(fh, handles["file"]) {
			t.Error("LOOKUP gives another handle after a restart")
		}
		w.want("a file that was removed before", nfs.NFSProcedureGetAttr, nfstest.Words(nil).Opaque(gone), nfs.NFSStatusStale)
	}
	if again := w.file(w.root, "gone", ""); bytes.Equal(again, gone) {
		t.Error("the handle of a removed file was given out again")
	}
}

func TestOneVerifierPerServerLife(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	disk, small := w.c.Lookup(w.root, wireDiskName), w.file(w.root, "small", "")
	first, _ := w.write(disk, 0, 0, "unstable")
	for _, how := range []uint32{0, 1, 2} {
		if v, _ := w.write(small, 0, how, "x"); v != first {
			t.Error("two verifiers in one life")
		}
	}
	if w.commit(disk) != first || w.commit(small) != first {
		t.Error("COMMIT has another verifier than WRITE")
	}
	w.restart()
	if v, _ := w.write(w.c.Lookup(w.root, wireDiskName), 0, 0, "unstable"); v == first {
		t.Error("the next life has the same verifier: a client would not send again what was lost")
	}
}

// failingSyncs is a disk whose syncs can be made to fail.
type failingSyncs struct {
	disk.OS
	fail *atomic.Bool
}

type failingSync struct {
	disk.File
	fail *atomic.Bool
}

func (d failingSyncs) Create(name string) (disk.File, error) { return d.wrap(d.OS.Create(name)) }
func (d failingSyncs) OpenRW(name string) (disk.File, error) { return d.wrap(d.OS.OpenRW(name)) }

func (d failingSyncs) wrap(f disk.File, err error) (disk.File, error) {
	if err != nil {
		return nil, err
	}
	return failingSync{f, d.fail}, nil
}

func (f failingSync) Size() (int64, error) { return disk.Size(f.File) }

func (f failingSync) Sync() error {
	if f.fail.Load() {
		return syscall.EIO
	}
	return f.File.Sync()
}

func TestALostWriteChangesTheVerifier(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	w.end()
	var fail atomic.Bool
	w.disks = failingSyncs{fail: &fail}
	w.begin()
	dh, small := w.c.Lookup(w.root, wireDiskName), w.file(w.root, "small", "")
	before, _ := w.write(dh, 0, 0, "unstable")
	fail.Store(true)
	w.want("COMMIT of what the disk lost", nfs.NFSProcedureCommit, nfstest.Words(nil).Opaque(dh).U64(0).U32(0), nfs.NFSStatusIO)
	fail.Store(false)
	w.want("and again: nothing brings it back", nfs.NFSProcedureCommit, nfstest.Words(nil).Opaque(dh).U64(0).U32(0), nfs.NFSStatusIO)
	if v, _ := w.write(small, 0, 0, "x"); v == before {
		t.Error("the verifier stayed")
	}
	if got, _, _ := w.read(dh, 0, 8); got != "unstable" {
		t.Errorf("reading ended with writing: %q", got)
	}
}

// TestAcknowledgedWritesOutlivePowerCuts: FILE_SYNC, DATA_SYNC and COMMIT over the wire, the power cut after each answer.
func TestAcknowledgedWritesOutlivePowerCuts(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	w.end()
	crash := disk.NewCrash()
	w.disks, w.name = crash, "/o"
	w.begin()
	dh := w.c.Lookup(w.root, wireDiskName)
	model := bytes.Clone(wireContent)
	check := func(what string) {
		t.Helper()
		for seed := range uint64(4) {
			o, err := overlay.Open(t.Context(), crash.Clone(seed), "/o", w.base, overlay.Options{Identity: "test"})
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(model))
			if _, err := o.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, model) {
				t.Errorf("%s, power cut %d: an acknowledged write is missing (%v)", what, seed, err)
			}
			if err := o.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	text := strings.Repeat("0123456789", 500)
	for i, how := range []uint32{2, 1, 2} {
		off := uint64(i*777_777 + 13)
		w.write(dh, off, how, text)
		copy(model[off:], text)
		check([]string{"FILE_SYNC", "DATA_SYNC", "FILE_SYNC once more"}[i])
	}
	for i := range 5 {
		w.write(dh, uint64(i*123_456), 0, text)
		copy(model[i*123_456:], text)
	}
	w.commit(dh)
	check("COMMIT")
	w.c.MustNFS(nfs.NFSProcedureSetAttr, nfstest.Words(nil).Opaque(dh).U32(0, 0, 0, 1).U64(3<<20+5).U32(0, 0, 0))
	model = model[:3<<20+5]
	check("a size")
	w.write(dh, 3<<20+5, 2, "appended, and odd")
	model = append(model, "appended, and odd"...)
	check("a write past the end")
}

func TestExclusiveCreateKeepsItsVerifierOverARestart(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	args := at(w.root, "once").U32(2).Raw([]byte("verifier"))
	fh := w.made(nfs.NFSProcedureCreate, args)
	w.write(fh, 0, 2, "content")
	// Attributes come by SETATTR afterwards, and must not disturb the verifier.
	w.c.MustNFS(nfs.NFSProcedureSetAttr, nfstest.Words(nil).Opaque(fh).U32(1, 0o600, 1, 36, 1, 36, 0, 1, 2, 5, 5, 0))
	for range 2 {
		if again := w.made(nfs.NFSProcedureCreate, args); !bytes.Equal(again, fh) || w.content(fh) != "content" {
			t.Error("a repeated exclusive create did not find its file")
		}
		w.want("another verifier", nfs.NFSProcedureCreate, at(w.root, "once").U32(2).Raw([]byte("VERIFIER")), nfs.NFSStatusExist)
		w.want("guarded", nfs.NFSProcedureCreate, at(w.root, "once").U32(1).Raw(same()), nfs.NFSStatusExist)
		w.want("over a file that was made otherwise", nfs.NFSProcedureCreate, at(w.root, wireDiskName).U32(2).Raw(make([]byte, 8)), nfs.NFSStatusExist)
		w.restart()
	}
}

func TestUncheckedCreateTakesNothingUnasked(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	fh := w.file(w.root, "file", "content")
	w.c.MustNFS(nfs.NFSProcedureSetAttr, nfstest.Words(nil).Opaque(fh).U32(1, 0o660, 0, 0, 0, 0, 0, 0))
	before := w.attr(fh)
	open := func(size ...uint64) {
		t.Helper()
		args := at(w.root, "file").U32(0).U32(1, 0o644, 1, 0, 1, 0, uint32(len(size))).U64(size...).U32(0, 0)
		if again := w.made(nfs.NFSProcedureCreate, args); !bytes.Equal(again, fh) {
			t.Error("another file")
		}
	}
	open() // as open(2) with O_CREAT does
	if a := w.attr(fh); a != before || w.content(fh) != "content" {
		t.Errorf("opening a file that is there changed it: %+v, before %+v", a, before)
	}
	open(3) // as O_TRUNC does
	if a := w.attr(fh); a.Filesize != 3 || a.FileMode != before.FileMode || a.UID != before.UID || w.content(fh) != "con" {
		t.Errorf("with a size: %+v", a)
	}
	dh := w.c.Lookup(w.root, wireDiskName)
	w.made(nfs.NFSProcedureCreate, at(w.root, wireDiskName).U32(0).U32(1, 0o644, 0, 0, 0, 0, 0))
	if a := w.attr(dh); a.Filesize != wireDiskSize {
		t.Errorf("the disk has %d bytes now", a.Filesize)
	}
}

func TestRenameKeepsOpenHandles(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	old, next := w.file(w.root, "metadata", "old"), w.file(w.root, "metadata.new", "new")
	w.c.MustNFS(nfs.NFSProcedureRename, at(w.root, "metadata.new").Raw(at(w.root, "metadata")))
	if fh := w.c.Lookup(w.root, "metadata"); !bytes.Equal(fh, next) || w.content(fh) != "new" {
		t.Error("the name leads elsewhere")
	}
	w.want("what was replaced", nfs.NFSProcedureRead, read(old, 0, 10), nfs.NFSStatusStale)
	w.want("the old name", nfs.NFSProcedureLookup, at(w.root, "metadata.new"), nfs.NFSStatusNoEnt)

	dir := w.mkdir(w.root, "image")
	w.c.MustNFS(nfs.NFSProcedureRename, at(w.root, wireDiskName).Raw(at(dir, "volume")))
	dh, inside := w.c.Lookup(dir, "volume"), w.file(dir, "volume.meta", "meta")
	v, _ := w.write(dh, 4096, 0, "before")
	w.c.MustNFS(nfs.NFSProcedureRename, at(w.root, "image").Raw(at(w.root, "_remove_me_image")))
	if _, a := w.write(dh, 8192, 2, "after"); a == nil || a.Filesize != wireDiskSize {
		t.Errorf("writing after the folder moved: %+v", a)
	}
	if w.commit(dh) != v || w.content(inside) != "meta" {
		t.Error("handles within a folder that moved are not what they were")
	}
	if got, _, _ := w.read(dh, 4096, 6); got != "before" {
		t.Errorf("read %q", got)
	}
	if fh := w.c.Lookup(dir, "volume"); !bytes.Equal(fh, dh) {
		t.Error("the folder's own handle went stale")
	}
}

func TestLinks(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	dir := w.mkdir(w.root, "dir")
	fh := w.file(w.root, "one", "content")
	res := w.c.MustNFS(nfs.NFSProcedureLink, nfstest.Words(nil).Opaque(fh).Raw(at(dir, "two")))
	if a := res.PostOp(); a == nil || a.Nlink != 2 {
		t.Errorf("LINK says %+v", a)
	}
	if a := res.Wcc(); a == nil || a.Type != nfs.FileTypeDirectory {
		t.Errorf("LINK says of the folder %+v", a)
	}
	if again := w.c.Lookup(dir, "two"); !bytes.Equal(again, fh) {
		t.Error("two names of a file have two handles")
	}
	w.want("a taken name", nfs.NFSProcedureLink, nfstest.Words(nil).Opaque(fh).Raw(at(dir, "two")), nfs.NFSStatusExist)
	w.want("of a folder", nfs.NFSProcedureLink, nfstest.Words(nil).Opaque(dir).Raw(at(w.root, "x")), nfs.NFSStatusIsDir)
	w.c.MustNFS(nfs.NFSProcedureRemove, at(w.root, "one"))
	w.restart()
	if a := w.attr(fh); a.Nlink != 1 || w.content(fh) != "content" {
		t.Errorf("after the first name was removed, and a restart: %+v", a)
	}
}

func TestRefusalsAreToldApart(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	full, empty := w.mkdir(w.root, "full"), w.mkdir(w.root, "empty")
	file := w.file(full, "file", "")
	w.file(w.root, "file", "")
	for _, c := range []struct {
		p    nfs.NFSProcedure
		args nfstest.Words
		want nfs.NFSStatus
	}{
		{nfs.NFSProcedureRmDir, at(w.root, "full"), nfs.NFSStatusNotEmpty},
		{nfs.NFSProcedureRmDir, at(full, "file"), nfs.NFSStatusNotDir},
		{nfs.NFSProcedureRmDir, at(w.root, "none"), nfs.NFSStatusNoEnt},
		{nfs.NFSProcedureRemove, at(w.root, "full"), nfs.NFSStatusIsDir},
		{nfs.NFSProcedureRemove, at(w.root, "none"), nfs.NFSStatusNoEnt},
		{nfs.NFSProcedureRemove, at(file, "x"), nfs.NFSStatusNotDir},
		{nfs.NFSProcedureMkDir, at(w.root, "full").Raw(same()), nfs.NFSStatusExist},
		{nfs.NFSProcedureMkDir, at(w.root, "file").Raw(same()), nfs.NFSStatusExist},
		{nfs.NFSProcedureSymlink, at(w.root, "file").Raw(same()).Text("x"), nfs.NFSStatusExist},
		{nfs.NFSProcedureCreate, at(w.root, "full").U32(0).Raw(same()), nfs.NFSStatusIsDir},
		{nfs.NFSProcedureCreate, at(w.root, "full").U32(1).Raw(same()), nfs.NFSStatusExist},
		{nfs.NFSProcedureRename, at(w.root, "empty").Raw(at(w.root, "full")), nfs.NFSStatusNotEmpty},
		{nfs.NFSProcedureRename, at(w.root, "file").Raw(at(w.root, "empty")), nfs.NFSStatusIsDir},
		{nfs.NFSProcedureRename, at(w.root, "empty").Raw(at(w.root, "file")), nfs.NFSStatusNotDir},
		{nfs.NFSProcedureRename, at(w.root, "full").Raw(at(full, "inside")), nfs.NFSStatusInval},
		{nfs.NFSProcedureRename, at(w.root, "none").Raw(at(w.root, "x")), nfs.NFSStatusNoEnt},
		{nfs.NFSProcedureRead, read(empty, 0, 1), nfs.NFSStatusIsDir},
		{nfs.NFSProcedureReadDir, nfstest.Words(nil).Opaque(file).U64(0, 0).U32(4096), nfs.NFSStatusNotDir},
		{nfs.NFSProcedureSetAttr, nfstest.Words(nil).Opaque(empty).U32(0, 0, 0, 1).U64(0).U32(0, 0, 0), nfs.NFSStatusIsDir},
		{nfs.NFSProcedureMkNod, at(w.root, "fifo").U32(7).Raw(same()), nfs.NFSStatusNotSupp},
		{nfs.NFSProcedureRename, at(w.root, "empty").Raw(at(w.root, "renamed")), nfs.NFSStatusOk},
	} {
		w.want(c.p.String(), c.p, c.args, c.want)
	}
}

// TestSizesNeverExceedWhatReadGives: a writer makes the disk grow, by odd lengths; whoever is told a size can read up to
// it, from then on.
func TestSizesNeverExceedWhatReadGives(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	dh := w.c.Lookup(w.root, wireDiskName)
	writer := nfstest.Dial(t, w.s.addr)
	var wg sync.WaitGroup
	var done atomic.Bool
	wg.Go(func() {
		defer done.Store(true)
		size := uint64(wireDiskSize)
		for i := range 60 {
			data := strings.Repeat("g", 1+i*37%9000)
			writer.MustNFS(nfs.NFSProcedureWrite, writeArgs(dh, size+uint64(i%3)*100, uint32(i%3), data))
			size += uint64(i%3)*100 + uint64(len(data))
		}
	})
	seen := map[uint64]bool{}
	for !done.Load() {
		size := w.attr(dh).Filesize
		seen[size] = true
		if data, _, a := w.read(dh, size-1, 1); len(data) != 1 || a.Filesize < size {
			t.Errorf("of %d bytes the last one cannot be read: %d bytes, the size is %d then", size, len(data), a.Filesize)
		}
		if data, eof, a := w.read(dh, size-10, 1<<16); uint64(len(data)) > a.Filesize-(size-10) || eof != (size-10+uint64(len(data)) >= a.Filesize) {
			t.Errorf("%d bytes of the last %d, end %v", len(data), a.Filesize-(size-10), eof)
		}
	}
	wg.Wait()
	if len(seen) < 3 {
		t.Logf("only %d sizes were seen", len(seen))
	}
	size := w.attr(dh).Filesize
	if data, eof, _ := w.read(dh, size, 10); data != "" || !eof {
		t.Errorf("at the end: %q, %v", data, eof)
	}
}

func TestGuardedSetAttr(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	for name, fh := range map[string][]byte{"file": w.file(w.root, "file", "content"), "disk": w.c.Lookup(w.root, wireDiskName)} {
		guard := func(a nfs.FileAttribute) nfstest.Words {
			return nfstest.Words(nil).Opaque(fh).U32(0, 0, 0, 1).U64(a.Filesize-1).U32(0, 0).U32(1, a.Ctime.Seconds, a.Ctime.Nseconds)
		}
		a := w.attr(fh)
		w.write(fh, 0, 2, "changed")
		w.want(name+" changed since", nfs.NFSProcedureSetAttr, guard(a), nfs.NFSStatusNotSync)
		b := w.attr(fh)
		if b.Filesize != a.Filesize {
			t.Errorf("%s: a refused change was made", name)
		}
		w.want(name+" as it was", nfs.NFSProcedureSetAttr, guard(b), nfs.NFSStatusOk)
		if c := w.attr(fh); c.Filesize != b.Filesize-1 {
			t.Errorf("%s: %d bytes", name, c.Filesize)
		}
		w.want(name+" guarded by what was before", nfs.NFSProcedureSetAttr, guard(b), nfs.NFSStatusNotSync)
	}
}

// TestUsedIsTrueInEveryReply: the engine's space checks read it, and clients keep what they saw last, in whatever reply.
func TestUsedIsTrueInEveryReply(t *testing.T) {
	w := newWire(t, nfsd.Options{})
	dh := w.c.Lookup(w.root, wireDiskName)
	w.write(dh, 0, 2, strings.Repeat("x", 64<<10))
	want := uint64(wireBaseUsed + w.over.Used())
	if w.over.Used() != 64<<10 {
		t.Fatalf("the overlay holds %d bytes", w.over.Used())
	}
	on := nfstest.Words(nil).Opaque(dh)
	look := w.c.MustNFS(nfs.NFSProcedureLookup, at(w.root, wireDiskName))
	look.Handle()
	_, _, readAttr := w.read(dh, 0, 4096)
	_, writeAttr := w.write(dh, 0, 2, "y") // within a block that is there
	for name, a := range map[string]*nfs.FileAttribute{
		"LOOKUP": look.PostOp(), "READ": readAttr, "WRITE": writeAttr,
		"ACCESS":  w.c.MustNFS(nfs.NFSProcedureAccess, on.U32(0x3f)).PostOp(),
		"SETATTR": w.c.MustNFS(nfs.NFSProcedureSetAttr, nfstest.Words(nil).Opaque(dh).Raw(same()).U32(0)).Wcc(),
		"COMMIT":  w.c.MustNFS(nfs.NFSProcedureCommit, nfstest.Words(nil).Opaque(dh).U64(0).U32(0)).Wcc(),
		"FSSTAT":  w.c.MustNFS(nfs.NFSProcedureFSStat, nfstest.Words(nil).Opaque(dh)).PostOp(),
		"GETATTR": new(w.attr(dh)), "READDIRPLUS": w.listedAttr(wireDiskName),
	} {
		if a == nil || a.Used != want || a.Filesize != wireDiskSize {
			t.Errorf("%s: %+v, want %d bytes used of %d", name, a, want, wireDiskSize)
		}
	}
	sparse := w.file(w.root, "sparse", "head")
	w.write(sparse, 100<<20, 2, "tail")
	if a := w.attr(sparse); a.Filesize != 100<<20+4 || a.Used == 0 || a.Used > 1<<20 {
		t.Errorf("a sparse file: %d bytes used of %d", a.Used, a.Filesize)
	}
	w.spaceOfTheDisk()
}

// listedAttr returns the attributes that READDIRPLUS gives for a name in the root.
func (w *wire) listedAttr(name string) (found *nfs.FileAttribute) {
	w.t.Helper()
	res := w.c.MustNFS(nfs.NFSProcedureReadDirPlus, nfstest.Words(nil).Opaque(w.root).U64(0, 0).U32(65536, 65536))
	res.PostOp()
	res.U64()
	for res.U32() == 1 {
		res.U64()
		entry := res.Text()
		res.U64()
		a := res.PostOp()
		if res.U32() == 1 {
			res.Handle()
		}
		if entry == name {
			found = a
		}
	}
	return found
}

// spaceOfTheDisk compares FSSTAT with what the system says. Others write to the same disk meanwhile.
func (w *wire) spaceOfTheDisk() {
	w.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(w.dir, &st); err != nil {
		w.t.Fatal(err)
	}
	res := w.c.MustNFS(nfs.NFSProcedureFSStat, nfstest.Words(nil).Opaque(w.root))
	res.PostOp()
	total, free, avail := res.U64(), res.U64(), res.U64()
	near := int64(free) - int64(st.Bavail)*st.Frsize
	if total != st.Blocks*uint64(st.Frsize) || free != avail || near > 1<<30 || near < -1<<30 {
		w.t.Errorf("FSSTAT: %d, %d, %d; the disk has %d, %d blocks of %d", total, free, avail, st.Blocks, st.Bavail, st.Frsize)
	}
}
