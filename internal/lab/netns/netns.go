// Package netns gives the lab a network and a mount table of its own.
//
// The reason is port 111: qemu's NFS driver takes no port and asks the portmapper of the server's address, and where
// rpcbind listens on all addresses nobody else can have that port on any of them. In a fresh network namespace
// everything is free, and nothing the lab listens on can be reached from outside. The mount namespace makes every
// mount of the lab vanish with it, whatever happens.
//
// A running Go program cannot move into a namespace as a whole (its threads would have to follow one by one), so the
// program starts itself again inside and passes the outcome on.
//
// Tests run the test binary itself inside and look at its interfaces and mounts.
package netns

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// insideKey marks the program's second life. Its value is the process id of the first, so that the variable is not
// mistaken when it is inherited by accident.
const insideKey = "HOLDFAST_LAB_INSIDE"

// Enter makes sure that the program runs in a network and mount namespace of its own. Inside it returns nil. Outside
// it runs the program again inside, with the same arguments, files and signals, and ends this process with its exit
// code: it then returns only when that failed to start.
func Enter() error {
	if Inside() {
		return prepare()
	}
	if err := NeedRoot(); err != nil {
		return err
	}
	code, err := again()
	if err != nil {
		return errs.Wrap("enter a network namespace", "", err)
	}
	os.Exit(code)
	return nil
}

// NeedRoot returns an error unless this process may enter a namespace: only root may.
func NeedRoot() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return errs.Text("enter a network namespace", "", errs.Denied, "only root may do that").
		WithNext("Run the same command as root, or with sudo.")
}

// Inside tells whether this process was started by Enter.
func Inside() bool {
	return os.Getenv(insideKey) == parentName()
}

// parentName is how a child names its parent. Sharing the parent's process ids, the child can check it.
func parentName() string { return "child of " + strconv.Itoa(os.Getppid()) }

// again runs this program inside and returns its exit code.
func again() (int, error) {
	// The death signal below is bound to the thread that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideKey+"=child of "+strconv.Itoa(os.Getpid()))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	// Signals are passed on, so that whoever holds only our process id can end what is inside. A Ctrl-C at the terminal
	// then reaches it twice, which is harmless.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			_ = cmd.Process.Signal(sig) // it may have ended already
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, err
			}
			return exitCode(cmd.ProcessState), nil
		}
	}
}

// exitCode follows the shell: 128 and the signal's number for a child that a signal ended.
func exitCode(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// prepare cuts the mount table off from the outside and brings the loopback interface up.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return errs.New("make the mounts private", "/", errs.KindOf(err), err)
	}
	if err := loopbackUp(); err != nil {
		return errs.New("bring up", "lo", errs.KindOf(err), err)
	}
	return nil
}

// loopbackUp sets IFF_UP on lo. The kernel then gives it 127.0.0.1 by itself (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS,
		uintptr(unsafe.Pointer(req))); errno != 0 {
		return errno
	}
	return nil
}
