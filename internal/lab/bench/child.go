package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// spec says what program is measured.
type spec struct {
	args   []string
	env    []string
	stdout io.Writer
}

// measure runs a program to its end: package proc does the same, but keeps what the kernel counted to itself.
func (b *bed) measure(ctx context.Context, s spec) (sample, error) {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, s.args[0], s.args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = b.opts.WorkDir, append(os.Environ(), s.env...), s.stdout, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	runtime.LockOSThread() // the death signal is bound to the thread that forks
	defer runtime.UnlockOSThread()
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		text := said.String()
		return sample{}, errs.New("run", strings.Join(s.args, " "), errs.Bug, fmt.Errorf("%w; it said: %s", err, text[max(0, len(text)-2000):]))
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return sample{}, errs.Text("measure", s.args[0], errs.Unsupported, "this system does not count what a program uses")
	}
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return sample{seconds: took.Seconds(), cpu: cpu.Seconds(), peak: usage.Maxrss << 10}, nil
}

// processCPU returns the processor time that a running process has used so far.
func processCPU(pid int) (time.Duration, error) {
	// A process's clock is named by the complement of its number and the kind of clock, here CPUCLOCK_SCHED:
	// https://github.com/torvalds/linux/blob/v6.6/include/linux/posix-timers.h#L14-L40
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, errs.Wrap("read the clock of", strconv.Itoa(pid), err)
	}
	return time.Duration(ts.Nano()), nil
}

// processPeak returns the largest memory that a running process has had, in bytes.
func processPeak(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errs.Text("read the peak of", strconv.Itoa(pid), errs.Unsupported, "the kernel does not tell it")
}

// dropCaches empties the page cache, or notes why it cannot.
func (b *bed) dropCaches() {
	unix.Sync() // dirty pages are not dropped
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil && b.dropped == nil {
		b.dropped = err
		b.say("The page cache cannot be dropped: %v", err)
	}
}

// onDisk returns the bytes that a file, or all files of a folder, take on disk.
func onDisk(root string) (int64, error) {
	unix.Sync() // a file system may decide late where things lie
	var sum int64
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		}
		sum += st.Blocks * 512
		return nil
	})
	return sum, errs.Wrap("count the blocks of", root, err)
}
