package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/control"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

const (
	// upWithin is how long a lab may take until its guests are up.
	upWithin = 6 * time.Minute
	// endWithin is how long a lab that was told to end may take.
	endWithin = 3 * time.Minute

	opUp = "start a lab in"
)

// up starts a lab in the background and waits until it is ready.
func up(ctx context.Context, o labOptions, progress io.Writer) (control.Info, error) {
	var none control.Info
	if err := netns.NeedRoot(); err != nil {
		return none, err
	}
	if err := control.Check(o.dir); err != nil {
		return none, err
	}
	if err := parts.Need(parts.Build, parts.Machine, parts.Imageio, parts.NFSClient); err != nil {
		return none, err
	}
	// What comes from the network outside has to be there before the lab goes inside.
	if err := fetchParts(ctx, progress); err != nil {
		return none, err
	}
	cache, err := parts.CacheDir()
	if err != nil {
		return none, err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return none, errs.Wrap(opUp, o.dir, err)
	}
	log, err := os.OpenFile(filepath.Join(o.dir, control.LogName), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return none, errs.Wrap(opUp, o.dir, err)
	}
	defer log.Close()
	p, err := netns.Detach(netns.Spec{
		Args: o.args(), Env: []string{"TMPDIR=" + control.TempDir(o.dir), parts.CacheKey + "=" + cache}, Log: log,
	})
	if err != nil {
		return none, err
	}
	if p.Unlinked != nil {
		fmt.Fprintf(progress, "The lab cannot be linked to this network (%v).\n"+
			"Its addresses work inside only; the node's socket works.\n", p.Unlinked)
	}
	fmt.Fprintln(progress, "Starting engine, imageio, node and VM; the VM takes about half a minute to boot ...")
	return await(ctx, o.dir, p.Process, log.Name())
}

// await waits until the lab is ready, or has ended.
func await(ctx context.Context, dir string, p *os.Process, log string) (control.Info, error) {
	within, cancel := context.WithTimeout(ctx, upWithin)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		_, _ = p.Wait()
		close(ended)
	}()
	for {
		info, err := control.Open(dir).Info(within)
		if err == nil && info.PID == p.Pid {
			return info, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ended:
			return info, whyEnded(dir, log)
		case <-within.Done():
			return info, giveUp(ctx, dir, p, ended)
		}
	}
}

// whyEnded finds out from a lab's log why it could not start.
func whyEnded(dir, log string) error {
	said, next := control.Said(log)
	said = strings.TrimPrefix(said, opUp+" "+dir+": ")
	if said == "" {
		return errs.Text(opUp, dir, errs.Canceled, "somebody has ended it")
	}
	return errs.Text(opUp, dir, errs.Bug, said).WithNext(strings.TrimSpace(next + " The log is " + log))
}

// giveUp ends a lab that is starting. If that was the user's wish, nothing is left of it.
func giveUp(ctx context.Context, dir string, p *os.Process, ended <-chan struct{}) error {
	_ = p.Signal(os.Interrupt) // it cleans up after itself
	select {
	case <-ended:
	case <-time.After(endWithin):
		return errs.Text(opUp, dir, errs.Canceled, "it was told to end and has not yet").WithNext("End it: holdfast-lab down")
	}
	if ctx.Err() == nil {
		return errs.Text(opUp, dir, errs.Bug, "it is not up after "+upWithin.String()).
			WithNext("Is the machine very busy? The log is " + filepath.Join(dir, control.LogName))
	}
	_, err := control.Open(dir).Down(context.WithoutCancel(ctx), false)
	return errors.Join(errs.Wrap(opUp, dir, ctx.Err()), err)
}
