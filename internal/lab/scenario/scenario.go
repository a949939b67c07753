// Package scenario plays the story of the product's core on real parts, as a user would, by the command line: a real
// machine's disk is backed up, changed and backed up again, the machine boots from its backup, its disk moves away
// while it runs, and the backup is unharmed.
//
// The demo (holdfast-lab run) and the test are this one function. It believes nothing that Holdfast says about
// itself where something else can be asked: sums are taken from qemu-img's view of the disk, from inside the guest,
// and from the mounted files.
//
// It must run inside netns.Enter, since qemu asks for the NFS server at port 111. Steps run one after the other; every
// process it starts has ended when Core returns.
package scenario

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
	"github.com/holdfast-backup/holdfast/internal/lab/qemu"
)

// Options says what the scenario works with.
type Options struct {
	BinDir  string    // where the holdfast program lies
	WorkDir string    // an empty folder; takes about 2 GiB
	Disk    string    // an image of the lab's Debian (internal/lab/debian); it is copied, not written to
	Out     io.Writer // is told the story
}

const (
	// machineName is the machine's name in the store.
	machineName = "web1"
	// image is the machine's own disk, in the work folder.
	image = machineName + ".qcow2"
	// serveAt is where the backup is served. Port 2049 is free: the network is our own.
	serveAt = "127.0.0.1:2049"
	// bootWithin is how long a machine may take to its prompt. It takes a tenth of that on an idle machine.
	bootWithin = 4 * time.Minute
)

// core is one run of the scenario.
type core struct {
	opts     Options
	tell     *narrator
	holdfast *holdfast

	sums   [2]string     // SHA-256 of the disk at each point, by qemu-img
	points [2]importDone // the points, oldest first

	note, blob string // what the guest wrote before the second point: a line, and the sum of a big file
	vm         *qemu.VM
	server     *server
	url        string // where the server shows the disk
}

// Core plays the scenario from beginning to end. It returns the first thing that is not as it should be.
func Core(ctx context.Context, opts Options) (err error) {
	if err := parts.Need(parts.Machine, parts.Mount); err != nil {
		return err
	}
	p, err := newCore(opts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		cancel(nil) // kills whatever still runs; below we wait for it
		if p.vm != nil {
			p.vm.Kill()
		}
		if p.server != nil {
			p.server.process.Kill()
		}
	}()
	return play(ctx, cancel, p.tell, p.steps())
}

func (p *core) steps() []step {
	return []step{
		{"A store for backups", p.initStore},
		{"The first backup of a machine's disk", p.firstImport},
		{"The machine boots from its own disk and changes files", p.changeMachine},
		{"The second backup reads and stores only what differs", p.secondImport},
		{"The backup is served by NFS, as a qcow2 computed on the fly", p.serve},
		{"The machine boots from the backup and writes", p.bootFromBackup},
		{"Its disk moves away while it runs", p.moveAway},
		{"The server stops, the machine goes on", p.stopServer},
		{"Both points are what they were", p.pointsUnchanged},
		{"The points as files", p.mountPoints},
		{"The store", p.storeStatus},
	}
}

func newCore(opts Options) (*core, error) {
	work, err := filepath.Abs(opts.WorkDir)
	if err != nil {
		return nil, errs.Wrap("find", opts.WorkDir, err)
	}
	bin, err := filepath.Abs(filepath.Join(opts.BinDir, "holdfast"))
	if err != nil {
		return nil, errs.Wrap("find", opts.BinDir, err)
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, errs.New("find", bin, errs.KindOf(err), err).WithNext("Run `make build` first.")
	}
	opts.WorkDir = work
	passphrase := filepath.Join(work, "passphrase")
	if err := os.WriteFile(passphrase, []byte("a passphrase for the lab only\n"), 0o600); err != nil {
		return nil, errs.Wrap("write", passphrase, err)
	}
	tell := newNarrator(opts.Out)
	return &core{opts: opts, tell: tell, holdfast: &holdfast{bin: bin, dir: work, tell: tell}}, nil
}

// tool runs one of qemu's or the system's programs in the work folder, shown to the reader.
func (p *core) tool(ctx context.Context, args ...string) (string, error) {
	p.tell.command(args, "")
	var out bytes.Buffer
	process, err := proc.Start(ctx, proc.Spec{Args: args, Dir: p.opts.WorkDir, Stdout: &out})
	if err != nil {
		return "", err
	}
	<-process.Done()
	return out.String(), process.Wait(ctx)
}

// path is where a file of the work folder lies, for those who do not work in it.
func (p *core) path(name string) string { return filepath.Join(p.opts.WorkDir, name) }

// wrong is the error of something that is not as it should be.
func wrong(what, format string, args ...any) error {
	return errs.Text("check", what, errs.Bug, fmt.Sprintf(format, args...))
}
