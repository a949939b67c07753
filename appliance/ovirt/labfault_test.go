package ovirt

import (
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
)

func TestLabFaults(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.fault(engine.FaultExpiredToken)
	if _, err := l.VM(ctx, labVM); err != nil {
		t.Errorf("expired token: %v", err)
	}
	l.fault(engine.FaultServerError)
	if _, err := l.VM(ctx, labVM); err != nil {
		t.Errorf("one error page: %v", err)
	}
	for range readTries {
		l.fault(engine.FaultServerError)
	}
	if _, err := l.VM(ctx, labVM); !errs.Is(err, errs.Bug) || errs.NextStep(err) == "" {
		t.Errorf("error pages: %v", err)
	}
	l.fault(engine.FaultVMLocked)
	for range 4 { // 400 and 409 in turn
		if err := l.StartVM(ctx, labVM); !errs.Is(err, errs.Busy) || errs.NextStep(err) == "" {
			t.Errorf("locked VM: %v", err)
		}
	}
	l.engine.Heal(engine.FaultVMLocked)
	other := l.dial()
	other.http.CloseIdleConnections()
	l.http.CloseIdleConnections()
	l.fault(engine.FaultUnreachable)
	if _, err := other.VM(ctx, labVM); !errs.Is(err, errs.Transient) || errs.NextStep(err) == "" {
		t.Errorf("unreachable: %v", err)
	}
	l.engine.Heal(engine.FaultUnreachable)
	if _, err := other.VM(ctx, labVM); err != nil {
		t.Errorf("reachable again: %v", err)
	}
	_, err := Dial(ctx, Options{URL: l.url, User: testUser, Password: "wrong", CA: l.engine.CA().PEM()})
	if !errs.Is(err, errs.Denied) || errs.NextStep(err) == "" {
		t.Errorf("wrong password: %v", err)
	}
	_, err = Dial(ctx, Options{URL: l.url, User: "admin@nowhere", Password: labPassword, CA: l.engine.CA().PEM()})
	if !errs.Is(err, errs.Denied) || !strings.Contains(errs.NextStep(err), "user@domain") {
		t.Errorf("unknown domain: %v, next %q", err, errs.NextStep(err))
	}
}

func TestLabRestart(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.fault(engine.FaultRestart)
	l.within("the engine is back", func() (bool, error) {
		_, err := l.VM(ctx, labVM)
		if errs.Is(err, errs.Transient) {
			return false, nil
		}
		return err == nil, err
	})
}

func TestLabManyAtOnce(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			for n := range 10 {
				if i == 0 && n == 5 {
					_ = l.engine.Fault(engine.FaultExpiredToken)
				}
				if _, err := l.VM(ctx, labVM); err != nil {
					t.Error(err)
				}
				if _, err := l.Disks(ctx, labVM); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
