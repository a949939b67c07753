package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) recoverCommand() *cobra.Command {
	return &cobra.Command{
		Use: "recover STORE --kit FILE", Short: "Open a store with its recovery kit", Args: exactly(1, "the folder of the store"),
		Long: "Open the store in the folder STORE with the recovery kit in FILE, with no passphrase and nothing else at hand, list\n" +
			"its restore points, and say how to get their disks back.",
		RunE: func(c *cobra.Command, args []string) error {
			if a.kitFile == "" {
				return usage(c.CommandPath(), "no recovery kit was named: use --kit FILE")
			}
			a.storeDir = args[0]
			if err := a.listPoints(c.Context()); err != nil {
				return err
			}
			with := fmt.Sprintf("--store %s --kit %s", a.storeDir, a.kitFile)
			a.note("To get a disk back:     holdfast point export POINT --to FILE " + with)
			a.note("To see all as files:    holdfast mount DIR " + with)
			a.note("To check all of it:     holdfast store verify " + with)
			return nil
		},
	}
}
