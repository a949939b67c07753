// Package lab is the closest honest thing to an oVirt installation that runs on one machine: real disks, real virtual
// machines, real NFS, in a network namespace of its own. This package is its command line, holdfast-lab.
//
// Folders: debian makes the disk, qemu runs machines and moves their disks, netns gives the lab a network, scenario
// tells the story that `make demo` shows, parts names the Debian packages that are needed, proc owns the child
// processes. The lab sees the product from outside only: by its command line and over the network.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/bench"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/scenario"
)

// Run runs the command line and returns the exit code: 0 done, 1 failed, 2 used wrongly, 130 interrupted. It writes
// errors to stderr. exec passes on the guest's code.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var guest guestExit
	if errors.As(err, &guest) {
		return int(guest) // the command has said what it had to say
	}
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "holdfast-lab: interrupted; everything it had started has ended")
		return 130
	}
	fmt.Fprintf(stderr, "holdfast-lab: %v\n", err)
	if next := errs.NextStep(err); next != "" {
		fmt.Fprintln(stderr, next)
	}
	var ours *errs.Error
	if !errors.As(err, &ours) { // everything of ours is an *errs.Error: this came from reading the command line
		fmt.Fprintln(stderr, "See holdfast-lab --help.")
		return 2
	}
	return 1
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "holdfast-lab", Short: "Try Holdfast on real disks and real machines, without an oVirt",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.AddCommand(upCommand(), downCommand(), runCommand(), execCommand(), faultCommand(), diskCommand(), serveCommand(),
		bench.Command(programFolder()))
	return root
}

func diskCommand() *cobra.Command {
	var raw bool
	var sizeMiB int
	cmd := &cobra.Command{
		Use: "disk", Short: "Make the lab's Debian 12 disk, or find it in the cache, and print its path", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			disk, err := build(cmd.Context(), sizeMiB, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			path := disk.QCOW2
			if raw {
				path = disk.Raw
			}
			fmt.Fprintln(cmd.OutOrStdout(), path)
			return nil
		},
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "print the path of the raw image instead of the qcow2 one")
	cmd.Flags().IntVar(&sizeMiB, "size", debian.DefaultSizeMiB, "size of the disk in MiB")
	return cmd
}

func runCommand() *cobra.Command {
	var keep bool
	var bin string
	cmd := &cobra.Command{
		Use: "run", Short: "Play the demo: back a machine up, boot it from its backup, move it away while it runs",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), bin, keep, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the work folder: store, images and the moved disk")
	cmd.Flags().StringVar(&bin, "bin", programFolder(), "folder of the holdfast program")
	return cmd
}

func run(ctx context.Context, bin string, keep bool, out io.Writer) error {
	if err := parts.Need(parts.Build, parts.Machine, parts.Mount); err != nil {
		return err
	}
	// The disk first: it comes from the network outside.
	if !netns.Inside() {
		if _, err := build(ctx, 0, out); err != nil {
			return err
		}
	}
	if err := netns.Enter(); err != nil {
		return err
	}
	disk, err := build(ctx, 0, out) // from the cache now
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "holdfast-lab-")
	if err != nil {
		return errs.Wrap("make", "the work folder", err)
	}
	if keep {
		defer fmt.Fprintf(out, "\nKept: %s\n", work)
	} else {
		defer os.RemoveAll(work)
	}
	return scenario.Core(ctx, scenario.Options{BinDir: bin, WorkDir: work, Disk: disk.QCOW2, Out: out})
}

// build returns the disk; the first time on a machine this takes a minute and says so.
func build(ctx context.Context, sizeMiB int, log io.Writer) (debian.Disk, error) {
	cache, err := debian.CacheDir()
	if err != nil {
		return debian.Disk{}, err
	}
	return debian.Build(ctx, debian.Options{CacheDir: cache, SizeMiB: sizeMiB, Log: log})
}

// programFolder is where this program lies: the others lie beside it.
func programFolder() string {
	self, err := os.Executable()
	if err != nil {
		return "bin"
	}
	return filepath.Dir(self)
}
