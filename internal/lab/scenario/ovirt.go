package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/product"
)

// OVirtOptions says how the lab of the oVirt scenario is.
type OVirtOptions struct {
	Options
	Address      string  // where everything listens; default 127.0.0.1
	ClusterLevel string  // default the simulator's
	Scale        float64 // of the simulated engine's delays; default 1
}

// restoredName is what the restored VM is called.
const restoredName = machineName + "-restored"

// ovirt is one run of the scenario.
type ovirt struct {
	opts   OVirtOptions
	tell   *narrator
	log    *os.File // what the parts say
	center *datacenter.DataCenter
	node   *product.Node
	before engine.Snapshot // what the engine had when only the VM was there

	points     [2]backedUp // the points, oldest first
	sums       [2]string   // SHA-256 of the disk at each point
	note, blob string      // what the guest wrote before the second point: a line, and the sum of a big file
	session    string
}

// OVirt plays the main job with oVirt from beginning to end: back a running VM up, start it from its backup, migrate it
// to production storage while it runs, and leave nothing behind. It returns the first thing that is not as it should be.
// It must run inside netns.Enter, since hosts ask for the NFS server at port 111.
func OVirt(ctx context.Context, o OVirtOptions) error {
	if err := parts.Need(parts.Machine, parts.Imageio); err != nil {
		return err
	}
	p, err := newOVirt(o)
	if err != nil {
		return err
	}
	return p.play(ctx, p.steps())
}

func newOVirt(o OVirtOptions) (*ovirt, error) {
	if o.Address == "" {
		o.Address = "127.0.0.1"
	}
	var err error
	if o.WorkDir, err = filepath.Abs(o.WorkDir); err != nil {
		return nil, errs.Wrap("find", o.WorkDir, err)
	}
	if err := findPrograms(o.BinDir); err != nil {
		return nil, err
	}
	p := &ovirt{opts: o, tell: newNarrator(o.Out)}
	if p.log, err = os.Create(filepath.Join(o.WorkDir, "lab.log")); err != nil {
		return nil, errs.Wrap("write", "the lab's log", err)
	}
	return p, nil
}

// play plays the steps and ends everything.
func (p *ovirt) play(ctx context.Context, steps []step) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer p.end()
	err := play(ctx, cancel, p.tell, steps)
	if err != nil {
		p.showLog()
	}
	return err
}

// findPrograms looks whether the product was built.
func findPrograms(dir string) error {
	for _, name := range []string{"holdfast", "holdfastd"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return errs.Wrap("find", filepath.Join(dir, name), err)
		}
	}
	return nil
}

// end ends everything that still runs.
func (p *ovirt) end() {
	if p.node != nil {
		p.node.Kill()
	}
	if p.center != nil {
		p.center.Close()
	}
	_ = p.log.Close()
}

// logLines is how much of the log is shown when the play ends badly.
const logLines = 60

func (p *ovirt) showLog() {
	b, err := os.ReadFile(p.log.Name())
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	p.tell.say("The end of the lab's log:")
	for _, l := range lines[max(0, len(lines)-logLines):] {
		p.tell.printf("   > %s\n", l)
	}
}

func (p *ovirt) steps() []step {
	return []step{
		{"The lab: an oVirt of one host with a real VM, and a Holdfast node", p.startLab},
		{"The node gets to know the engine", p.addManager},
		{"A full backup of the running VM", p.fullBackup},
		{"The guest changes files; the second backup reads only what changed", p.incrementalBackup},
		{"Instant restore: the VM starts from its backup", p.restore},
		{"Live migration to local storage while it runs", p.migrate},
		{"Release: nothing is left behind", p.release},
		{"Full restore: the VM is copied back, beside the original", p.copyBack},
		{"Both points are what they were", p.pointsUnchanged},
	}
}

func (p *ovirt) startLab(ctx context.Context) (string, error) {
	begun := time.Now()
	var err error
	p.center, err = datacenter.Start(ctx, datacenter.Options{
		Dir: filepath.Join(p.opts.WorkDir, "oVirt"), Disk: p.opts.Disk, Address: p.opts.Address, ClusterLevel: p.opts.ClusterLevel,
		Scale: p.opts.Scale, VMs: []string{machineName}, Log: p.log,
	})
	if err != nil {
		return "", err
	}
	p.tell.say("Simulated: the engine, at %s.", p.center.URL)
	p.tell.say("Real: the VM %s in qemu with a Debian 12 disk, ovirt-imageio, and a host that reads NFS by libnfs.", machineName)
	p.node, err = product.Install(ctx, product.Options{BinDir: p.opts.BinDir, Dir: filepath.Join(p.opts.WorkDir, "node"), Address: p.opts.Address, Log: p.log})
	if err != nil {
		return "", err
	}
	if err := p.node.Start(ctx); err != nil {
		return "", err
	}
	p.tell.say("The node: holdfastd with an empty store, at %s.", p.node.Socket)
	boot, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	if _, err := p.center.Exec(boot, machineName, "true"); err != nil {
		return "", err
	}
	return fmt.Sprintf("root prompt after %.1f s", time.Since(begun).Seconds()), nil
}

// holdfast runs the command line, shown to the reader.
func (p *ovirt) holdfast(ctx context.Context, result any, args ...string) error {
	shown := slices.Concat([]string{"holdfast"}, args)
	if result != nil {
		shown = append(shown, "-o", "json")
	}
	p.tell.command(shown, "")
	return p.node.Run(ctx, result, p.tell.quoted(), args...)
}

// guest runs a command in a VM and shows it.
func (p *ovirt) guest(ctx context.Context, vm, command string) (string, error) {
	p.tell.printf("   %s# %s\n", vm, command)
	out, err := p.center.Exec(ctx, vm, command)
	out = strings.TrimSpace(out)
	if out != "" {
		p.tell.say("%s", strings.ReplaceAll(out, "\n", "\n   "))
	}
	return out, err
}

func (p *ovirt) addManager(ctx context.Context) (string, error) {
	err := p.holdfast(ctx, nil, "manager", "add", "lab", "--url", p.center.URL, "--user", datacenter.User,
		"--password-file", p.center.PasswordFile, "--ca-file", p.center.CAFile)
	if err != nil {
		return "", err
	}
	p.before = p.center.Engine.Snapshot()
	return "its certificate is trusted, the login works", p.holdfast(ctx, nil, "vm", "list")
}

// checkNothing compares what is on the engine with what was there before, but for what is expected.
func (p *ovirt) checkNothing(expected ...string) error {
	left := slices.DeleteFunc(p.center.Engine.Leftovers(p.before), func(line string) bool {
		kind, _, _ := strings.Cut(line, " ")
		return slices.Contains(expected, kind)
	})
	if len(left) > 0 {
		return wrong("the engine", "there is left: %s", strings.Join(left, "; "))
	}
	return nil
}
