// Package cli is the command line: it reads arguments, asks appliance/node, and prints.
//
// Rules. What was asked for goes to stdout: a table for people, or with -o json one JSON document (one per line, flushed
// at once, where a command goes on). Everything else goes to stderr: progress, notes, errors. An error is two lines:
// what failed and why; then what to do next, if we know. Exit codes are the table in exit.go, documented in docs/cli.md.
// The environment is read here and in cmd, nowhere else. Names and JSON fields are promises to scripts.
//
// Run is the whole program and takes its world as arguments, so that tests drive it in process.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// World is what the program sees of its surroundings.
type World struct {
	Args   []string // without the program's name
	Getenv func(string) string
	Stdin  *os.File
	Stdout io.Writer
	Stderr io.Writer
	Now    func() time.Time
	// Stats requests counters from a command that serves (SIGUSR1); may be nil.
	Stats <-chan struct{}
	// Version is what `holdfast version` prints.
	Version string
}

// app is one run of the program.
type app struct {
	World
	storeDir       string
	passphraseFile string
	output         string
	verbose        bool
}

// Run runs the program and returns its exit code.
func Run(ctx context.Context, w World) int {
	a := &app{World: w}
	root := a.root()
	root.SetArgs(w.Args)
	root.SetOut(w.Stdout)
	root.SetErr(w.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var p *partial
	if errors.As(err, &p) {
		fmt.Fprintln(w.Stderr, "holdfast: "+p.text)
		return p.code
	}
	fmt.Fprintln(w.Stderr, "holdfast: "+err.Error())
	if next := errs.NextStep(err); next != "" {
		fmt.Fprintln(w.Stderr, "  "+next)
	}
	return exitCode(ctx, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Backups of oVirt machines that are disks at once",
		Long: "Holdfast keeps disks in a deduplicating store, where every restore point is a full image,\n" +
			"and shows them as files over NFS and FUSE, so that a machine can run from its backup.",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return usage("-o " + a.output + ": the output is table or json")
			}
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.storeDir, "store", a.Getenv("HOLDFAST_STORE"), "folder of the store (HOLDFAST_STORE)")
	f.StringVar(&a.passphraseFile, "passphrase-file", a.Getenv("HOLDFAST_PASSPHRASE_FILE"),
		"file with the passphrase in its first line (HOLDFAST_PASSPHRASE_FILE)")
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "tell what is done")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage(err.Error() + " (see " + c.CommandPath() + " --help)")
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(a.initCommand(), a.diskCommand(), a.pointCommand(), a.mountCommand(), a.storeCommand(), a.versionCommand())
	return root
}

// group is a command that only has subcommands.
func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage(c.CommandPath() + " has no subcommand " + args[0] + " (see " + c.CommandPath() + " --help)")
		}
		return usage(c.CommandPath() + " needs a subcommand (see " + c.CommandPath() + " --help)")
	}}
	c.AddCommand(sub...)
	return c
}

// exactly is cobra.ExactArgs with errors of ours.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usage(fmt.Sprintf("%s takes %s, not %d arguments (see %s --help)", c.CommandPath(), what, len(args), c.CommandPath()))
		}
		return nil
	}
}

func usage(text string) error { return errs.Text("read command line", "", errs.Invalid, text) }

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: exactly(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			return a.print(map[string]string{"version": a.Version}, func(w io.Writer) { fmt.Fprintln(w, "holdfast "+a.Version) })
		}}
}

// note tells a person something, at once.
func (a *app) note(s string) { fmt.Fprintln(a.Stderr, s) }

func (a *app) logger() *slog.Logger {
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.Stderr, &slog.HandlerOptions{Level: level}))
}

func (a *app) storePath() (string, error) {
	if a.storeDir == "" {
		return "", usage("no store was named: use --store DIR or set HOLDFAST_STORE")
	}
	return a.storeDir, nil
}

func (a *app) options() chunkstore.Options {
	return chunkstore.Options{Unlock: chunkstore.WithPassphrase(func() ([]byte, error) { return a.passphrase(false) }), Logger: a.logger()}
}

func (a *app) reader(ctx context.Context) (*chunkstore.Reader, error) {
	dir, err := a.storePath()
	if err != nil {
		return nil, err
	}
	return chunkstore.OpenReader(ctx, dir, a.options())
}

func (a *app) writer(ctx context.Context) (*chunkstore.Store, error) {
	dir, err := a.storePath()
	if err != nil {
		return nil, err
	}
	return chunkstore.Open(ctx, dir, a.options())
}

// passphrase reads the passphrase from its file, or asks for it on a terminal; twice if it is a new one.
func (a *app) passphrase(fresh bool) ([]byte, error) {
	const op = "read passphrase"
	if a.passphraseFile != "" {
		return node.ReadPassphrase(a.passphraseFile)
	}
	if a.Stdin == nil || !term.IsTerminal(int(a.Stdin.Fd())) {
		return nil, errs.Text(op, "", errs.Invalid, "there is no terminal to ask on").
			WithNext("Name a file that holds it: --passphrase-file F, or HOLDFAST_PASSPHRASE_FILE.")
	}
	p, err := a.ask("Passphrase: ")
	if err != nil || !fresh {
		return p, err
	}
	again, err := a.ask("The same again: ")
	if err == nil && string(again) != string(p) {
		err = errs.Text(op, "", errs.Invalid, "the two are not the same; nothing was made")
	}
	return p, err
}

func (a *app) ask(prompt string) ([]byte, error) {
	fmt.Fprint(a.Stderr, prompt)
	p, err := term.ReadPassword(int(a.Stdin.Fd()))
	fmt.Fprintln(a.Stderr)
	return p, errs.Wrap("read passphrase", "", err)
}
