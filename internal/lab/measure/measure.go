// Package measure tells what a program costs: it runs one as a whole process, with the operating system's own accounting
// of it, on a page cache that was emptied, and counts what it leaves on disk. Both benchmarks of the lab use it.
//
// Linux hands the peak memory of the process that starts another on to it: whoever measures peaks has to stay small, and
// says how small with ProcessPeak.
package measure

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

// Spec says what program is measured.
type Spec struct {
	Args   []string
	Env    []string // beside this process's own
	Dir    string
	Stdout io.Writer // may be nil
}

// Usage is what a program has used, its own children that have ended included.
type Usage struct {
	Seconds float64 // by the clock on the wall
	CPU     float64 // seconds of processors, user and system
	Peak    int64   // bytes of memory, at most
}

// Run runs a program to its end: package proc does the same, but keeps what the kernel counted to itself. A program that
// fails is an error with what it said.
func Run(ctx context.Context, s Spec) (Usage, error) {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, s.Args[0], s.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.Dir, append(os.Environ(), s.Env...), s.Stdout, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	runtime.LockOSThread() // the death signal is bound to the thread that forks
	defer runtime.UnlockOSThread()
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		text := said.String()
		return Usage{}, errs.New("run", strings.Join(s.Args, " "), errs.Bug, fmt.Errorf("%w; it said: %s", err, text[max(0, len(text)-2000):]))
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return Usage{}, errs.Text("measure", s.Args[0], errs.Unsupported, "this system does not count what a program uses")
	}
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return Usage{Seconds: took.Seconds(), CPU: cpu.Seconds(), Peak: usage.Maxrss << 10}, nil
}

// ProcessCPU returns the processor time that a running process has used so far.
func ProcessCPU(pid int) (time.Duration, error) {
	// A process's clock is named by the complement of its number and the kind of clock, here CPUCLOCK_SCHED:
	// https://github.com/torvalds/linux/blob/v6.6/include/linux/posix-timers.h#L14-L40
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, errs.Wrap("read the clock of", strconv.Itoa(pid), err)
	}
	return time.Duration(ts.Nano()), nil
}

// ProcessPeak returns the largest memory that a running process has had, in bytes.
func ProcessPeak(pid int) (int64, error) {
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

// DropCaches empties the page cache. Only root may do that.
func DropCaches() error {
	unix.Sync() // dirty pages are not dropped
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
}

// OnDisk returns the bytes that a file, or all files of a folder, take on disk.
func OnDisk(root string) (int64, error) {
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
