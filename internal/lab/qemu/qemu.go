// Package qemu runs the lab's virtual machines: real ones, in emulation (TCG), with a serial console to type at, qemu's
// machine protocol (QMP) to steer with, and a disk that may be moved to another place while the machine runs, step by
// step as an oVirt host does it.
//
// Terms. A VM is one running qemu. A Node is a tree of qemu's block drivers, such as qcow2 over NFS. The Console is
// the machine's serial line. QMP is the control connection.
//
// Rules:
//
//  1. A VM ends with the context it was started with, and with this process however that ends. Its sockets lie in a
//     folder of its own that goes with it.
//  2. We listen and qemu connects, so nothing the guest prints is lost and nothing is polled for.
//  3. Every wait has a deadline by its context, and its error shows the end of the console.
//
// Everything but the console (one caller at a time) may be used concurrently. QMP, console and nodes have fast tests
// against a socket; the rest boots a real Debian and runs with HOLDFAST_REAL_PARTS=1.
package qemu

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// startWithin is how long qemu may take from its start until it has connected to both sockets.
const startWithin = 30 * time.Second

// killGrace is how long a machine that was told to end may take.
const killGrace = 10 * time.Second

// Config says what machine to start.
type Config struct {
	Name      string    // for messages
	Disk      Node      // the disk's top node; it has a name
	SCSI      bool      // attach it to a virtio-scsi controller instead of virtio-blk
	Drives    []Drive   // a machine of several disks has these instead; the first one boots
	Q35       bool      // the newer PC instead of the older one, which starts a little faster
	MemoryMiB int       // 0: 512
	CPUs      int       // 0: 2
	Direct    *Direct   // boots a kernel without a disk: there need be none then
	Stderr    io.Writer // sees what qemu itself says; may be nil
}

// Drive is one of a machine's disks.
type Drive struct {
	Top    Node   // the disk's top node; it has a name
	SCSI   bool   // at a virtio-scsi controller instead of virtio-blk
	Serial string // by which the guest knows the disk, at most 36 bytes, of which virtio-blk shows 20; may be empty
}

// drives returns the disks, however they were given.
func (cfg Config) drives() []Drive {
	if len(cfg.Drives) > 0 || cfg.Direct != nil && cfg.Disk == nil {
		return cfg.Drives
	}
	return []Drive{{Top: cfg.Disk, SCSI: cfg.SCSI}}
}

// VM is a running machine.
type VM struct {
	name    string
	process *proc.Process
	console *Console
	qmp     *QMP
	line    net.Conn // of a machine with Direct
	folder  string
	ended   chan struct{} // closed when everything was cleaned up

	mu    sync.Mutex // guards disks
	disks []Node     // the disks' top nodes as they are now
}

// Start starts a machine; it is killed when ctx ends. The caller ends it with Shutdown or Kill.
func Start(ctx context.Context, cfg Config) (*VM, error) {
	if err := parts.Need(parts.Machine); err != nil {
		return nil, err
	}
	var disks []Node
	for _, d := range cfg.drives() {
		if d.Top.Name() == "" {
			return nil, errs.Text("start the machine", cfg.Name, errs.Bug, "a disk's top node has no name")
		}
		disks = append(disks, d.Top)
	}
	folder, err := os.MkdirTemp("", "holdfast-vm-")
	if err != nil {
		return nil, errs.Wrap("start the machine", cfg.Name, err)
	}
	vm := &VM{name: cfg.Name, folder: folder, disks: disks, ended: make(chan struct{})}
	if err := vm.start(ctx, cfg); err != nil {
		_ = os.RemoveAll(folder) // the first error matters
		return nil, errs.Wrap("start the machine", cfg.Name, err)
	}
	go vm.cleanUp()
	return vm, nil
}

// start starts qemu and connects to it. On failure nothing runs.
func (vm *VM) start(ctx context.Context, cfg Config) error {
	serial, err := listen(vm.path("serial"))
	if err != nil {
		return err
	}
	defer serial.Close()
	control, err := listen(vm.path("qmp"))
	if err != nil {
		return err
	}
	defer control.Close()
	listeners := []*net.UnixListener{serial, control}
	if cfg.Direct != nil {
		line, err := listen(vm.path("line"))
		if err != nil {
			return err
		}
		defer line.Close()
		listeners = append(listeners, line)
	}
	vm.process, err = proc.Start(ctx, proc.Spec{Args: vm.arguments(cfg), Dir: vm.folder, Stderr: cfg.Stderr})
	if err != nil {
		return err
	}
	if err := vm.connect(ctx, listeners); err != nil {
		vm.process.Kill()
		if said := vm.process.Tail(); said != "" {
			err = fmt.Errorf("%w; qemu said: %s", err, said)
		}
		return err
	}
	return nil
}

// connect waits for qemu at the listeners: console, control and, if there is one, the line.
func (vm *VM) connect(ctx context.Context, listeners []*net.UnixListener) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	var conns []net.Conn
	defer func() {
		if err != nil {
			for _, c := range conns {
				_ = c.Close() // the first error matters
			}
		}
	}()
	for _, l := range listeners {
		c, err := vm.accept(ctx, l)
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	if vm.qmp, err = NewQMP(ctx, conns[1]); err != nil {
		return err
	}
	vm.console = newConsole(conns[0])
	if len(conns) > 2 {
		vm.line = conns[2]
	}
	return nil
}

// accept waits for qemu to connect, or to end before it did.
func (vm *VM) accept(ctx context.Context, l *net.UnixListener) (net.Conn, error) {
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-vm.process.Done():
		case <-ctx.Done():
		case <-stop:
			return
		}
		_ = l.Close() // wakes Accept
	}()
	conn, err := l.Accept()
	close(stop)
	<-watched
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return conn, err
}

func (vm *VM) arguments(cfg Config) []string {
	machine, memory, cpus := "pc", 512, 2
	if cfg.Q35 {
		machine = "q35"
	}
	if cfg.MemoryMiB > 0 {
		memory = cfg.MemoryMiB
	}
	if cfg.CPUs > 0 {
		cpus = cfg.CPUs
	}
	args := []string{"qemu-system-x86_64", "-name", cfg.Name, "-machine", machine,
		// KVM would be faster where it works, but a machine that has /dev/kvm may still refuse it. One way for all.
		// An older processor: its guests choose code without wide vectors, which emulation takes an eighth longer for.
		"-accel", "tcg,thread=multi,tb-size=256", "-cpu", "Nehalem",
		"-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "socket,id=serial,path=" + vm.path("serial"), "-serial", "chardev:serial",
		"-chardev", "socket,id=qmp,path=" + vm.path("qmp"), "-mon", "chardev=qmp,mode=control",
		"-device", "virtio-rng-pci"}
	if cfg.Direct != nil {
		args = append(args, cfg.Direct.arguments(vm.path("line"))...)
	}
	return append(args, driveArguments(cfg.drives())...)
}

// driveArguments attaches the disks, all virtio-scsi ones to one controller.
func driveArguments(drives []Drive) (args []string) {
	if slices.ContainsFunc(drives, func(d Drive) bool { return d.SCSI }) {
		args = append(args, "-device", "virtio-scsi-pci")
	}
	for i, d := range drives {
		device := "virtio-blk-pci"
		if d.SCSI {
			device = "scsi-hd"
		}
		device += fmt.Sprintf(",id=disk%d,drive=%s", i, d.Top.Name())
		if i == 0 {
			device += ",bootindex=1"
		}
		if d.Serial != "" && d.SCSI {
			device += ",serial=" + d.Serial
		} else if d.Serial != "" {
			device += ",serial=" + d.Serial[:min(len(d.Serial), 20)]
		}
		args = append(args, "-blockdev", d.Top.json(), "-device", device)
	}
	return args
}

func (vm *VM) path(name string) string { return filepath.Join(vm.folder, name) }

func listen(path string) (*net.UnixListener, error) {
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

// cleanUp waits for the machine's end and leaves nothing behind.
func (vm *VM) cleanUp() {
	<-vm.process.Done()
	vm.console.close()
	vm.qmp.Close()
	if vm.line != nil {
		_ = vm.line.Close() // nothing is left at its other end
	}
	_ = os.RemoveAll(vm.folder) // a folder of empty sockets
	close(vm.ended)
}

// Console returns the machine's serial line. Its transcript can still be read after the end.
func (vm *VM) Console() *Console { return vm.console }

// QMP returns the machine's control connection.
func (vm *VM) QMP() *QMP { return vm.qmp }

// PID returns qemu's process id.
func (vm *VM) PID() int { return vm.process.PID() }

// Done is closed when the machine has ended and nothing of it is left.
func (vm *VM) Done() <-chan struct{} { return vm.ended }

// Disk returns the first disk's top node as it is now.
func (vm *VM) Disk() Node { return vm.Disks()[0] }

// Disks returns the top nodes of all disks as they are now, in the order they were given in.
func (vm *VM) Disks() []Node {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return slices.Clone(vm.disks)
}

// Shutdown lets the guest power off and waits until qemu has written everything and ended. Somebody must be logged in.
func (vm *VM) Shutdown(ctx context.Context) error {
	// By the console, not by ACPI: the lab's guests run no logind that would listen for the power button.
	if err := vm.console.Send("poweroff\n"); err != nil {
		return errs.Wrap("shut down", vm.name, err)
	}
	select {
	case <-vm.ended:
	case <-ctx.Done():
		return errs.New("shut down", vm.name, errs.KindOf(ctx.Err()),
			fmt.Errorf("%w; the console ends with:\n%s", ctx.Err(), vm.console.tail()))
	}
	if err := vm.process.Wait(ctx); err != nil {
		return errs.Wrap("shut down", vm.name, err)
	}
	return nil
}

// Quit ends qemu without asking the guest, but lets it write what the guest had flushed.
func (vm *VM) Quit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	if err := vm.qmp.Execute(ctx, "quit", nil, nil); err != nil && !errs.Is(err, errs.Stale) {
		vm.Kill()
		return err
	}
	select {
	case <-vm.ended:
		return nil
	case <-ctx.Done():
		vm.Kill()
		return errs.Wrap("end", vm.name, ctx.Err())
	}
}

// Kill ends the machine as a power cut would and waits until nothing of it is left. It may be called at any time, also
// after the end.
func (vm *VM) Kill() {
	vm.process.Kill()
	<-vm.ended
}
