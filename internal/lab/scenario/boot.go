package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// BootOptions say how a machine is booted from its backup.
type BootOptions struct {
	Options
	Format string // how the disk is served: "raw" or "qcow2"
	// Address is where it is served: one of this machine's loopback addresses, and different in scenarios that are played
	// at the same time, since each has a portmapper.
	Address string
}

// booted is one run of the scenario.
type booted struct {
	*core
	opts  BootOptions
	disk  qemu.Node // as the machine has it
	deb   string    // the package that it installs
	files string    // the sum of that package's files
}

// Boot plays a machine that lives on its backup as if that were its own disk: it boots, installs a package while the
// server is stopped and started again, boots anew, and leaves a file system without a fault.
//
// The server is not killed here: qemu's NFS driver (libnfs) does not look at the verifier that COMMIT answers with, and
// so does not write again what a killed server had not made durable yet. Linux's client does, and has its server killed
// in the tests of internal/lab/linux.
func Boot(ctx context.Context, o BootOptions) (err error) {
	if err := parts.Need(parts.Machine, parts.Build); err != nil {
		return err
	}
	p, err := newCore(o.Options)
	if err != nil {
		return err
	}
	b := &booted{core: p, opts: o}
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		cancel(nil) // kills whatever still runs; below we wait for it
		if b.vm != nil {
			b.vm.Kill()
		}
		if b.server != nil {
			b.server.process.Kill()
		}
	}()
	return play(ctx, cancel, b.tell, []step{
		{"A store with a machine's disk", b.store},
		{"A package to install", b.makePackage},
		{"The machine boots from its backup, served as " + o.Format, b.firstBoot},
		{"It installs the package, and the server is started anew meanwhile", b.install},
		{"It boots anew", b.secondBoot},
		{"The file system, read back through the export", b.check},
	})
}

func (b *booted) store(ctx context.Context) (string, error) {
	if _, err := b.initStore(ctx); err != nil {
		return "", err
	}
	return "ready", b.holdfast.run(ctx, nil, "disk", "import", b.core.opts.Disk, "--vm", machineName, "--format", "qcow2")
}

// What the package consists of: enough that installing it takes some time, and dpkg some hundred syncs.
const (
	packageName  = "holdfast-lab-package"
	packageFiles = 250
	fileBytes    = 20_000
)

// makePackage makes a Debian package, and a small disk that holds nothing but it.
func (b *booted) makePackage(ctx context.Context) (string, error) {
	root := b.path("package")
	share := filepath.Join(root, "usr/share", packageName)
	for _, dir := range []string{share, filepath.Join(root, "DEBIAN")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	for n := range packageFiles {
		line := fmt.Sprintf("file %d of the package\n", n)
		content := strings.Repeat(line, fileBytes/len(line))
		if err := os.WriteFile(filepath.Join(share, fmt.Sprint("file", n)), []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	control := "Package: " + packageName + "\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\n" +
		"Description: something to install\n"
	if err := os.WriteFile(filepath.Join(root, "DEBIAN/control"), []byte(control), 0o644); err != nil {
		return "", err
	}
	const deb = "package.deb"
	if _, err := b.tool(ctx, "dpkg-deb", "-Zgzip", "--root-owner-group", "--build", "package", deb); err != nil {
		return "", err
	}
	b.deb = b.path(deb)
	info, err := os.Stat(b.deb)
	if err != nil {
		return "", err
	}
	out, err := b.tool(ctx, "bash", "-c", sumOfFiles(share))
	b.files = strings.TrimSpace(out)
	if err != nil || b.files == "" {
		return "", err
	}
	// A disk has whole sectors; what follows the package is ignored by dpkg.
	return fmt.Sprintf("%d files, %s", packageFiles, size(info.Size())), os.Truncate(b.deb, (info.Size()+511)/512*512)
}

// sumOfFiles is a command that prints one sum of all files of a folder.
func sumOfFiles(dir string) string {
	return "cd " + dir + " && cat $(ls | sort) | sha256sum"
}

// start starts the server, which goes on with the overlay that is there.
func (b *booted) start(ctx context.Context) error {
	server, line, err := b.holdfast.start(ctx, "point", "serve", machineName+"@latest", "--nfs", b.opts.Address+":2049", "--portmap",
		"--writable", "--overlay", "overlay", "--format", b.opts.Format)
	if err != nil {
		return err
	}
	b.server = server
	var ready struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal([]byte(line), &ready); err != nil || ready.URL == "" {
		return wrong("the server's first line", "%q is not the JSON that was promised", line)
	}
	nfs, err := qemu.NFSNode(ready.URL)
	b.disk = qemu.FormatNode("backup", b.opts.Format, nfs)
	return err
}

func (b *booted) firstBoot(ctx context.Context) (string, error) {
	if err := b.start(ctx); err != nil {
		return "", err
	}
	took, err := b.boot(ctx, b.disk, qemu.FormatNode("package", "raw", qemu.Node{"driver": "file", "filename": b.deb}))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("root prompt after %.1f s", took.Seconds()), nil
}

// writesBeforeStop is how many writes the server takes of the installation before it is stopped.
const writesBeforeStop = 10

func (b *booted) install(ctx context.Context) (string, error) {
	before, err := b.server.counters(ctx)
	if err != nil {
		return "", err
	}
	installed := make(chan error, 1)
	go func() {
		_, err := b.guest(ctx, "cat /dev/vdb >/tmp/package.deb && dpkg -i /tmp/package.deb && sync")
		installed <- err
	}()
	for {
		now, err := b.server.counters(ctx)
		if err != nil {
			return "", err
		}
		if now.Writes >= before.Writes+writesBeforeStop {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case err := <-installed:
			return "", wrong("the installation", "it has ended after %d writes, before the server could be stopped (%v)", now.Writes-before.Writes, err)
		}
	}
	if err := b.server.interrupt(); err != nil {
		return "", err
	}
	if err := b.start(ctx); err != nil {
		return "", err
	}
	select {
	case err = <-installed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return "", err
	}
	return "the machine has felt nothing but a pause", b.installed(ctx)
}

// installed looks in the machine whether the package is there, read anew from the disk.
func (b *booted) installed(ctx context.Context) error {
	if _, err := b.guest(ctx, "echo 3 >/proc/sys/vm/drop_caches; dpkg --audit && dpkg -V "+packageName); err != nil {
		return err
	}
	got, err := b.guest(ctx, sumOfFiles("/usr/share/"+packageName))
	if err != nil {
		return err
	}
	if got != b.files {
		return wrong("the package's files in the machine", "their sum is %s, want %s", got, b.files)
	}
	return nil
}

func (b *booted) secondBoot(ctx context.Context) (string, error) {
	if err := b.shutdown(ctx); err != nil {
		return "", err
	}
	took, err := b.boot(ctx, b.disk)
	if err != nil {
		return "", err
	}
	if err := b.installed(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("root prompt after %.1f s, the package is there", took.Seconds()), b.shutdown(ctx)
}

// check reads the disk back as any client would and has the file system's own tool look at it.
func (b *booted) check(ctx context.Context) (string, error) {
	const raw = "back.raw"
	if b.opts.Format == "qcow2" {
		if _, err := b.tool(ctx, "qemu-img", "check", b.disk.Image()); err != nil {
			return "", err
		}
	}
	if _, err := b.tool(ctx, "qemu-img", "convert", "-O", "raw", b.disk.Image(), raw); err != nil {
		return "", err
	}
	out, err := b.tool(ctx, "/usr/sbin/e2fsck", "-f", "-n", fmt.Sprintf("%s?offset=%d", raw, debian.PartitionOffset))
	if err != nil {
		return "", errs.New("check", "the machine's file system", errs.Corrupt, fmt.Errorf("%w: %s", err, out))
	}
	server := b.server
	b.server = nil
	return "without a fault", server.interrupt()
}
