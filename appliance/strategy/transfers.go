package strategy

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// readyWithin is how long an image transfer may take to begin.
const readyWithin = 20 * time.Minute

// Transfers is what the engine client does for image transfers that were asked for.
type Transfers interface {
	Transfer(ctx context.Context, id ovirt.ID) (ovirt.Transfer, error)
	FinalizeTransfer(ctx context.Context, id ovirt.ID) error
	CancelTransfer(ctx context.Context, id ovirt.ID) error
}

// Following is image transfers, waited for.
type Following struct {
	Waiting
	Engine Transfers
}

// Ready waits until a transfer can be read.
func (f Following) Ready(ctx context.Context, t ovirt.Transfer) (ovirt.Transfer, error) {
	err := f.Until(ctx, readyWithin, func() (bool, error) {
		if t.Phase == ovirt.TransferTransferring && t.TransferURL != "" || Ended(t.Phase) {
			return true, nil
		}
		got, err := f.Engine.Transfer(ctx, t.ID)
		if err == nil {
			t = got
		}
		return false, err
	})
	if err == nil && Ended(t.Phase) {
		err = errs.Text("start transfer", string(t.ID), errs.Transient, "the engine's transfer is "+string(t.Phase)).
			WithNext("See the engine's events, and that ovirt-imageio runs on the host; then run the backup again.")
	}
	return t, err
}

// Ended tells whether a transfer's phase is one it does not leave, or leaves only by somebody's help.
func Ended(p ovirt.TransferPhase) bool {
	switch p {
	case ovirt.TransferCancelledSystem, ovirt.TransferPausedSystem, ovirt.TransferFinishedSuccess,
		ovirt.TransferFinishedFailure, ovirt.TransferFinishedCleanup, "finalizing_failure", "cancelled_user":
		return true
	}
	return false
}

// finished tells whether a transfer holds nothing any more.
func finished(p ovirt.TransferPhase) bool {
	return p == ovirt.TransferFinishedSuccess || p == ovirt.TransferFinishedCleanup || p == ovirt.TransferFinishedFailure
}

// End finalises a transfer and waits until it is over. The engine may have ended it by itself, after the last byte: all
// bytes were read and stored before, and how the engine calls the end does not change them.
func (f Following) End(ctx context.Context, id ovirt.ID) error {
	err := f.Patiently(ctx, func() error { return f.Engine.FinalizeTransfer(ctx, id) })
	if err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	return f.over(ctx, id)
}

func (f Following) over(ctx context.Context, id ovirt.ID) error {
	return f.Until(ctx, endWithin, func() (bool, error) {
		t, err := f.Engine.Transfer(ctx, id)
		if errs.Is(err, errs.NotFound) {
			return true, nil // purged: it is over
		}
		return finished(t.Phase), err
	})
}

// Cancel gives a transfer up and waits until it is over.
func (f Following) Cancel(ctx context.Context, t ovirt.Transfer) error {
	if !Ended(t.Phase) || t.Phase == ovirt.TransferPausedSystem {
		err := f.Patiently(ctx, func() error { return f.Engine.CancelTransfer(ctx, t.ID) })
		if err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
	}
	return f.over(ctx, t.ID)
}
