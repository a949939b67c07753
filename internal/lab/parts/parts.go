// Package parts knows the foreign programs that the lab is made of and the Debian packages they come from, so that a
// missing one is named before anything starts.
//
// The Makefile installs the same list; a test compares the two.
package parts

import (
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Part is one thing the lab needs from the machine.
type Part struct {
	Path    string // an absolute path, or the name of a program to be found in PATH
	Package string // the Debian 12 package that brings it
}

// The parts, by what they are for.
var (
	// Build makes a disk: internal/lab/debian.
	Build = []Part{
		{"mmdebstrap", "mmdebstrap"},
		{"unshare", "util-linux"},
		{"mke2fs", "e2fsprogs"},
		{"grub-mkimage", "grub-common"},
		{"/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin"},
		{"qemu-img", "qemu-utils"},
	}
	// Machine boots one: internal/lab/qemu. The second is qemu's NFS driver, which Debian packs apart.
	Machine = []Part{
		{"qemu-system-x86_64", "qemu-system-x86"},
		{"/usr/lib/x86_64-linux-gnu/qemu/block-nfs.so", "qemu-block-extra"},
		{"qemu-img", "qemu-utils"},
	}
	// Kernel takes a kernel out of such a disk: internal/lab/linux.
	Kernel = []Part{{"/usr/sbin/debugfs", "e2fsprogs"}}
	// Python is for what oVirt publishes as Python packages; they have parts in C.
	Python = []Part{
		{"/usr/bin/python3", "python3"},
		{"/usr/lib/python3.11/ensurepip", "python3-venv"},
		{"/usr/include/python3.11/Python.h", "python3-dev"},
		{"/usr/include/libxml2/libxml/xmlversion.h", "libxml2-dev"},
		{"gcc", "gcc"},
	}
	// Imageio runs oVirt's daemon for images: internal/lab/imageio.
	Imageio = append(slices.Clone(Python), Part{"qemu-nbd", "qemu-utils"})
	// NFSClient is a host's way to storage domains on NFS: internal/lab/nfsdomain.
	NFSClient = []Part{
		{"/usr/bin/python3", "python3"},
		{"/usr/lib/x86_64-linux-gnu/libnfs.so.13", "libnfs-utils"}, // which depends on the library of that release
		{"qemu-img", "qemu-utils"},
	}
	// Mount shows points as files.
	Mount = []Part{{"fusermount3", "fuse3"}}
	// Sanlock reads and formats the leases of a storage domain: tests of appliance/instant/domain.
	Sanlock = []Part{{"/usr/sbin/sanlock", "sanlock"}}
)

// Need returns nil when all the parts are there, else one error that names every missing package.
func Need(lists ...[]Part) error {
	var packages, names []string
	for _, p := range slices.Concat(lists...) {
		if !p.present() && !slices.Contains(names, p.Path) {
			names = append(names, p.Path)
			if !slices.Contains(packages, p.Package) {
				packages = append(packages, p.Package)
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	return errs.Text("look for the parts of the lab", "", errs.NotFound,
		"not installed: "+strings.Join(names, ", ")).
		WithNext("Run `make deps`, or as root: apt-get install " + strings.Join(packages, " "))
}

func (p Part) present() bool {
	if strings.HasPrefix(p.Path, "/") {
		_, err := os.Stat(p.Path)
		return err == nil
	}
	// Root's own programs are missing from the PATH of some shells.
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := os.Stat(dir + "/" + p.Path); err == nil {
			return true
		}
	}
	_, err := exec.LookPath(p.Path)
	return err == nil
}
