package host

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

const (
	// agentWithin is how long a guest that is to shut down may take to show a shell, while it still boots.
	agentWithin = 60 * time.Second
	// shutdownWithin is how long it may take from then on.
	shutdownWithin = 60 * time.Second
)

// machine is a VM that runs.
type machine struct {
	spec engine.VMSpec // as it was started; disks may have moved since
	vm   *qemu.VM
	// started is when vm's process ran.
	started time.Time
	// shell is held by whoever types at the console, which one may do at a time. It is a channel so that waiting for it
	// can be given up.
	shell    chan struct{}
	loggedIn bool // guarded by shell
}

// StartVM implements engine.VMHost. The VM lives until it is ended or the host is closed, whatever becomes of ctx.
func (h *Host) StartVM(ctx context.Context, spec engine.VMSpec) error {
	if len(spec.Disks) == 0 {
		return errs.Text("start the VM", spec.Name, errs.Invalid, "it has no disk to boot from")
	}
	m := &machine{spec: spec, shell: make(chan struct{}, 1)}
	if err := h.claim(m); err != nil {
		return err
	}
	cfg := qemu.Config{Name: spec.Name, MemoryMiB: int(spec.MiB), CPUs: spec.VCPUs}
	for i, d := range spec.Disks {
		node, err := h.node(ctx, d, fmt.Sprintf("disk%d", i))
		if err != nil {
			h.release(m)
			return errs.Wrap("start the VM", spec.Name, err)
		}
		iface := ""
		if i < len(spec.Ifaces) {
			iface = spec.Ifaces[i]
		}
		cfg.Drives = append(cfg.Drives, qemu.Drive{Top: node, SCSI: iface != "virtio", Serial: d.Disk})
		h.remember(d)
	}
	vm, err := qemu.Start(h.ctx, cfg)
	if err != nil {
		h.release(m)
		return err
	}
	h.mu.Lock()
	m.vm, m.started = vm, time.Now()
	h.mu.Unlock()
	h.work.Go(func() {
		<-vm.Done()
		h.release(m)
		h.log.Info("machine ended", "vm", spec.Name)
	})
	h.log.Info("machine started", "vm", spec.Name, "pid", vm.PID())
	return nil
}

// claim takes the VM's place, so that it cannot be started twice.
func (h *Host) claim(m *machine) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[m.spec.ID] != nil {
		return errs.Text("start the VM", m.spec.Name, errs.Exists, "it runs already")
	}
	for _, b := range h.backups {
		if b.vm == m.spec.ID && b.machine == nil {
			return errs.Text("start the VM", m.spec.Name, errs.Busy, "its disks are being read by a backup")
		}
	}
	if h.ctx.Err() != nil {
		return errs.Text("start the VM", m.spec.Name, errs.Canceled, "the host is closed")
	}
	h.machines[m.spec.ID] = m
	return nil
}

func (h *Host) release(m *machine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[m.spec.ID] == m {
		delete(h.machines, m.spec.ID)
	}
}

// machine returns the machine of a VM, by its id or its name, or nil if it does not run.
func (h *Host) machine(vm string) *machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, m := range h.machines {
		if m.vm != nil && (strings.EqualFold(id, vm) || m.spec.Name == vm) {
			return m
		}
	}
	return nil
}

func (h *Host) running(what, vm string) (*machine, error) {
	m := h.machine(vm)
	if m == nil {
		return nil, errs.Text(what, vm, errs.NotFound, "it does not run")
	}
	return m, nil
}

// RunningVMs implements engine.VMHost.
func (h *Host) RunningVMs() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []string
	for id, m := range h.machines {
		if m.vm != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// Started returns when the process of a VM, by id or name, was started.
func (h *Host) Started(vm string) (time.Time, error) {
	m, err := h.running("look at the VM", vm)
	if err != nil {
		return time.Time{}, err
	}
	return m.started, nil
}

// StopVM implements engine.VMHost. The guest is not asked; its disks are closed in order, as vdsm has them closed.
func (h *Host) StopVM(ctx context.Context, vm string) error {
	m := h.machine(vm)
	if m == nil {
		return nil // it ended by itself, a moment ago
	}
	err := m.vm.Quit(ctx)
	h.release(m)
	return err
}

// KillVM ends a VM as a host without power would: what it has in memory is lost, and so are its checkpoints.
func (h *Host) KillVM(vm string) error {
	m, err := h.running("kill the VM", vm)
	if err != nil {
		return err
	}
	m.vm.Kill()
	h.release(m)
	return nil
}

// ShutdownVM implements engine.VMHost. It presses the power button and, since the lab's guests do not listen for that,
// types at the console what a guest agent would do. A guest that does neither in time is stopped.
func (h *Host) ShutdownVM(ctx context.Context, vm string) error {
	m := h.machine(vm)
	if m == nil {
		return nil // it ended by itself, a moment ago
	}
	defer h.release(m)
	if err := m.vm.QMP().Execute(ctx, "system_powerdown", nil, nil); err != nil && !errs.Is(err, errs.Stale) {
		return errs.Wrap("shut down", m.spec.Name, err)
	}
	if err := m.askToPowerOff(ctx, h.prompt()); err != nil {
		h.log.Warn("guest cannot be asked to power off", "vm", m.spec.Name, "err", err)
	}
	within, cancel := context.WithTimeout(ctx, shutdownWithin)
	defer cancel()
	select {
	case <-m.vm.Done():
		return nil
	case <-within.Done():
	}
	if ctx.Err() != nil {
		return errs.Wrap("shut down", m.spec.Name, ctx.Err())
	}
	h.log.Warn("guest does not power off and is stopped", "vm", m.spec.Name)
	return m.vm.Quit(ctx)
}

func (m *machine) askToPowerOff(ctx context.Context, prompt string) error {
	ctx, cancel := context.WithTimeout(ctx, agentWithin)
	defer cancel()
	if err := m.enter(ctx, prompt); err != nil {
		return err
	}
	defer m.leave()
	return m.vm.Console().Send("poweroff\n")
}

// enter waits for the console and for a shell there. The caller leaves it, unless there is an error.
func (m *machine) enter(ctx context.Context, prompt string) error {
	select {
	case m.shell <- struct{}{}:
	case <-ctx.Done():
		return errs.New("wait for the console of", m.spec.Name, errs.Busy, ctx.Err())
	}
	if m.loggedIn {
		return nil
	}
	if err := m.vm.Console().Login(ctx, prompt); err != nil {
		m.leave()
		return err
	}
	m.loggedIn = true
	return nil
}

func (m *machine) leave() { <-m.shell }

func (h *Host) prompt() string {
	if h.opts.Prompt != "" {
		return h.opts.Prompt
	}
	return debian.Prompt
}

// Exec runs a command in the root shell of a VM, by id or name, and returns what it printed and its exit code. It waits
// for a guest that still boots.
func (h *Host) Exec(ctx context.Context, vm, command string) (output string, code int, err error) {
	m, err := h.running("run a command in the VM", vm)
	if err != nil {
		return "", 0, err
	}
	if err := m.enter(ctx, h.prompt()); err != nil {
		return "", 0, errs.Wrap("run a command in the VM", m.spec.Name, err)
	}
	defer m.leave()
	output, err = m.vm.Console().Run(ctx, command)
	if code, failed := qemu.ExitCode(err); failed {
		return output, code, nil
	}
	return output, 0, err
}

// Transcript returns what a VM, by id or name, has written to its serial console.
func (h *Host) Transcript(vm string) (string, error) {
	m, err := h.running("read the console of the VM", vm)
	if err != nil {
		return "", err
	}
	return m.vm.Console().Transcript(), nil
}
