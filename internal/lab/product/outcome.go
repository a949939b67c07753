package product

import (
	"bytes"
	"context"
	"path/filepath"

	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

// Outcome is what somebody at a terminal gets of a command: its exit code, what was asked for and what was said.
type Outcome struct {
	Code           int
	Stdout, Stderr string
}

// Ask runs the command line as Run does, but takes every exit code for an answer. An error means that the program could
// not be run, or that a signal ended it.
func (n *Node) Ask(ctx context.Context, args ...string) (Outcome, error) {
	var out, said bytes.Buffer
	p, err := proc.Start(ctx, proc.Spec{
		Args: append([]string{filepath.Join(n.opts.BinDir, "holdfast")}, args...), Env: n.Environment(),
		Stdout: &out, Stderr: &said,
	})
	if err != nil {
		return Outcome{}, err
	}
	<-p.Done()
	o := Outcome{Code: p.ExitCode(), Stdout: out.String(), Stderr: said.String()}
	if o.Code < 0 {
		return o, p.Wait(ctx)
	}
	return o, nil
}
