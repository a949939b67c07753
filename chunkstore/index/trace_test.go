package index

import (
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// changing are the system calls that change what is in a folder, or make it durable, as far as badger and we use them.
// A call that opens a file counts too if it may make the file.
var changing = []uint64{
	unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT,
	unix.SYS_RENAMEAT2, unix.SYS_MKDIRAT, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_MSYNC,
}

// callInfo is what the kernel says of a stop at a system call: struct ptrace_syscall_info in ptrace(2).
type callInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	_    [2]uint64
	nr   uint64
	args [6]uint64
}

// changes tells whether a thread has stopped before a call that changes files. A thread that is gone changes none.
func changes(t *testing.T, tid int) bool {
	t.Helper()
	var i callInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(i),
		uintptr(unsafe.Pointer(&i)), 0, 0)
	switch {
	case errno == unix.ESRCH:
		return false
	case errno != 0:
		t.Fatal("ask for the system call: ", errno)
	}
	return i.op == unix.PTRACE_SYSCALL_INFO_ENTRY &&
		(slices.Contains(changing, i.nr) || i.nr == unix.SYS_OPENAT && i.args[2]&unix.O_CREAT != 0)
}

// killBefore runs a program and kills it before the n-th call that changes files, counted from one. It tells whether
// the program ended by itself, because it makes fewer. Nothing that the program does between two such calls can be
// told from outside, but for bytes that it puts into mapped files.
func killBefore(t *testing.T, c *exec.Cmd, n int) (ended bool) {
	t.Helper()
	runtime.LockOSThread() // to the kernel, this thread is the tracer
	defer runtime.UnlockOSThread()
	c.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	must(t, c.Start())
	defer func() { _ = c.Process.Release() }() // waited for below
	pid := c.Process.Pid
	var ws unix.WaitStatus
	_, err := unix.Wait4(pid, &ws, 0, nil)
	must(t, err)
	must(t, unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL))
	for tid, signal := pid, 0; ; {
		if err := unix.PtraceSyscall(tid, signal); err != nil && err != unix.ESRCH {
			t.Fatal("go on: ", err)
		}
		for {
			if tid, err = unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil); err != unix.EINTR {
				break
			}
		}
		must(t, err)
		switch signal = 0; {
		case tid == pid && ws.Exited():
			if ws.ExitStatus() != 0 {
				t.Fatal("the program failed with exit code ", ws.ExitStatus())
			}
			return true
		case tid == pid && ws.Signaled():
			if ws.Signal() != unix.SIGKILL || n > 0 {
				t.Fatal("the program died of ", ws.Signal())
			}
			return false
		case !ws.Stopped():
		case ws.StopSignal() == unix.SIGTRAP|0x80: // what TRACESYSGOOD makes of a system call
			if changes(t, tid) {
				if n--; n == 0 {
					must(t, unix.Kill(pid, unix.SIGKILL))
				}
			}
		case ws.StopSignal() != unix.SIGTRAP && ws.StopSignal() != unix.SIGSTOP: // those two are the tracer's
			signal = int(ws.StopSignal())
		}
	}
}
