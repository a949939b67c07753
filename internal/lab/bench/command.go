package bench

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

// Command returns the command bench of holdfast-lab. bin is where the holdfast program lies unless it is told.
func Command(bin string) *cobra.Command {
	var quick bool
	var output, only string
	c := &cobra.Command{
		Use: "bench", Short: "Measure Holdfast beside restic, nfs-ganesha and plain files", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("--output %q: table and json are known", output)
			}
			if only != "" && !slices.Contains(sections, only) {
				return fmt.Errorf("--only %q: there are %s", only, strings.Join(sections, ", "))
			}
			report, err := inside(c, Options{BinDir: bin, Only: only, Quick: quick, Log: c.ErrOrStderr()})
			if err != nil {
				return err
			}
			print := report.Table
			if output == "json" {
				print = report.JSON
			}
			return errs.Wrap("print", "the report", print(c.OutOrStdout()))
		},
	}
	c.Flags().StringVar(&bin, "bin", bin, "folder of the holdfast program")
	c.Flags().BoolVar(&quick, "quick", false, "a small disk and one round: shows that everything runs, says nothing about speed")
	c.Flags().StringVar(&only, "only", "", "one section: "+strings.Join(sections, ", "))
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

// inside measures in a network of its own and a work folder that is removed at the end.
func inside(c *cobra.Command, o Options) (*Report, error) {
	// The disk first: it comes from the network outside.
	if !o.Quick {
		cache, err := parts.CacheDir()
		if err != nil {
			return nil, err
		}
		disk, err := debian.Build(c.Context(), debian.Options{CacheDir: cache, Log: o.Log})
		if err != nil {
			return nil, err
		}
		o.Disk = disk.Raw
	}
	if err := netns.Enter(); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return nil, errs.Wrap("make", "the work folder", err)
	}
	defer os.RemoveAll(work)
	o.WorkDir = work
	return Run(c.Context(), o)
}
