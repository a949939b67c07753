package debian

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// recipeVersion is raised when the way a disk is made changes without any of the texts below changing.
const recipeVersion = 1

// Prompt is what the root shell on the serial console shows when it is ready.
const Prompt = "holdfast-lab# "

// label is the file system's label, by which the guest finds its root whatever bus the disk hangs on.
const label = "holdfast-lab"

// release is the Debian release, by its code name.
const release = "bookworm"

// packages is what the disk holds beside Debian's essential packages: a kernel for virtual machines and what boots it.
var packages = []string{"linux-image-cloud-amd64", "initramfs-tools", "systemd-sysv", "udev", "kmod", "e2fsprogs"}

// unwanted is left out of the packages: nobody reads it here, and it is a third of the files.
var unwanted = []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*"}

// masked units are never started. Each costs up to seconds in emulation and does nothing that a test looks at.
var masked = []string{
	"apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
	"fstrim.timer", "systemd-tmpfiles-clean.timer", "systemd-networkd.service", "systemd-networkd-wait-online.service",
	"systemd-timesyncd.service", "systemd-resolved.service", "systemd-logind.service", "systemd-user-sessions.service",
	"systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-journal-flush.service",
	"systemd-binfmt.service", "systemd-pstore.service", "getty@tty1.service", "getty-static.service",
	"keyboard-setup.service", "console-setup.service", "modprobe@drm.service", "modprobe@configfs.service",
	"modprobe@fuse.service", "modprobe@dm_mod.service", "modprobe@loop.service", "modprobe@efi_pstore.service",
	"sys-kernel-tracing.mount", "sys-kernel-debug.mount", "dev-hugepages.mount", "dev-mqueue.mount",
}

// files are put on the disk before the kernel is installed, since its installation makes the initramfs by them.
var files = map[string]string{
	"etc/hostname": "holdfast-lab\n",
	"etc/hosts":    "127.0.0.1 localhost holdfast-lab\n",
	// The kernel mounts the root writable at once and its journal makes good a crash: nothing is left for fstab to do.
	"etc/fstab": "",
	"etc/motd":  "",
	// Only what finds and mounts the disk: a small initramfs is read and unpacked much sooner in emulation.
	"etc/initramfs-tools/conf.d/holdfast-lab": "MODULES=list\nCOMPRESS=zstd\nRESUME=none\n",
	"etc/initramfs-tools/modules":             "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\next4\n",
	"etc/systemd/journald.conf.d/lab.conf":    "[Journal]\nStorage=volatile\n",
	"etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf": `[Unit]
# Not after the disk's device unit, which udev takes seconds to announce.
After=systemd-remount-fs.service

[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --noissue --nohostname --keep-baud 115200 %I dumb
`,
	"root/.profile": "PS1='" + Prompt + "'\n",
	"root/.bashrc":  "",
	// Kernel and initramfs are named by the links that Debian keeps to the newest ones.
	"boot/grub/grub.cfg": `serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
linux /vmlinuz root=LABEL=` + label + ` rw console=ttyS0,115200 quiet panic=-1 mitigations=off nokaslr ` +
		`random.trust_cpu=on tsc=reliable no_timer_check rcupdate.rcu_expedited=1 fsck.mode=skip systemd.show_status=0
initrd /initrd.img
boot
`,
}

// earlyConfig is built into GRUB's core image: it only finds the configuration on the disk.
const earlyConfig = "set root=(hd0,msdos1)\nconfigfile /boot/grub/grub.cfg\n"

// grubModules is what GRUB's core image needs to do that.
var grubModules = []string{"biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile", "serial", "terminal", "boot"}

// recipeHash names everything above and a server, if it is one, in a few letters: another recipe is another disk.
func recipeHash(server *Server) string {
	h := sha256.New()
	fmt.Fprintln(h, recipeVersion, release, label, packages, unwanted, masked, earlyConfig, grubModules)
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(h, "%s %q\n", n, files[n])
	}
	if server != nil {
		fmt.Fprintf(h, "server %q %q\n", server.Name, server.Packages)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// aptLine makes one line of a sources list from an answer of `apt-get indextargets`.
func aptLine(target string) (string, bool) {
	f := strings.Split(target, "|")
	if len(f) != 6 || f[0] != "Debian" || f[1] != "Packages" || !strings.HasPrefix(f[3], release) {
		return "", false
	}
	options := ""
	if strings.HasPrefix(f[5], "/") {
		options = "[signed-by=" + f[5] + "] "
	}
	return fmt.Sprintf("deb %s%s %s %s", options, f[2], f[3], f[4]), true
}
