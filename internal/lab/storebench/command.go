package storebench

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/debian"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

// Command returns the command "bench store" of holdfast-lab. bin is where programs lie unless it is told.
func Command(bin string) *cobra.Command {
	var quick bool
	var output string
	rounds := 3
	c := &cobra.Command{
		Use: "store", Short: "Measure the chunk store beside restic, borg and casync, on disks of Debian servers", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("--output %q: table and json are known", output)
			}
			o := Options{BinDir: bin, Rounds: rounds, Few: quick, Log: c.ErrOrStderr()}
			if quick {
				o.Rounds = 1
			}
			report, err := onDisks(c, o)
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
	c.Flags().StringVar(&bin, "bin", bin, "folder of the holdfast program and of the benchmarks")
	c.Flags().BoolVar(&quick, "quick", false, "the lab's small disk and one round: rough figures")
	c.Flags().IntVar(&rounds, "rounds", rounds, "how often everything is measured; the slow peers are measured once")
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

// onDisks makes the disks or finds them in the cache, and measures in a work folder that is removed at the end.
func onDisks(c *cobra.Command, o Options) (*Report, error) {
	cache, err := parts.CacheDir()
	if err != nil {
		return nil, err
	}
	wanted := []debian.Options{{CacheDir: cache, Log: o.Log}}
	if !o.Few {
		wanted = nil
		for _, s := range servers {
			wanted = append(wanted, debian.Options{CacheDir: cache, SizeMiB: serverMiB, Server: &s, Log: o.Log})
		}
	}
	for _, w := range wanted {
		made, err := debian.Build(c.Context(), w)
		if err != nil {
			return nil, err
		}
		name := "small"
		if w.Server != nil {
			name = w.Server.Name
		}
		o.Images = append(o.Images, Image{name, made.Raw})
	}
	work, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return nil, errs.Wrap("make", "the work folder", err)
	}
	defer os.RemoveAll(work)
	o.WorkDir = work
	return Run(c.Context(), o)
}
