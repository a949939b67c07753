package cli

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/term"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// passphrase reads the passphrase from its file, or asks for it on a terminal.
func (a *app) passphrase(ctx context.Context) ([]byte, error) {
	const op = "read passphrase"
	if a.passphraseFile != "" {
		return node.ReadPassphrase(a.passphraseFile)
	}
	if err := a.terminal(op, "--passphrase-file F, HOLDFAST_PASSPHRASE_FILE, or a key file: --key-file F, HOLDFAST_KEY_FILE"); err != nil {
		return nil, err
	}
	return a.ask(ctx, op, "Passphrase: ")
}

// newPassphrase reads a passphrase that is to be from a file, or asks for it twice. flag names the file's flag.
func (a *app) newPassphrase(ctx context.Context, file, flag, prompt string) ([]byte, error) {
	const op = "read passphrase"
	if file != "" {
		return node.ReadPassphrase(file)
	}
	if err := a.terminal(op, flag+" F"); err != nil {
		return nil, err
	}
	p, err := a.ask(ctx, op, prompt)
	if err != nil {
		return nil, err
	}
	again, err := a.ask(ctx, op, "The same again: ")
	if err == nil && string(again) != string(p) {
		err = errs.Text(op, "", errs.Invalid, "the two are not the same; nothing was done").WithNext("Run the same command again.")
	}
	return p, err
}

// terminal fails if there is none to ask on; instead says what to name.
func (a *app) terminal(op, instead string) error {
	if a.Stdin == nil || !term.IsTerminal(int(a.Stdin.Fd())) {
		return errs.Text(op, "", errs.Invalid, "there is no terminal to ask on").
			WithNext("Name a file that holds it: " + instead + ".")
	}
	return nil
}

// ask reads a line without showing it. An interruption ends the question; the read that waits is left behind, with the
// terminal as it was.
func (a *app) ask(ctx context.Context, op, prompt string) ([]byte, error) {
	fd := int(a.Stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, errs.Wrap(op, "", err)
	}
	type answer struct {
		text []byte
		err  error
	}
	got := make(chan answer, 1)
	fmt.Fprint(a.Stderr, prompt)
	go func() {
		p, err := term.ReadPassword(fd)
		got <- answer{p, err}
	}()
	select {
	case r := <-got:
		fmt.Fprintln(a.Stderr)
		if r.err == io.EOF {
			return nil, errs.Text(op, "", errs.Invalid, "the terminal was closed")
		}
		return r.text, errs.Wrap(op, "", r.err)
	case <-ctx.Done():
		fmt.Fprintln(a.Stderr)
		_ = term.Restore(fd, before) // the process ends in any case
		return nil, errs.Wrap(op, "", ctx.Err())
	}
}
