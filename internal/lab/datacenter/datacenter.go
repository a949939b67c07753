// Package datacenter puts the lab's parts together into a small oVirt: the simulated engine, one host with real
// machines, the real ovirt-imageio daemon, and a storage domain with the disk of a real Debian. Holdfast is not part of
// it; it is what Holdfast is pointed at.
//
// Terms. A data center is one such installation, in one process and its children. Its folder holds the disks and the
// files that a user of the engine needs: the CA's certificate and the password.
//
// Rules: everything lies in the folder, and every child ends with Close or with this process. What the product is told
// of the installation is what an administrator would know of a real one.
package datacenter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/host"
	"github.com/holdfast-backup/holdfast/internal/lab/imageio"
	"github.com/holdfast-backup/holdfast/internal/lab/nfsdomain"
	"github.com/holdfast-backup/holdfast/internal/lab/pki"
)

// Names of what is there from the start.
const (
	// User may do everything on the engine.
	User     = "admin@internal"
	password = "holdfast"
	// Local is the storage domain that VMs lie on, Spare an empty one.
	Local = "local"
	Spare = "spare"
)

// Options says what the installation has.
type Options struct {
	Dir     string // folder for everything; it is made
	Disk    string // image that every VM's disk is a copy of: internal/lab/debian
	Address string // where the engine, the imageio daemon and the host listen; default 127.0.0.1
	// RealPorts has the engine listen on 443 and imageio on 54322, as a real installation's do; otherwise on free ones.
	RealPorts bool
	// ClusterLevel decides how backups are made, Scale how fast the engine is: see engine.Options.
	ClusterLevel string
	Scale        float64
	VMs          []string  // names; each VM runs from the start. Default: web1
	Log          io.Writer // of the parts; nil is silent
}

// DataCenter is a running installation. Close it.
type DataCenter struct {
	Engine *engine.Engine
	Host   *host.Host
	URL    string // of the engine's API
	CAFile string
	// PasswordFile holds the password of User.
	PasswordFile string
	Address      string
	VMs          []VM

	closers []func()
}

// VM is a VM that was there from the start.
type VM struct {
	ID, Name string
	Disk     engine.DiskPlace
}

// Start starts the parts in the order in which they need each other, and the VMs. It returns when the VMs' processes
// run: their guests are still booting.
func Start(ctx context.Context, o Options) (_ *DataCenter, err error) {
	if o.Address == "" {
		o.Address = "127.0.0.1"
	}
	if len(o.VMs) == 0 {
		o.VMs = []string{"web1"}
	}
	if err := CheckNames(o.VMs); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	d := &DataCenter{
		Address: o.Address, CAFile: filepath.Join(o.Dir, "ca.pem"), PasswordFile: filepath.Join(o.Dir, "password"),
	}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := d.start(ctx, o); err != nil {
		return nil, errs.Wrap("start the lab's data center in", o.Dir, err)
	}
	return d, nil
}

func (d *DataCenter) start(ctx context.Context, o Options) error {
	log := slog.New(slog.NewTextHandler(o.Log, nil))
	ca, err := pki.New("Holdfast lab")
	if err != nil {
		return err
	}
	if err := d.writeFiles(o.Dir, ca.PEM()); err != nil {
		return err
	}
	images, err := d.startImageio(ctx, o, ca)
	if err != nil {
		return err
	}
	exports, err := nfsdomain.New(nfsdomain.Options{Logger: log})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, func() { _ = exports.Close() })
	domains := []engine.DomainSeed{{ID: uuid.NewString(), Name: Local}, {ID: uuid.NewString(), Name: Spare}}
	d.Host, err = host.New(host.Options{
		Dir: filepath.Join(o.Dir, "domains"), Domains: []string{domains[0].ID, domains[1].ID},
		Imageio: images, Exports: exports, Logger: log,
	})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, d.Host.Close)
	seeds, err := d.startVMs(ctx, o, domains[0].ID)
	if err != nil {
		return err
	}
	d.Engine, err = engine.New(engine.Options{
		Host: d.Host, Name: o.Address, HostAddress: o.Address, ClusterLevel: o.ClusterLevel, CA: ca, Domains: domains,
		Users: []engine.User{
			{Name: User, Password: password}, {Name: "nobody@internal", Password: password, Powerless: true},
		},
		VMs:   seeds,
		Scale: o.Scale, Logger: log,
	})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, d.Engine.Close)
	port := "0"
	if o.RealPorts {
		port = enginePort
	}
	d.URL, err = d.Engine.Start(context.WithoutCancel(ctx), net.JoinHostPort(o.Address, port))
	d.URL = strings.Replace(d.URL, ":"+enginePort+"/", "/", 1) // as people write it
	return err
}

// enginePort and imageioPort are those of every oVirt.
const (
	enginePort  = "443"
	imageioPort = 54322
)

// vmName is what a VM may be called here: narrower than oVirt, since the name is qemu's and a user's argument too.
var vmName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckNames tells whether VMs may be called so: errs.Invalid.
func CheckNames(vms []string) error {
	for i, name := range vms {
		if !vmName.MatchString(name) {
			return errs.Text("make the VM", strconv.Quote(name), errs.Invalid,
				"a name here has letters, digits, '.', '_' and '-', and begins with a letter or digit")
		}
		if slices.Contains(vms[:i], name) {
			return errs.Text("make the VM", name, errs.Invalid, "there would be two of that name")
		}
	}
	return nil
}

func (d *DataCenter) writeFiles(dir string, ca []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(d.CAFile, ca, 0o644); err != nil {
		return err
	}
	return os.WriteFile(d.PasswordFile, []byte(password+"\n"), 0o600)
}

func (d *DataCenter) startImageio(ctx context.Context, o Options, ca *pki.Authority) (*imageio.Daemon, error) {
	cert, key, err := ca.Server(o.Address)
	if err != nil {
		return nil, err
	}
	// In a folder of its own: a socket's path has to be short.
	options := imageio.Options{Cert: cert, Key: key, CA: ca.PEM(), Host: o.Address, Log: o.Log}
	if o.RealPorts {
		options.Port = imageioPort
	}
	daemon, err := imageio.Start(context.WithoutCancel(ctx), options)
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, daemon.Close)
	return daemon, nil
}

// memoryMiB is what a VM gets; the lab's Debian needs half of it.
const memoryMiB = 512

// startVMs makes the VMs' disks and starts them.
func (d *DataCenter) startVMs(ctx context.Context, o Options, domain string) ([]engine.VMSeed, error) {
	var seeds []engine.VMSeed
	for _, name := range o.VMs {
		place := engine.DiskPlace{Domain: domain, Disk: uuid.NewString(), Image: uuid.NewString(), Format: "cow"}
		place, err := d.Host.AddDisk(ctx, place, o.Disk)
		if err != nil {
			return nil, err
		}
		vm := VM{ID: uuid.NewString(), Name: name, Disk: place}
		spec := engine.VMSpec{
			ID: vm.ID, Name: name, MiB: memoryMiB, VCPUs: 1, Disks: []engine.DiskPlace{place}, Ifaces: []string{"virtio_scsi"},
		}
		if err := d.Host.StartVM(ctx, spec); err != nil {
			return nil, err
		}
		d.VMs = append(d.VMs, vm)
		seeds = append(seeds, engine.VMSeed{
			ID: vm.ID, Name: name, MiB: memoryMiB, VCPUs: 1, Running: true, Tags: []string{"gold"},
			Networks: []string{"ovirtmgmt"},
			Disks: []engine.DiskSeed{{
				ID: place.Disk, Image: place.Image, Alias: name + "_Disk1", Domain: domain, Format: "cow",
				Size: place.Size, Incremental: true,
			}},
		})
	}
	return seeds, nil
}

// Exec runs a command as root in a VM, by name or ID, and returns what it printed. A guest that still boots is waited
// for; a command that fails there is an error.
func (d *DataCenter) Exec(ctx context.Context, vm, command string) (string, error) {
	out, code, err := d.Host.Exec(ctx, vm, command)
	if err == nil && code != 0 {
		err = errs.Text("run in "+vm, command, errs.Invalid, fmt.Sprintf("exit code %d: %s", code, strings.TrimSpace(out)))
	}
	return out, err
}

// StopVMs ends all VMs without asking their guests. Those whose disks somebody else serves have to end while he does.
func (d *DataCenter) StopVMs(ctx context.Context) error {
	ids := d.Host.RunningVMs()
	failed := make([]error, len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() { failed[i] = d.Host.StopVM(ctx, id) })
	}
	all.Wait()
	return errors.Join(failed...)
}

// Close ends everything, newest first, and waits. The folder stays.
func (d *DataCenter) Close() {
	for i := len(d.closers) - 1; i >= 0; i-- {
		d.closers[i]()
	}
	d.closers = nil
}

// Probe looks at an export as a host does, and fails if there is no data domain.
func (d *DataCenter) Probe(ctx context.Context, export string) (*engine.DomainInfo, error) {
	found, err := d.Host.ProbeDomain(ctx, export, "")
	if err == nil && found == nil {
		err = errs.Text("look at export", export, errs.NotFound, "there is no data domain")
	}
	return found, err
}
