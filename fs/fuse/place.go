package fuse

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	device      = "/dev/fuse"
	fuseConf    = "/etc/fuse.conf"
	mountTable  = "/proc/self/mountinfo"
	statTimeout = 5 * time.Second // a mount whose process does not answer that long counts as in use
	maxStale    = 16              // stale mounts stacked at one folder, more is not ours to guess about
)

// mounted is one line of the mount table.
type mounted struct {
	device string // major:minor; the minor is the number under /sys/fs/fuse/connections
	dir    string
	fsType string
	source string
}

func (m mounted) ours() bool { return m.fsType == "fuse."+name && m.source == name }

// parseMounts reads the format of /proc/self/mountinfo (proc_pid_mountinfo(5)); lines it does not understand are
// left out.
func parseMounts(table []byte) []mounted {
	var all []mounted
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line))
		dash := -1 // ends the optional fields, which come after the first six
		for i := 6; i < len(fields); i++ {
			if fields[i] == "-" {
				dash = i
				break
			}
		}
		if dash < 0 || len(fields) < dash+3 {
			continue
		}
		all = append(all, mounted{
			device: fields[2], dir: unescape(fields[4]), fsType: fields[dash+1], source: unescape(fields[dash+2]),
		})
	}
	return all
}

// unescape undoes the kernel's three-digit octal escapes of white space and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// topMount returns what is mounted at exactly dir, the topmost if several; zero if nothing is.
func topMount(dir string) (mounted, error) {
	table, err := os.ReadFile(mountTable)
	if err != nil {
		return mounted{}, err
	}
	var top mounted
	for _, m := range parseMounts(table) {
		if m.dir == dir {
			top = m
		}
	}
	return top, nil
}

// cleanDir returns the absolute path as the mount table spells it. Only the parent is resolved, since looking at a stale
// mount itself fails.
func cleanDir(dir string) (string, error) {
	const op = "mount"
	if dir == "" {
		return "", errs.Text(op, dir, errs.Invalid, "no folder is named").WithNext("Name an existing, empty folder.")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", errs.New(op, dir, errs.Invalid, err)
	}
	if to, err := os.Readlink(abs); err == nil {
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(abs), to)
		}
		abs = filepath.Clean(to)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if errors.Is(err, os.ErrNotExist) {
		return "", errs.New(op, dir, errs.NotFound, err).WithNext("Make the folder first: mkdir -p " + abs)
	}
	if err != nil {
		return "", errs.Wrap(op, dir, err)
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// checkMachine says in time, and in words, what mount(2) would only say with a number.
func checkMachine(dir string, allowOther bool) error {
	const op = "mount"
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case err == nil:
		_ = f.Close() // nothing was asked of it
	case errors.Is(err, os.ErrPermission): // fusermount3 opens it with our rights, too
		return errs.New(op, dir, errs.Denied, err).
			WithNext("Give this user, or this container, access to " + device + " (mode 0666 is usual).")
	default: // absent, or ENODEV or ENXIO: there, but no module behind it
		return errs.New(op, dir, errs.Unsupported, err).
			WithNext("Load the kernel's FUSE module (modprobe fuse); a container must be given " + device + ".")
	}
	if isRoot() {
		return nil
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return errs.New(op, dir, errs.Unsupported, err).WithNext("Install the package fuse3, or run as root.")
	}
	if allowOther && !userAllowOther() {
		return errs.Text(op, dir, errs.Denied, "other users may be let in by root only").
			WithNext("Add the line user_allow_other to " + fuseConf + ", or run as root.")
	}
	return nil
}

func userAllowOther() bool {
	conf, err := os.ReadFile(fuseConf)
	if err != nil {
		return false // absent means no
	}
	for line := range bytes.Lines(conf) {
		if string(bytes.TrimSpace(line)) == "user_allow_other" {
			return true
		}
	}
	return false
}

// freeDir makes sure that dir is an empty folder with no live mount of ours on it, and takes stale ones away.
func freeDir(ctx context.Context, dir string, o Options) error {
	const op = "mount"
	for range maxStale {
		at, err := topMount(dir)
		if err != nil {
			return errs.Wrap(op, dir, err)
		}
		alive := look(ctx, dir)
		dead := errors.Is(alive, unix.ENOTCONN) || errors.Is(alive, unix.ECONNABORTED)
		switch {
		case !at.ours() && dead:
			return errs.New(op, dir, errs.Busy, alive).
				WithNext("Something else was mounted there and its process died: fusermount3 -uz " + dir)
		case !at.ours():
			return emptyDir(dir, alive)
		case !dead:
			return inUse(dir, at, alive)
		}
		if err := unmount(dir, true); err != nil {
			return errs.Wrap("take away the stale mount at", dir, err)
		}
		o.Logger.Warn("took away the mount of a process that died", "op", op, "dir", dir)
		if o.Events.Recovered != nil {
			o.Events.Recovered(dir)
		}
	}
	return errs.Text(op, dir, errs.Busy, "too many dead mounts are stacked there").
		WithNext("Take them away by hand: umount -l " + dir)
}

func inUse(dir string, at mounted, alive error) error {
	if errors.Is(alive, context.DeadlineExceeded) {
		_, minor, _ := strings.Cut(at.device, ":")
		return errs.Text("mount", dir, errs.Busy, "another process has a tree mounted there and does not answer").
			WithNext("Stop that process, or cut it off: echo 1 > /sys/fs/fuse/connections/" + minor + "/abort")
	}
	return errs.Text("mount", dir, errs.Busy, "another process has a tree mounted there").
		WithNext("Stop that process, unmount it (umount " + dir + "), or choose another folder.")
}

// emptyDir accepts only an empty folder: a mount hides what lies below. alive is what looking at dir said.
func emptyDir(dir string, alive error) error {
	const op = "mount"
	switch {
	case errors.Is(alive, os.ErrNotExist):
		return errs.New(op, dir, errs.NotFound, alive).WithNext("Make the folder first: mkdir -p " + dir)
	case alive != nil:
		return errs.Wrap(op, dir, alive)
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return errs.Text(op, dir, errs.Invalid, "not a folder").WithNext("Name an existing, empty folder.")
	case err != nil:
		return errs.Wrap(op, dir, err)
	case len(entries) > 0:
		return errs.Text(op, dir, errs.Invalid, "the folder is not empty").
			WithNext("Name an empty folder: a mount would hide what lies in this one.")
	}
	return nil
}

// look asks for dir's attributes, in a goroutine of its own because a mount whose process hangs answers never.
func look(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, statTimeout)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		answer <- unix.Stat(dir, &st)
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unmount takes away the topmost mount at dir.
func unmount(dir string, lazy bool) error {
	if isRoot() {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(dir, flags)
	}
	args := "-u"
	if lazy {
		args = "-uz"
	}
	out, err := exec.Command("fusermount3", args, "--", dir).CombinedOutput()
	if err != nil && len(out) > 0 {
		return errs.Text("fusermount3", dir, errs.Busy, string(bytes.TrimSpace(out)))
	}
	return err
}

// mountError explains a refusal that checkMachine could not foresee.
func mountError(dir string, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return errs.New("mount", dir, errs.Denied, err).
			WithNext("Mounting needs CAP_SYS_ADMIN; a container must be given it.")
	}
	if !isRoot() { // fusermount3 has told standard error why; all we get is that it failed
		return errs.New("mount", dir, errs.Denied, err).WithNext("See what fusermount3 printed, or run as root.")
	}
	return errs.Wrap("mount", dir, err)
}
