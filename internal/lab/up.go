package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/control"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

const (
	// dirKey names the environment variable that moves the lab's folder.
	dirKey     = "HOLDFAST_LAB_DIR"
	defaultDir = "/var/tmp/holdfast-lab"
	// upWithin is how long a lab may take until its guests are up.
	upWithin = 6 * time.Minute
)

func labDir() string {
	if dir := os.Getenv(dirKey); dir != "" {
		return dir
	}
	return defaultDir
}

// labOptions are the flags of up and serve.
type labOptions struct {
	dir, bin, level string
	scale           float64
	vms             []string
}

func (o *labOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", labDir(), "folder of the lab, emptied first ("+dirKey+")")
	f.StringVar(&o.bin, "bin", programFolder(), "folder of the holdfast programs")
	f.StringVar(&o.level, "cluster-level", "4.8", "of the simulated cluster: from 4.7 on, backups take a snapshot; below they are live")
	f.Float64Var(&o.scale, "scale", 1, "speed of the simulated engine: 1 takes as long as a real one, 0.1 a tenth")
	f.StringSliceVar(&o.vms, "vm", []string{"web1"}, "names of the VMs that are there from the start")
}

func (o *labOptions) args() []string {
	return []string{"serve", "--dir", o.dir, "--bin", o.bin, "--cluster-level", o.level, "--scale", fmt.Sprint(o.scale), "--vm", strings.Join(o.vms, ",")}
}

func upCommand() *cobra.Command {
	var o labOptions
	var format string
	cmd := &cobra.Command{
		Use: "up", Short: "Start an oVirt of one host, with a VM that runs, and a Holdfast node beside it", Args: cobra.NoArgs,
		Long: "Start a lab in the background and return when its VM is up: a simulated oVirt engine over a real VM in qemu and the\n" +
			"real ovirt-imageio daemon, and a Holdfast node with an empty store. It has a network of its own, which is reached\n" +
			"from here by a link. What is real and what is simulated is in docs/lab.md. End it with `holdfast-lab down`.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "json" {
				return errs.Text("start a lab", "", errs.Invalid, "-o "+format+": only json is known")
			}
			info, err := up(cmd.Context(), o, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if format == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(info)
			}
			return describe(cmd.OutOrStdout(), info)
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVarP(&format, "output", "o", "", "json: print one JSON document")
	return cmd
}

// serveCommand is what up starts in the background.
func serveCommand() *cobra.Command {
	var o labOptions
	cmd := &cobra.Command{
		Use: "serve", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := netns.Enter(); err != nil {
				return err
			}
			address, err := netns.Join()
			if err != nil {
				return err
			}
			disk, err := build(cmd.Context(), 0, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return control.Serve(cmd.Context(), control.Options{
				Dir: o.dir, BinDir: o.bin, Disk: disk.QCOW2, Address: address.String(), ClusterLevel: o.level, Scale: o.scale, VMs: o.vms, Log: os.Stderr,
			})
		},
	}
	o.flags(cmd)
	return cmd
}

// up starts a lab in the background and waits until it is ready.
func up(ctx context.Context, o labOptions, progress io.Writer) (control.Info, error) {
	var none control.Info
	if err := parts.Need(parts.Build, parts.Machine, parts.Imageio); err != nil {
		return none, err
	}
	var err error
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return none, errs.Wrap("start a lab", o.dir, err)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return none, errs.Wrap("start a lab", o.bin, err)
	}
	if _, err := control.Open(o.dir).Info(ctx); err == nil {
		return none, errs.Text("start a lab in", o.dir, errs.Exists, "one is up there").WithNext("End it first: holdfast-lab down")
	}
	// What comes from the network outside has to be there before the lab goes inside.
	if err := fetchParts(ctx, progress); err != nil {
		return none, err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return none, errs.Wrap("start a lab in", o.dir, err)
	}
	log, err := os.Create(filepath.Join(o.dir, control.LogName))
	if err != nil {
		return none, errs.Wrap("start a lab in", o.dir, err)
	}
	defer log.Close()
	p, err := netns.Detach(netns.Spec{Args: o.args(), Log: log})
	if err != nil {
		return none, err
	}
	if p.Unlinked != nil {
		fmt.Fprintf(progress, "The lab cannot be linked to this network (%v): its addresses work inside only; the node's socket works.\n", p.Unlinked)
	}
	fmt.Fprintln(progress, "Starting engine, imageio, node and VM; the VM takes about half a minute to boot ...")
	return await(ctx, o.dir, p.Process, log.Name())
}

// await waits until the lab is ready, or has ended.
func await(ctx context.Context, dir string, p *os.Process, log string) (control.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, upWithin)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		_, _ = p.Wait()
		close(ended)
	}()
	for {
		info, err := control.Open(dir).Info(ctx)
		if err == nil {
			return info, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ended:
			said, _ := os.ReadFile(log)
			lines := strings.Split(strings.TrimSpace(string(said)), "\n")
			return info, errs.Text("start a lab in", dir, errs.Bug, "it ended: "+lines[len(lines)-1]).WithNext("See " + log + ".")
		case <-ctx.Done():
			_ = p.Signal(os.Interrupt) // it cleans up after itself
			return info, errs.Wrap("start a lab in", dir, ctx.Err())
		}
	}
}

// describe tells a person what is there and what to try.
func describe(out io.Writer, i control.Info) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"Engine", i.EngineURL}, {"User", i.User}, {"Password", i.PasswordFile}, {"CA", i.CAFile}, {"VMs", strings.Join(i.VMs, ", ")},
		{"Storage", strings.Join(i.Domains, ", ")}, {"Node", i.Node + "  or  " + i.NodeURL + " with the token in " + i.TokenFile}, {"Log", i.LogFile},
	} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, `
Try:
  export HOLDFAST_NODE=%s
  holdfast manager add lab --url %s --user %s --password-file %s --ca-file %s
  holdfast backup run %s --wait
  holdfast-lab exec %s -- 'dd if=/dev/urandom of=/srv/new bs=1M count=8; sync'
  holdfast backup run %s --wait
  holdfast restore instant %s --name restored --power-on --wait
  holdfast-lab down
`, i.Node, i.EngineURL, i.User, i.PasswordFile, i.CAFile, i.VMs[0], i.VMs[0], i.VMs[0], i.VMs[0])
	return err
}

func downCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "down", Short: "End the lab that up started; its folder stays until the next one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return control.Open(dir).Down(cmd.Context()) },
	}
	cmd.Flags().StringVar(&dir, "dir", labDir(), "folder of the lab ("+dirKey+")")
	return cmd
}

// guestExit is the exit code of a command that failed in a guest.
type guestExit int

// Error implements error.
func (e guestExit) Error() string { return fmt.Sprintf("the command ended with exit code %d", int(e)) }

func execCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "exec VM -- COMMAND", Short: "Run a shell command as root in a VM, by its console, and pass its exit code on", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, code, err := control.Open(dir).Exec(cmd.Context(), args[0], strings.Join(args[1:], " "))
			if err != nil {
				return err
			}
			if out != "" {
				fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSuffix(out, "\n"))
			}
			if code != 0 {
				return guestExit(code)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", labDir(), "folder of the lab ("+dirKey+")")
	return cmd
}

func faultCommand() *cobra.Command {
	var dir string
	var heal bool
	cmd := &cobra.Command{
		Use: "fault NAME", Short: "Break something: the engine, a backup, a move, or the node", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return control.Open(dir).Fault(cmd.Context(), args[0], heal)
		},
	}
	var long strings.Builder
	long.WriteString("Inject a fault into the lab. Those marked * last until they are taken back with --heal.\n\n")
	w := tabwriter.NewWriter(&long, 2, 0, 2, ' ', 0)
	for _, f := range control.Faults() {
		mark := " "
		if f.Lasting {
			mark = "*"
		}
		fmt.Fprintf(w, "%s %s\t%s\n", mark, f.Name, f.Text)
	}
	_ = w.Flush() // into memory
	cmd.Long = long.String()
	cmd.Flags().StringVar(&dir, "dir", labDir(), "folder of the lab ("+dirKey+")")
	cmd.Flags().BoolVar(&heal, "heal", false, "take a lasting fault back")
	return cmd
}
