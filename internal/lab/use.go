package lab

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/internal/lab/control"
)

func downCommand() *cobra.Command {
	var dir string
	var keep bool
	cmd := &cobra.Command{
		Use: "down", Short: "End the lab that up started, and remove what it has made", Args: cobra.NoArgs,
		Long: "End the lab that up started, or is starting, and wait until nothing of it runs. Then its disks, its\n" +
			"store and its log are removed, of a lab that was killed too. It is no error if no lab is up.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			wasUp, err := control.Open(dir).Down(cmd.Context(), keep)
			if err == nil && !wasUp {
				fmt.Fprintf(cmd.ErrOrStderr(), "No lab was up in %s.\n", dir)
			}
			return err
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the folder with the store, the disks and the log, until the next up")
	return cmd
}

// exitCode ends the program with a code, when all was said.
type exitCode int

// Error implements error.
func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// codeNotRun is exec's exit code when the command did not run at all, as ssh has it.
const codeNotRun = 255

func execCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "exec VM -- COMMAND [ARGUMENT...]", Args: cobra.MinimumNArgs(2),
		Short: "Run a command as root in a VM, by its console, and pass its exit code on",
		Long: "Run a command as root in a VM that runs, given by name or ID. A COMMAND alone is a line for the guest's\n" +
			"shell; with arguments it is run with exactly these. What it prints, to both outputs, comes when it has\n" +
			"ended; it reads nothing. The exit code is the command's, or 255 if it could not be run. Ctrl-C interrupts\n" +
			"it. A guest that still boots is waited for.",
		Example: "  holdfast-lab exec web1 -- 'cd /srv; ls | wc -l'\n  holdfast-lab exec web1 -- systemctl status ssh",
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, words := args[0], args[1:]
			if words[0] == "--" { // flags end at the VM, with or without it
				words = words[1:]
			}
			if len(words) == 0 {
				return fmt.Errorf("exec %s: no command", vm)
			}
			out, code, err := control.Open(dir).Exec(cmd.Context(), vm, commandLine(words))
			if err != nil && cmd.Context().Err() == nil {
				report(cmd.ErrOrStderr(), err)
				return exitCode(codeNotRun)
			}
			if err != nil {
				return err
			}
			if _, err := io.WriteString(cmd.OutOrStdout(), out); err != nil {
				return err
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// commandLine makes one line for a shell: a word alone is one already.
func commandLine(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = control.Quote(w)
	}
	return strings.Join(quoted, " ")
}

func faultCommand() *cobra.Command {
	var dir string
	var heal bool
	cmd := &cobra.Command{
		Use: "fault NAME", Short: "Break something: the engine, a backup, a move, or the node", Args: cobra.ExactArgs(1),
		Long: faultHelp(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := control.Open(dir).Fault(cmd.Context(), args[0], heal); err != nil {
				return err
			}
			for _, f := range control.Faults() {
				if f.Name == args[0] && !heal {
					fmt.Fprintln(cmd.ErrOrStderr(), told(f))
				}
			}
			return nil
		},
	}
	for _, f := range control.Faults() {
		cmd.ValidArgs = append(cmd.ValidArgs, f.Name)
	}
	dirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&heal, "heal", false, "take back a fault that lasts, or that has not struck yet")
	return cmd
}

// told says what a fault has begun.
func told(f control.Fault) string {
	text := strings.ToUpper(f.Text[:1]) + f.Text[1:]
	if f.Lasting {
		return text + ", until: holdfast-lab fault " + f.Name + " --heal"
	}
	return text + "."
}

func faultHelp() string {
	var long strings.Builder
	long.WriteString("Inject a fault into the lab. Those marked * last until they are taken back with --heal; the\n" +
		"others strike once.\n\n")
	w := tabwriter.NewWriter(&long, 2, 0, 2, ' ', 0)
	for _, f := range control.Faults() {
		mark := " "
		if f.Lasting {
			mark = "*"
		}
		fmt.Fprintf(w, "%s %s\t%s\n", mark, f.Name, f.Text)
	}
	_ = w.Flush() // into memory
	return long.String()
}
