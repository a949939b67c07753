// Package lab is the closest honest thing to an oVirt installation that runs on one machine: real disks, real virtual
// machines, real NFS, in a network namespace of its own. This package is its command line, holdfast-lab.
//
// run plays the demo. up starts an installation in the background, for people, scripts and other tools to use: down,
// exec and fault work on that, by the socket in its folder. docs/lab.md is their manual.
//
// Folders, from the bottom: parts names the Debian packages that are needed and the cache, proc owns the child
// processes, netns gives a lab a network, pki its certificates; debian makes the disk, qemu runs machines and moves
// their disks, linux boots the smallest guest with Linux's own NFS client, in which guest runs what a test wants, such as
// fsx; imageio runs oVirt's daemon, nfsdomain is a host's view of storage on NFS; host and engine make an oVirt
// of them, datacenter puts that together; product installs Holdfast; scenario tells the story that `make demo` shows,
// control runs a lab in the background, bench and storebench measure, with what measure counts of a program, sdk is
// oVirt's own client for tests. The lab sees the product from outside only: by its command line and over the network, and
// storebench by its benchmarks, as programs.
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
	"github.com/holdfast-backup/holdfast/internal/lab/imageio"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/scenario"
	"github.com/holdfast-backup/holdfast/internal/lab/storebench"
)

// Run runs the command line and returns the exit code: 0 done, 1 failed, 2 used wrongly, 130 interrupted. It writes
// errors to stderr. exec has codes of its own.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	ran, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	if ctx.Err() != nil {
		next := errs.NextStep(err)
		if next == "" {
			next = "Everything it had started has ended."
		}
		fmt.Fprintf(stderr, "holdfast-lab: interrupted\n%s\n", next)
		return 130
	}
	report(stderr, err)
	var ours *errs.Error
	if !errors.As(err, &ours) { // everything of ours is an *errs.Error: this came from reading the command line
		fmt.Fprintf(stderr, "See %s --help.\n", ran.CommandPath())
		return 2
	}
	return 1
}

// report says what failed, why, and what to do next.
func report(stderr io.Writer, err error) {
	fmt.Fprintf(stderr, "holdfast-lab: %v\n", err)
	if next := errs.NextStep(err); next != "" {
		fmt.Fprintln(stderr, next)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "holdfast-lab", Short: "Try Holdfast on real disks and real machines, without an oVirt",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.AddCommand(upCommand(), downCommand(), runCommand(), execCommand(), faultCommand(), fetchCommand(),
		diskCommand(), serveCommand(), benchCommand())
	return root
}

func benchCommand() *cobra.Command {
	c := bench.Command(programFolder())
	c.AddCommand(storebench.Command(programFolder()))
	return c
}

func fetchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "fetch", Short: "Bring all that the lab needs from the network into the cache", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := parts.Need(parts.Build, parts.Machine, parts.Imageio, parts.NFSClient); err != nil {
				return err
			}
			return fetchParts(cmd.Context(), cmd.ErrOrStderr())
		},
	}
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
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Play the demo: back a running VM up through oVirt, start it from its backup, migrate it away while it runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.keep, "keep", false, "keep the work folder: store, images and logs")
	f.BoolVar(&o.core, "core", false,
		"play the story of the core instead: the same with an image file and without an oVirt")
	f.StringVar(&o.bin, "bin", programFolder(), "folder of the holdfast programs")
	f.StringVar(&o.level, "cluster-level", "4.8",
		"of the simulated cluster: from 4.7 on, backups take a snapshot; below they are live")
	f.Float64Var(&o.scale, "scale", 1, "speed of the simulated engine: 1 takes as long as a real one, 0.1 a tenth")
	return cmd
}

type runOptions struct {
	keep, core bool
	bin, level string
	scale      float64
}

func run(ctx context.Context, o runOptions, out io.Writer) error {
	if err := netns.NeedRoot(); err != nil {
		return err
	}
	if err := parts.Need(parts.Build, parts.Machine, parts.Mount, parts.Imageio, parts.NFSClient); err != nil {
		return err
	}
	// What comes from the network outside first.
	if !netns.Inside() {
		if err := fetchParts(ctx, out); err != nil {
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
	if o.keep {
		defer fmt.Fprintf(out, "\nKept: %s\n", work)
	} else {
		defer os.RemoveAll(work)
	}
	options := scenario.Options{BinDir: o.bin, WorkDir: work, Disk: disk.QCOW2, Out: out}
	if o.core {
		return scenario.Core(ctx, options)
	}
	return scenario.OVirt(ctx, scenario.OVirtOptions{Options: options, ClusterLevel: o.level, Scale: o.scale})
}

// fetchParts brings what is not in the cache yet: the Debian disk and ovirt-imageio.
func fetchParts(ctx context.Context, log io.Writer) error {
	if _, err := build(ctx, 0, log); err != nil {
		return err
	}
	cache, err := parts.CacheDir()
	if err != nil {
		return err
	}
	_, err = imageio.Build(ctx, cache, log)
	return err
}

// build returns the disk; the first time on a machine this takes a minute and says so.
func build(ctx context.Context, sizeMiB int, log io.Writer) (debian.Disk, error) {
	cache, err := parts.CacheDir()
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
