// Package cli is the command line: it reads arguments, asks, and prints. Commands on a store (init, disk, point, mount,
// store, recover) ask appliance/node in this process; commands to a node (manager, vm, backup, restore, session, task)
// ask the daemon through api.Service and know nothing else of it.
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
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/appliance/node"
	"github.com/holdfast-backup/holdfast/chunkstore"
	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/disk"
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
	// Dial connects to a node; nil for appliance/api/client's.
	Dial func(client.Options) (api.Service, error)
	// Zone is the time zone of people; nil for the machine's.
	Zone *time.Location
}

// app is one run of the program.
type app struct {
	World
	storeDir       string
	passphraseFile string
	keyFile        string
	kitFile        string
	flagged        func(flag string) bool // was it given on the command line
	output         string
	verbose        bool
	nodeAt         client.Options
}

// Run runs the program and returns its exit code.
func Run(ctx context.Context, w World) int {
	a := &app{World: w, flagged: func(string) bool { return false }}
	root := a.root()
	root.SetArgs(w.Args)
	root.SetOut(w.Stdout)
	root.SetErr(w.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	a.complain(err.Error(), nextStep(err))
	return exitCode(ctx, err)
}

// complain prints the two lines of an error.
func (a *app) complain(what, next string) {
	fmt.Fprintln(a.Stderr, "holdfast: "+plain(what))
	fmt.Fprintln(a.Stderr, "  "+plain(next))
}

// oneLine keeps a message on its line: joined errors and names of files can have several.
var oneLine = strings.NewReplacer("\n", "; ", "\r", " ")

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Backups of oVirt machines that are disks at once",
		Long: "Holdfast keeps disks in a deduplicating store, where every restore point is a full image,\n" +
			"and shows them as files over NFS and FUSE, so that a machine can run from its backup.\n\n" +
			"Commands on a store (--store): init, disk, point, mount, store, recover.\n" +
			"Commands to a node, the daemon holdfastd (--node): manager, vm, backup, restore, session, task.",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			a.flagged = c.Flags().Changed
			if a.output != "table" && a.output != "json" {
				return usage("holdfast", "-o "+a.output+": the output is table or json")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return unknownCommand(c, args[0])
		},
		Args: cobra.ArbitraryArgs,
	}
	f := root.PersistentFlags()
	f.StringVar(&a.storeDir, "store", a.Getenv("HOLDFAST_STORE"), "folder of the store (HOLDFAST_STORE)")
	f.StringVar(&a.passphraseFile, "passphrase-file", a.Getenv("HOLDFAST_PASSPHRASE_FILE"),
		"file with the passphrase in its first line (HOLDFAST_PASSPHRASE_FILE)")
	f.StringVar(&a.keyFile, "key-file", a.Getenv("HOLDFAST_KEY_FILE"), "key file to open the store with (HOLDFAST_KEY_FILE)")
	f.StringVar(&a.kitFile, "kit", a.Getenv("HOLDFAST_KIT"), "recovery kit to open the store with, in place of the passphrase (HOLDFAST_KIT)")
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "tell what is done")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage(c.CommandPath(), err.Error())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(a.initCommand(), a.diskCommand(), a.pointCommand(), a.mountCommand(), a.storeCommand(), a.recoverCommand(), a.versionCommand())
	for _, c := range []*cobra.Command{
		a.managerCommand(), a.vmCommand(), a.backupCommand(), a.restoreCommand(), a.sessionCommand(), a.taskCommand(),
	} {
		root.AddCommand(a.ofNode(c))
	}
	return root
}

// group is a command that only has subcommands.
func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(c, args[0])
		}
		return usage(c.CommandPath(), c.CommandPath()+" needs a subcommand")
	}}
	c.AddCommand(sub...)
	return c
}

// exactly is cobra.ExactArgs with errors of ours.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usage(c.CommandPath(), fmt.Sprintf("it takes %s, not %d arguments", what, len(args)))
		}
		return nil
	}
}

func unknownCommand(c *cobra.Command, name string) error {
	text := c.CommandPath() + " has no command " + name
	c.SuggestionsMinimumDistance = 2
	if like := c.SuggestionsFor(name); len(like) > 0 {
		text += "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usage(c.CommandPath(), text)
}

// usage is the error for a command line that makes no sense; command is the path of the one whose help says more.
func usage(command, text string) error {
	return errs.Text("read command line", "", errs.Invalid, text).WithNext("See `" + command + " --help`.")
}

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
		return "", usage("holdfast", "no store was named: use --store DIR or set HOLDFAST_STORE")
	}
	return a.storeDir, nil
}

func (a *app) options(ctx context.Context) chunkstore.Options {
	return chunkstore.Options{Unlock: a.unlock(ctx), Logger: a.logger()}
}

// unlock opens stores with what the command line names, otherwise with what the environment names, otherwise it asks
// for the passphrase. Of several on one level the kit comes first, since it is named on purpose, then the key file.
func (a *app) unlock(ctx context.Context) chunkstore.Unlock {
	pass := chunkstore.WithPassphrase(func() ([]byte, error) { return a.passphrase(ctx) })
	file := chunkstore.WithKeyFile(func() ([]byte, error) { return node.ReadKeyFile(a.keyFile) })
	switch {
	case a.flagged("kit"):
		return a.unlockByKit
	case a.flagged("key-file"):
		return file
	case a.flagged("passphrase-file"):
		return pass
	case a.kitFile != "":
		return a.unlockByKit
	case a.keyFile != "":
		return file
	}
	return pass
}

// maxKit bounds what is read of a recovery kit, in bytes: it is a page of text.
const maxKit = 64 << 10

// unlockByKit opens the store that a recovery kit was made for.
func (a *app) unlockByKit(_ []chunkstore.WrappedKey, store chunkstore.UUID) (keys.Master, string, error) {
	const op = "read recovery kit"
	page, err := disk.ReadFile(disk.OS{}, a.kitFile, maxKit)
	if err != nil {
		return keys.Master{}, "", errs.Wrap(op, a.kitFile, err)
	}
	k, of, err := keys.ParseKit(page)
	if err != nil {
		return keys.Master{}, "", errs.Wrap(op, a.kitFile, err)
	}
	if chunkstore.UUID(of) != store {
		return keys.Master{}, "", errs.Text(op, a.kitFile, errs.Denied, "it is the kit of store "+chunkstore.UUID(of).String()).
			WithNext("This store is " + store.String() + ": use its own kit, or the passphrase.")
	}
	return k, "", nil
}

func (a *app) reader(ctx context.Context) (*chunkstore.Reader, error) {
	dir, err := a.storePath()
	if err != nil {
		return nil, err
	}
	return chunkstore.OpenReader(ctx, dir, a.options(ctx))
}

// servingCacheMiB is the default cache of commands that serve for long: a machine that boots reads most things twice.
const servingCacheMiB = 256

// cacheFlag adds the flag that says how much of what was decoded is kept in memory.
func cacheFlag(c *cobra.Command, mib *int64) {
	c.Flags().Int64Var(mib, "cache", servingCacheMiB, "MiB of decoded data to keep in memory")
}

// cachingReader opens the store with a cache of its own size.
func (a *app) cachingReader(ctx context.Context, mib int64) (*chunkstore.Reader, error) {
	if mib < 1 || mib > 1<<20 {
		return nil, errs.Text("read command line", "", errs.Invalid, fmt.Sprintf("--cache %d: the cache has 1 to %d MiB", mib, 1<<20))
	}
	dir, err := a.storePath()
	if err != nil {
		return nil, err
	}
	o := a.options(ctx)
	o.CacheBytes = mib << 20
	return chunkstore.OpenReader(ctx, dir, o)
}

func (a *app) writer(ctx context.Context) (*chunkstore.Store, error) {
	dir, err := a.storePath()
	if err != nil {
		return nil, err
	}
	return chunkstore.Open(ctx, dir, a.options(ctx))
}

// askWithin is how long a node may take to say which store it holds.
const askWithin = 5 * time.Second

// change changes the store: here, or, if a node holds it, by asking that node.
func (a *app) change(ctx context.Context, here func(*chunkstore.Store) error, there func(api.Service) error) error {
	s, busy := a.writer(ctx)
	if busy == nil {
		defer s.Close()
		return here(s)
	}
	if !errs.Is(busy, errs.Busy) {
		return busy
	}
	ours, err := chunkstore.Peek(ctx, a.storeDir, chunkstore.Options{})
	if err != nil {
		return busy
	}
	n, end, err := a.dial()
	if err != nil {
		return busy
	}
	defer end()
	asked, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	if held, err := n.GetStore(asked); err != nil || held.UUID != ours.UUID.String() {
		return busy // somebody else has it
	}
	return fromNode(there(n))
}
