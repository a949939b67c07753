package guest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Agent is the service of every guest.
type Agent struct{}

// Nothing is for calls that take or give nothing.
type Nothing struct{}

// MountArgs say what to mount where. The folder is made. Options are the kernel's own, as mount(2) takes them: for NFS
// there is no mount.nfs here that would translate any.
type MountArgs struct{ Type, Source, Target, Options string }

// MountReply says how it went.
type MountReply struct {
	Errno int // 0: mounted
	Text  string
	Took  time.Duration
}

// Mount mounts a file system.
func (*Agent) Mount(a MountArgs, r *MountReply) error {
	if err := os.MkdirAll(a.Target, 0o755); err != nil {
		return err
	}
	begun := time.Now()
	err := unix.Mount(a.Source, a.Target, a.Type, 0, a.Options)
	r.Took = time.Since(begun)
	var errno unix.Errno
	if errors.As(err, &errno) {
		r.Errno, r.Text = int(errno), errno.Error()
	}
	return nil
}

// UnmountArgs say what to unmount. Force and Lazy are as in umount(8).
type UnmountArgs struct {
	Target      string
	Force, Lazy bool
}

// Unmount unmounts a file system.
func (*Agent) Unmount(a UnmountArgs, _ *Nothing) error {
	flags := 0
	if a.Force {
		flags |= unix.MNT_FORCE
	}
	if a.Lazy {
		flags |= unix.MNT_DETACH
	}
	return errs.Wrap("unmount", a.Target, unix.Unmount(a.Target, flags))
}

// RunArgs say what program to run. Within bounds its time; 0 is a minute.
type RunArgs struct {
	Args   []string
	Env    []string
	Within time.Duration
}

// RunReply has what the program wrote to both outputs, and its exit code, -1 if a signal ended it.
type RunReply struct {
	Output string
	Code   int
}

// Run runs a program to its end.
func (*Agent) Run(a RunArgs, r *RunReply) error {
	if a.Within == 0 {
		a.Within = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.Within)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.Args[0], a.Args[1:]...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, a.Env...)
	cmd.WaitDelay = time.Second // a daemon that it leaves behind may hold its outputs open
	out, err := cmd.CombinedOutput()
	r.Output = string(out)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.Code = exit.ExitCode()
		return nil
	}
	if errors.Is(err, exec.ErrWaitDelay) { // it has ended well
		return nil
	}
	return errs.Wrap("run", a.Args[0], err)
}

// Log returns what the kernel has said.
func (*Agent) Log(_ Nothing, text *string) error {
	const readAll = 3
	buf := make([]byte, 256<<10)
	n, err := unix.Klogctl(readAll, buf)
	if err != nil {
		return errs.Wrap("read", "the kernel's log", err)
	}
	*text = string(buf[:n])
	return nil
}

// Read returns a file's first bytes, at most 1 MiB.
func (*Agent) Read(path string, content *[]byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	n, err := f.Read(buf)
	*content = buf[:n]
	if n == 0 {
		return err
	}
	return nil
}

// Glob returns the names that match a pattern, as path/filepath has it.
func (*Agent) Glob(pattern string, names *[]string) (err error) {
	*names, err = filepath.Glob(pattern)
	return err
}
