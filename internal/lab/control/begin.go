package control

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/product"
)

// Fault describes a fault for people.
type Fault = engine.FaultInfo

// FaultNodeKilled is a fault of our own: the node ends as by kill -9 and is started again, as systemd would.
const FaultNodeKilled = "node-killed"

// Faults lists what can be injected.
func Faults() []Fault {
	return append(slices.Clone(engine.Faults),
		Fault{Name: FaultNodeKilled, Text: "the node is killed (kill -9) and started again"})
}

// bootWithin is how long a guest may take until it takes commands.
const bootWithin = 4 * time.Minute

// Options says what lab is wanted.
type Options struct {
	BinDir       string // of the product's programs
	Disk         string // image that the VMs' disks are copies of
	Address      string // where everything listens; it must be the lab's alone
	ClusterLevel string
	Scale        float64
	VMs          []string
	Log          io.Writer
}

// Serve runs a lab in a folder until ctx ends or somebody calls Down.
func Serve(ctx context.Context, f *Folder, o Options) error {
	return serve(ctx, f, func(ctx context.Context) (lab, Info, error) { return begin(ctx, f.dir, o) })
}

// installation is a data center with a node beside it.
type installation struct {
	center *datacenter.DataCenter
	node   *product.Node

	restart sync.Mutex // held while the node is killed and started
}

// begin starts everything and waits until the guests take commands.
func begin(ctx context.Context, dir string, o Options) (_ lab, _ Info, err error) {
	in := &installation{}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.Close())
		}
	}()
	in.center, err = datacenter.Start(ctx, datacenter.Options{
		Dir: filepath.Join(dir, centerName), Disk: o.Disk, Address: o.Address, RealPorts: true,
		ClusterLevel: o.ClusterLevel, Scale: o.Scale, VMs: o.VMs, Log: o.Log,
	})
	if err != nil {
		return nil, Info{}, err
	}
	in.node, err = product.Install(ctx, product.Options{
		BinDir: o.BinDir, Dir: filepath.Join(dir, nodeName), Address: o.Address, Log: o.Log,
	})
	if err != nil {
		return nil, Info{}, err
	}
	if err := in.node.Start(ctx); err != nil {
		return nil, Info{}, err
	}
	boot, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	for _, vm := range in.center.VMs {
		if _, err := in.center.Exec(boot, vm.Name, "true"); err != nil {
			return nil, Info{}, err
		}
	}
	return in, in.describe(dir), nil
}

func (in *installation) describe(dir string) Info {
	i := Info{
		EngineURL: in.center.URL, User: datacenter.User, PasswordFile: in.center.PasswordFile, CAFile: in.center.CAFile,
		Domains: []string{datacenter.Local, datacenter.Spare},
		Node:    "unix://" + in.node.Socket, Socket: in.node.Socket,
		NodeURL: in.node.API, NodeCAFile: in.node.CertFile, TokenFile: in.node.TokenFile,
		Store: in.node.Store, PassphraseFile: in.node.PassphraseFile,
		Dir: dir, LogFile: filepath.Join(dir, LogName), PID: os.Getpid(),
	}
	for _, vm := range in.center.VMs {
		i.VMs = append(i.VMs, vm.Name)
	}
	return i
}

// Exec implements lab. A shell of its own leaves the one at the console as it is, whatever the command does.
func (in *installation) Exec(ctx context.Context, vm, command string) (string, int, error) {
	output, code, err := in.center.Host.Exec(ctx, vm, "bash -c "+Quote(command))
	var e *errs.Error
	if errs.Is(err, errs.NotFound) && errors.As(err, &e) {
		var names []string
		for _, v := range in.center.VMs {
			names = append(names, v.Name)
		}
		return "", 0, e.WithNext(
			"The lab began with " + strings.Join(names, ", ") + "; others have the names they were restored with.",
		)
	}
	return output, code, err
}

// Quote makes one word of s for a shell.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Fault implements lab.
func (in *installation) Fault(ctx context.Context, name string) error {
	if name != FaultNodeKilled {
		return in.center.Engine.Fault(name)
	}
	in.restart.Lock()
	defer in.restart.Unlock()
	in.node.Kill()
	return in.node.Start(ctx)
}

// Heal implements lab.
func (in *installation) Heal(name string) { in.center.Engine.Heal(name) }

// Close implements lab. VMs may run from the node, and the node may have work at the engine.
func (in *installation) Close() error {
	in.restart.Lock()
	defer in.restart.Unlock()
	var all []error
	if in.center != nil {
		all = append(all, in.center.StopVMs(context.Background())) // each has a limit of its own
	}
	if in.node != nil {
		all = append(all, in.node.Stop())
	}
	if in.center != nil {
		in.center.Close()
	}
	return errors.Join(all...)
}
