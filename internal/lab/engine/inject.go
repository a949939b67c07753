package engine

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// The faults that can be injected.
const (
	FaultUnreachable       = "unreachable"
	FaultSlow              = "slow"
	FaultServerError       = "server-error"
	FaultLostAnswer        = "lost-answer"
	FaultExpiredToken      = "expired-token"
	FaultVMLocked          = "vm-locked"
	FaultLostCheckpoint    = "lost-checkpoint"
	FaultInvalidCheckpoint = "invalid-checkpoint"
	FaultTransferPaused    = "transfer-paused"
	FaultTicketExpired     = "ticket-expired"
	FaultDomainRefused     = "domain-refused"
	FaultAttachFails       = "attach-fails"
	FaultMoveFails         = "move-fails"
	FaultMoveBusy          = "move-busy"
	FaultSnapshotFails     = "snapshot-fails"
	FaultRestart           = "restart"
)

// FaultInfo describes a fault for people.
type FaultInfo struct {
	Name, Text string
	Lasting    bool // until Heal; the others strike once, or at once
}

// Faults lists what Fault knows.
var Faults = []FaultInfo{
	{FaultUnreachable, "connections are dropped", true},
	{FaultSlow, "every answer takes three seconds more", true},
	{FaultServerError, "the next request to the API is answered by an error page with status 500 and not done", false},
	{FaultLostAnswer, "the next request that changes something is done, and its connection dropped before the answer", false},
	{FaultExpiredToken, "every token dies", false},
	{FaultVMLocked, "requests that need a VM's lock are refused, with status 400 and 409 in turn", true},
	{FaultLostCheckpoint, "the next incremental backup fails because a bitmap does not exist", false},
	{FaultInvalidCheckpoint, "every checkpoint becomes invalid", false},
	{FaultTransferPaused, "running image transfers are paused by the system and lose their tickets", false},
	{FaultTicketExpired, "running image transfers lose their tickets, and the engine does not notice", false},
	{FaultDomainRefused, "the host cannot mount the next storage domain", false},
	{FaultAttachFails, "the next storage domain cannot be attached", false},
	{FaultMoveFails, "the next move of a disk fails after it began", false},
	{FaultMoveBusy, "the next move of a disk is refused because of a snapshot", false},
	{FaultSnapshotFails, "the next snapshot fails after it began", false},
	{FaultRestart, "the engine restarts: tokens die, it is away for a while, live backups fail", false},
}

// slowness is what FaultSlow adds. It is not scaled: clients' time-outs are not either.
const slowness = 3 * time.Second

// restartTime is how long a restarting engine is away.
const restartTime = 20 * time.Second

// Fault makes something go wrong. Faults that strike at the next occasion may be armed several times.
func (e *Engine) Fault(name string) error {
	i := slices.IndexFunc(Faults, func(f FaultInfo) bool { return f.Name == name })
	if i < 0 {
		return errs.Text("inject the fault", name, errs.NotFound, "there is no such fault")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.log.Info("fault", "name", name)
	switch name {
	case FaultExpiredToken:
		clear(e.state.sessions)
	case FaultInvalidCheckpoint:
		for _, v := range e.state.vms.all() {
			for _, cp := range v.checkpoints {
				cp.state = "invalid"
			}
		}
	case FaultTransferPaused, FaultTicketExpired:
		for _, t := range e.state.transfers.all() {
			if t.phase != "transferring" {
				continue
			}
			if name == FaultTransferPaused {
				e.pauseBySystem(t)
			} else {
				e.withdraw(t.ticket)
			}
		}
	case FaultRestart:
		e.restart()
	default:
		if Faults[i].Lasting {
			e.arm(name, -1)
		} else {
			e.arm(name, 1)
		}
	}
	return nil
}

// Heal takes a fault back that lasts, or has not struck yet.
func (e *Engine) Heal(name string) {
	e.faultMu.Lock()
	defer e.faultMu.Unlock()
	delete(e.faults, name)
}

// arm sets a lasting fault (-1) or adds a stroke of one.
func (e *Engine) arm(name string, n int) {
	e.faultMu.Lock()
	defer e.faultMu.Unlock()
	if n < 0 {
		e.faults[name] = n
	} else {
		e.faults[name] += n
	}
}

// active tells whether a lasting fault is on.
func (e *Engine) active(name string) bool {
	e.faultMu.Lock()
	defer e.faultMu.Unlock()
	return e.faults[name] != 0
}

// trip takes one armed stroke of a fault.
func (e *Engine) trip(name string) bool {
	e.faultMu.Lock()
	defer e.faultMu.Unlock()
	if e.faults[name] <= 0 {
		return false
	}
	e.faults[name]--
	return true
}

// restart is an engine that comes back: it knows no tokens, and does not watch the live backups that it had begun.
func (e *Engine) restart() {
	clear(e.state.sessions)
	e.arm(FaultUnreachable, -1)
	e.after(restartTime, func() { e.Heal(FaultUnreachable) })
	for _, b := range e.state.backups.all() {
		v, found := e.state.vms.get(b.vm)
		if b.ended() || b.hybrid || !found || !v.running() {
			continue
		}
		e.event(evBackupUnmonitored, "error", about(b.correlation, v), "Backup %s for VM %s is not monitored any more.", b.id, v.name)
		for _, t := range e.state.transfers.all() {
			if t.backup == b.id && !t.ended() {
				e.endTransfer(t, "finalizing_failure", "finished_failure")
			}
		}
		onHost := b.onHost
		e.backupOver(b, v, "failed")
		e.background(func(ctx context.Context) {
			if onHost {
				if err := e.opts.Host.StopBackup(ctx, b.vm, b.id); err != nil {
					e.log.Warn("backup not stopped", "backup", b.id, "err", err)
				}
			}
		})
	}
}
