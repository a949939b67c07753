// Package linux boots the smallest machine that has Linux's own NFS client in it: Debian's kernel, its drivers, and one
// program of ours. That client is the one that oVirt's hosts use, and it cannot be had otherwise here: the kernel under a
// test may have none, and what a test mounted there could hang it.
//
// Terms. An Image is a kernel with its initramfs, made in a moment from the lab's Debian disk (internal/lab/debian): the
// kernel and the drivers are taken out of that, with debugfs, so that no other download is needed. The agent is the
// program in it: usually the test itself, whose TestMain calls guest.Main. A Machine is a booted image.
//
// Rules:
//
//  1. An image is only read by its machines. Each has all it writes in its memory, and loses it with its end.
//  2. Machines run inside netns.Enter. Each has an address of its own there, and knows this machine as HostAddress.
//  3. A Machine ends with the context it was started with, and with this process however that ends.
//  4. A call that fails shows the end of the console if the machine has died.
//
// A Machine's methods may be called concurrently. Tests here boot two such machines against the built programs of the
// product, as root, with HOLDFAST_REAL_PARTS=1.
package linux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// bootWithin is how long a machine may take until its agent answers. It takes five seconds on an idle machine, and half a
// minute on one with ten times the work that it can do.
const bootWithin = 2 * time.Minute

// drivers are the modules that the machine needs, without those that they need themselves.
var drivers = []string{"virtio_pci", "virtio_console", "virtio_net", "virtio_rng", "nfsv3"}

// Options say what an image is made of.
type Options struct {
	Dir   string      // an existing folder for the image
	Disk  debian.Disk // where the kernel comes from
	Agent string      // a static program that calls guest.Main; "" is this one
	// Programs are further ones, by their paths on this machine. They get the same paths in the guest, and with them come
	// the libraries they need.
	Programs []string
	// Files are small files by their paths in the guest.
	Files map[string]string
}

// Image is what a machine boots.
type Image struct{ kernel, initrd string }

// Build makes an image.
func Build(ctx context.Context, o Options) (Image, error) {
	if err := parts.Need(parts.Kernel); err != nil {
		return Image{}, err
	}
	i := Image{kernel: filepath.Join(o.Dir, "vmlinuz"), initrd: filepath.Join(o.Dir, "initramfs")}
	if err := build(ctx, o, i); err != nil {
		return Image{}, errs.Wrap("make a Linux in", o.Dir, err)
	}
	return i, nil
}

func build(ctx context.Context, o Options, i Image) error {
	if o.Agent == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.Agent = self
	}
	a := newArchive()
	if needed, err := libraries(o.Agent); err != nil {
		return err
	} else if len(needed) > 0 {
		return errs.Text("use as the agent", o.Agent, errs.Unsupported, "it is not static").
			WithNext("Build it with CGO_ENABLED=0, as the Makefile does.")
	}
	if err := a.copy("/init", o.Agent); err != nil {
		return err
	}
	if err := addKernel(ctx, a, o.Disk.Raw, i.kernel, o.Dir); err != nil {
		return err
	}
	for _, p := range o.Programs {
		if err := addProgram(a, p); err != nil {
			return err
		}
	}
	for path, content := range o.Files {
		a.file(path, 0o644, []byte(content))
	}
	return os.WriteFile(i.initrd, a.bytes(), 0o644)
}

// HostAddress is where a machine finds what listens here. It is there as long as a machine runs.
const HostAddress = "198.18.0.1"

// Config says how a machine is started.
type Config struct {
	Name      string
	Number    int       // from 1 to 250, different in each machine that runs: its address is 198.18.0.1+Number
	MemoryMiB int       // 0: 512
	CPUs      int       // 0: 2
	Stderr    io.Writer // sees what qemu says; may be nil
}

// Machine is a booted image. The caller ends it with Kill.
type Machine struct {
	*qemu.VM
	Address netip.Addr

	name   string
	client *rpc.Client
	gone   chan struct{} // closed when its network card is gone too
}

// Start boots the image and returns when the agent answers.
func (i Image) Start(ctx context.Context, cfg Config) (*Machine, error) {
	local := netip.MustParseAddr(HostAddress)
	a4 := local.As4()
	a4[3] += byte(cfg.Number)
	m := &Machine{name: cfg.Name, Address: netip.AddrFrom4(a4)}
	tap := fmt.Sprint("guest", cfg.Number)
	closeTap, err := netns.Tap(tap, local, m.Address)
	if err != nil {
		return nil, err
	}
	m.VM, err = qemu.Start(ctx, qemu.Config{
		Name: cfg.Name, Q35: true, MemoryMiB: cfg.MemoryMiB, CPUs: cfg.CPUs, Stderr: cfg.Stderr,
		Direct: &qemu.Direct{
			Kernel: i.kernel, Initrd: i.initrd, Append: "-- " + guest.Argument + m.Address.String(),
			Tap: tap, MAC: fmt.Sprintf("52:54:00:00:00:%02x", cfg.Number),
		},
	})
	if err != nil {
		return nil, errors.Join(err, closeTap())
	}
	m.gone = make(chan struct{})
	go func() {
		<-m.Done()
		_ = closeTap() // the network ends with this program
		close(m.gone)
	}()
	boot, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	if _, err := m.Console().Wait(boot, guest.Ready); err != nil {
		m.Kill()
		return nil, errs.Wrap("boot", cfg.Name, err)
	}
	m.client = rpc.NewClient(m.Line())
	return m, nil
}

// Kill ends the machine and waits until nothing of it is left. It may be called again.
func (m *Machine) Kill() {
	m.VM.Kill()
	<-m.gone
}

// Call calls a method of a service in the guest, such as "Agent.Mount", and waits for its end. A call that was given up
// goes on in the guest. reply is a pointer, or nil.
func (m *Machine) Call(ctx context.Context, method string, args, reply any) error {
	if reply == nil {
		reply = &guest.Nothing{}
	}
	call := m.client.Go(method, args, reply, make(chan *rpc.Call, 1))
	var err error
	select {
	case <-call.Done:
		err = call.Error
	case <-ctx.Done():
		return errs.Wrap("call "+method+" in", m.name, ctx.Err())
	}
	select {
	case <-m.Done():
		err = fmt.Errorf("%w; the machine has ended, and its console with:\n%s", err, tail(m.Console().Transcript()))
	default:
	}
	return errs.Wrap("call "+method+" in", m.name, err)
}

// tail is the end of a text, for messages.
func tail(s string) string { return s[max(0, len(s)-1500):] }

// Mount mounts, or returns an error with what the kernel said.
func (m *Machine) Mount(ctx context.Context, a guest.MountArgs) error {
	var r guest.MountReply
	if err := m.Call(ctx, "Agent.Mount", a, &r); err != nil {
		return err
	}
	if r.Errno != 0 {
		return errs.Text("mount in "+m.name, a.Source, errs.Transient, fmt.Sprintf("%s after %s, with %s", r.Text, r.Took, a.Options))
	}
	return nil
}

// Unmount unmounts.
func (m *Machine) Unmount(ctx context.Context, target string) error {
	return m.Call(ctx, "Agent.Unmount", guest.UnmountArgs{Target: target}, nil)
}

// Run runs a program in the guest and returns what it printed. An exit code other than 0 is an error.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	var r guest.RunReply
	if err := m.Call(ctx, "Agent.Run", guest.RunArgs{Args: args}, &r); err != nil {
		return "", err
	}
	if r.Code != 0 {
		return r.Output, errs.New("run in "+m.name, args[0], errs.Invalid, &qemu.ExitError{Command: fmt.Sprint(args), Code: r.Code, Output: r.Output})
	}
	return r.Output, nil
}
