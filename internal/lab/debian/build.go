package debian

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

const (
	sector = 512
	// PartitionOffset is where the file system begins on the disk, in bytes. It leaves the first MiB to the partition
	// table and GRUB, as every installer does.
	PartitionOffset = 1 << 20
	// tableStart is where boot.img's code must end and the disk's signature and partition table begin.
	tableStart = 440
	// typeLinux is the partition type of a Linux file system.
	typeLinux = 0x83
	// diskSignature is arbitrary; the same for all, so that equal recipes make equal first sectors.
	diskSignature = 0x4846_4c42
)

// grubFolder holds GRUB's parts for a PC with a BIOS.
const grubFolder = "/usr/lib/grub/i386-pc"

// builder is one build.
type builder struct {
	work    string // everything lies below
	out     string // becomes the finished folder
	sizeMiB int
	server  *Server
	log     io.Writer
}

func (b builder) run(ctx context.Context) error {
	fmt.Fprintln(b.log, "The lab's Debian disk is not in the cache: making it takes a few minutes, once ...")
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	raw, qcow2 := filepath.Join(b.out, "disk.raw"), filepath.Join(b.out, "disk.qcow2")
	files := []string{raw}
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"install Debian 12 with mmdebstrap (packages come from this machine's apt sources)", func() error { return b.install(ctx) }},
		{"make the file system", func() error { return b.makeFileSystem(ctx, raw) }},
		{"write the partition table and the boot loader", func() error { return b.makeBootable(ctx, raw) }},
		{"convert to qcow2", func() error {
			if b.server != nil {
				return nil
			}
			files = append(files, qcow2)
			_, err := proc.Run(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
			return err
		}},
	} {
		begun := time.Now()
		if err := s.do(); err != nil {
			return errs.Wrap(s.what, "", err)
		}
		fmt.Fprintf(b.log, "%s: %.1f s\n", s.what, time.Since(begun).Seconds())
	}
	for _, f := range files {
		if err := seal(f); err != nil {
			return err
		}
	}
	return syncFolder(b.out)
}

// install fills work/root with the packages.
func (b builder) install(ctx context.Context) error {
	sources, err := debianSources(ctx)
	if err != nil {
		return err
	}
	proxies, err := proxyOptions(ctx)
	if err != nil {
		return err
	}
	extra := filepath.Join(b.work, "extra")
	if err := writeFiles(extra); err != nil {
		return err
	}
	// In a mount and process namespace of its own: when the build is killed, everything that mmdebstrap had started ends
	// with it, and no mount is left below the folder that the next build removes.
	wanted, leftOut := packages, unwanted
	if b.server != nil {
		wanted, leftOut = slices.Concat(packages, b.server.Packages), nil
	}
	args := []string{"unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
		"mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--quiet",
		"--include=" + strings.Join(wanted, ","),
		`--aptopt=Apt::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`,
		"--essential-hook=sync-in " + extra + " /"}
	for _, u := range leftOut {
		args = append(args, "--dpkgopt=path-exclude="+u)
	}
	args = append(args, proxies...)
	args = append(args, release, filepath.Join(b.work, "root"))
	args = append(args, sources...)
	err = b.mmdebstrap(ctx, args)
	if err != nil && !errs.Is(err, errs.Canceled) {
		return errs.New("run", "mmdebstrap", errs.Transient, err).
			WithNext("Check that `apt-get update` works on this machine, then run the same command again.")
	}
	return err
}

// mmdebstrap runs it with its temporary files below work: one that is killed leaves some.
func (b builder) mmdebstrap(ctx context.Context, args []string) error {
	temp := filepath.Join(b.work, "tmp")
	if err := os.Mkdir(temp, 0o755); err != nil {
		return err
	}
	_, err := proc.Output(ctx, proc.Spec{Args: args, Env: []string{"TMPDIR=" + temp}})
	return err
}

// writeFiles lays out the recipe's own files below a folder.
func writeFiles(folder string) error {
	for name, content := range files {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	units := filepath.Join(folder, "etc/systemd/system")
	for _, unit := range masked {
		if err := os.Symlink("/dev/null", filepath.Join(units, unit)); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(folder, "root"), 0o700)
}

// makeFileSystem makes the sparse disk and fills its partition from work/root.
func (b builder) makeFileSystem(ctx context.Context, raw string) error {
	f, err := os.Create(raw)
	if err != nil {
		return err
	}
	if err := f.Truncate(int64(b.sizeMiB) << 20); err != nil {
		_ = f.Close() // the first error matters
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	kib := (int64(b.sizeMiB)<<20 - PartitionOffset) >> 10
	_, err = proc.Run(ctx, path("mke2fs"), "-q", "-F", "-t", "ext4", "-L", label,
		"-E", "offset="+strconv.Itoa(PartitionOffset)+",lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
		"-d", filepath.Join(b.work, "root"), raw, strconv.FormatInt(kib, 10)+"k")
	return err
}

// makeBootable writes GRUB and the partition table. boot.img loads the sector after itself, which is the start of the
// core image, and that loads the rest of itself from the sectors that follow: exactly how both come out of GRUB's
// tools, so that nothing has to be patched and nothing mounted.
func (b builder) makeBootable(ctx context.Context, raw string) error {
	early, core := filepath.Join(b.work, "early.cfg"), filepath.Join(b.work, "core.img")
	if err := os.WriteFile(early, []byte(earlyConfig), 0o644); err != nil {
		return err
	}
	args := []string{"grub-mkimage", "-O", "i386-pc", "-d", grubFolder, "-p", "(hd0,msdos1)/boot/grub", "-c", early, "-o", core}
	if _, err := proc.Run(ctx, slices.Concat(args, grubModules)...); err != nil {
		return err
	}
	boot, err := os.ReadFile(filepath.Join(grubFolder, "boot.img"))
	if err != nil {
		return err
	}
	image, err := os.ReadFile(core)
	if err != nil {
		return err
	}
	if len(boot) != sector || len(image) > PartitionOffset-sector {
		return errs.Text("write", "GRUB", errs.Unsupported, fmt.Sprintf("its images have %d and %d bytes", len(boot), len(image)))
	}
	f, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(masterBootRecord(boot, b.sizeMiB), image...), 0)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// masterBootRecord joins GRUB's code with a partition table of one bootable Linux partition.
func masterBootRecord(boot []byte, sizeMiB int) []byte {
	mbr := make([]byte, sector)
	copy(mbr, boot[:tableStart])
	binary.LittleEndian.PutUint32(mbr[tableStart:], diskSignature)
	entry := mbr[446:]
	entry[0] = 0x80 // bootable
	// Cylinders, heads and sectors have no meaning on any disk made since: the values that say "beyond what fits here".
	copy(entry[1:], []byte{0xfe, 0xff, 0xff})
	entry[4] = typeLinux
	copy(entry[5:], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], PartitionOffset/sector)
	binary.LittleEndian.PutUint32(entry[12:], uint32((int64(sizeMiB)<<20-PartitionOffset)/sector))
	mbr[510], mbr[511] = 0x55, 0xaa
	return mbr
}

// seal makes a finished file durable and read-only.
func seal(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Chmod(0o444)
}

// path finds a program of root's, which the PATH of some shells lacks.
func path(program string) string {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p := filepath.Join(dir, program); exists(p) {
			return p
		}
	}
	return program
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
