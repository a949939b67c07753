package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/control"
	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/netns"
)

const (
	// dirKey names the environment variable that moves the lab's folder.
	dirKey     = "HOLDFAST_LAB_DIR"
	defaultDir = "/var/tmp/holdfast-lab"
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
	dirFlag(cmd, &o.dir)
	f.StringVar(&o.bin, "bin", programFolder(), "folder of the holdfast programs")
	f.StringVar(&o.level, "cluster-level", "4.8",
		"of the simulated cluster: from 4.7 on, backups take a snapshot; below they are live")
	f.Float64Var(&o.scale, "scale", 1, "speed of the simulated engine: 1 takes as long as a real one, 0.1 a tenth")
	f.StringSliceVar(&o.vms, "vm", []string{"web1"},
		"names of the VMs that are there from the start; each takes 512 MiB of memory")
}

func dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", labDir(), "folder of the lab ("+dirKey+")")
}

// level is a cluster level that a real engine 4.5 knows.
var level = regexp.MustCompile(`^4\.[2-8]$`)

// check looks for what makes no sense, and makes paths absolute. An error of its own is one in the command line.
func (o *labOptions) check() error {
	if !level.MatchString(o.level) {
		return fmt.Errorf("--cluster-level %s: there are 4.2 to 4.8", o.level)
	}
	if !(o.scale > 0 && o.scale <= 100) { // not a number is none of both
		return fmt.Errorf("--scale %g: a number above 0, up to 100", o.scale)
	}
	if len(o.vms) == 0 {
		return fmt.Errorf("--vm: at least one VM is needed")
	}
	if err := datacenter.CheckNames(o.vms); err != nil {
		return fmt.Errorf("--vm: %v", err) // used wrongly, whatever its kind
	}
	for _, path := range []*string{&o.dir, &o.bin} {
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return errs.Wrap("find", *path, err)
		}
	}
	for _, name := range []string{"holdfast", "holdfastd"} {
		path := filepath.Join(o.bin, name)
		if _, err := os.Stat(path); err != nil {
			return errs.New("find", path, errs.KindOf(err), err).
				WithNext("Run `make build` first, or say where the programs are with --bin.")
		}
	}
	return nil
}

func (o *labOptions) args() []string {
	return []string{
		"serve", "--dir", o.dir, "--bin", o.bin, "--cluster-level", o.level, "--scale", fmt.Sprint(o.scale),
		"--vm", strings.Join(o.vms, ","),
	}
}

func upCommand() *cobra.Command {
	var o labOptions
	var format string
	cmd := &cobra.Command{
		Use: "up", Args: cobra.NoArgs,
		Short: "Start an oVirt of one host, with a VM that runs, and a Holdfast node beside it",
		Long: "Start a lab in the background and return when its VM is up: a simulated oVirt engine over a real VM in\n" +
			"qemu and the real ovirt-imageio daemon, and a Holdfast node with an empty store. It has a network of its\n" +
			"own, which is reached from here by a link. docs/lab.md says what is real and what is simulated.\n" +
			"End it with `holdfast-lab down`.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "json" {
				return fmt.Errorf("-o %s: only json is known", format)
			}
			if err := o.check(); err != nil {
				return err
			}
			info, err := up(cmd.Context(), o, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if format == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(info)
			}
			return describe(cmd.OutOrStdout(), info, o.bin)
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
			folder, err := control.Take(o.dir)
			if err != nil {
				return err
			}
			defer folder.Close() // at the very end: down waits for it
			address, err := netns.Join()
			if err != nil {
				return err
			}
			defer func() { _ = netns.Leave() }() // else the kernel takes the link away, a little later
			disk, err := build(cmd.Context(), 0, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return control.Serve(cmd.Context(), folder, control.Options{
				BinDir: o.bin, Disk: disk.QCOW2, Address: address.String(), ClusterLevel: o.level, Scale: o.scale,
				VMs: o.vms, Log: cmd.ErrOrStderr(),
			})
		},
	}
	o.flags(cmd)
	return cmd
}

// describe tells a person what is there and what to try.
func describe(out io.Writer, i control.Info, bin string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"Engine", i.EngineURL}, {"User", i.User + ", password in " + i.PasswordFile}, {"CA", i.CAFile},
		{"VMs", strings.Join(i.VMs, ", ")},
		{"Storage", strings.Join(i.Domains, ", ")}, {"Node", i.Node}, {"  by TLS", i.NodeURL + ", token in " + i.TokenFile},
		{"  known by", i.NodeCAFile}, {"Store", i.Store + ", passphrase in " + i.PassphraseFile}, {"Log", i.LogFile},
	} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	exports := fmt.Sprintf("export PATH=%s:$PATH HOLDFAST_NODE=%s", shellWord(bin), shellWord(i.Node))
	if i.Dir != defaultDir {
		exports += " " + dirKey + "=" + shellWord(i.Dir)
	}
	vm := i.VMs[0]
	_, err := fmt.Fprintf(out, `
Try, as root:
  %s
  holdfast manager add lab --url %s --user %s --password-file %s --ca-file %s
  holdfast backup run %s --wait
  holdfast-lab exec %s -- 'dd if=/dev/urandom of=/srv/new bs=1M count=8; sync'
  holdfast backup run %s --wait
  holdfast restore instant %s --name restored --power-on --wait
  holdfast-lab fault node-killed
  holdfast-lab exec restored -- ls -l /srv/new
  holdfast-lab down
`, exports, i.EngineURL, i.User, shellWord(i.PasswordFile), shellWord(i.CAFile), vm, vm, vm, vm)
	return err
}

// plainWord needs no quotes in a shell.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=,-]+$`)

func shellWord(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return control.Quote(s)
}
