// Package product installs Holdfast into a folder and runs it, as an administrator would: a store made by `holdfast
// init`, a configuration file, the daemon as a process of its own, and the command line. The lab knows the product by
// its programs alone.
//
// A Node's daemon can be killed and started again at any time; everything it keeps is in the folder. It ends with this
// process, however that ends.
package product

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

const (
	// startWithin is how long the daemon may take until it is ready. It takes a second.
	startWithin = time.Minute
	// stopWithin is how long it may take to end.
	stopWithin = 2 * time.Minute
	// maxSocketPath is the longest path of a socket in bytes (sockaddr_un, unix(7)).
	maxSocketPath = 107
	// stateName is the folder of what the node knows.
	stateName = "state"
)

// Options says where the product is and where it works.
type Options struct {
	BinDir  string    // of holdfast and holdfastd
	Dir     string    // is made; the node's socket lies in it, so its path has to be short
	Address string    // where NFS is served, on port 2049, and the API on port 9443
	Allow   string    // who may mount: an address or a network; default Address
	Log     io.Writer // sees what the daemon logs; nil is silent
}

// Node is an installed product.
type Node struct {
	// Socket, Store, PassphraseFile and TokenFile are what a user of the command line needs.
	Socket, Store, PassphraseFile, TokenFile string
	// API is the node's address for those who do not share its machine, CertFile the certificate to know it by.
	API, CertFile string

	opts   Options
	config string
	mu     sync.Mutex // guards daemon
	daemon *proc.Process
}

// Install makes an empty store and the configuration.
func Install(ctx context.Context, o Options) (*Node, error) {
	const op = "install Holdfast in"
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.Allow == "" {
		o.Allow = o.Address
	}
	n := &Node{
		opts: o, config: filepath.Join(o.Dir, "holdfastd.yaml"),
		Socket: filepath.Join(o.Dir, "node.sock"), Store: filepath.Join(o.Dir, "store"),
		PassphraseFile: filepath.Join(o.Dir, "passphrase"), TokenFile: filepath.Join(o.Dir, "token"),
		API: "https://" + net.JoinHostPort(o.Address, "9443"), CertFile: filepath.Join(o.Dir, stateName, "tls", "cert.pem"),
	}
	if len(n.Socket) > maxSocketPath {
		return nil, errs.Text(op, o.Dir, errs.Invalid, "its path is too long for a socket in it").
			WithNext("Choose a shorter one.")
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, errs.Wrap(op, o.Dir, err)
	}
	if err := os.WriteFile(n.PassphraseFile, []byte("a passphrase for the lab only\n"), 0o600); err != nil {
		return nil, errs.Wrap(op, o.Dir, err)
	}
	if err := os.WriteFile(n.config, []byte(n.configuration()), 0o600); err != nil {
		return nil, errs.Wrap(op, o.Dir, err)
	}
	return n, errs.Wrap(op, o.Dir, n.Run(ctx, nil, io.Discard, "init", n.Store))
}

func (n *Node) configuration() string {
	return fmt.Sprintf(`store: %s
passphrase_file: %s
state: %s
api:
  socket: %s
  listen: %s:9443
  token_file: %s
nfs:
  listen: %s:2049
  allow: [%s]
  address: %s
  portmap: true
`, n.Store, n.PassphraseFile, filepath.Join(n.opts.Dir, stateName), n.Socket, n.opts.Address, n.TokenFile,
		n.opts.Address, n.opts.Allow, n.opts.Address)
}

// Start starts the daemon and returns when it says that it is ready.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.runs() {
		return errs.Text("start", "holdfastd", errs.Exists, "it runs already")
	}
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(n.opts.Dir, "ready"), Net: "unixgram"})
	if err != nil {
		return errs.Wrap("start", "holdfastd", err)
	}
	defer os.Remove(filepath.Join(n.opts.Dir, "ready"))
	defer ready.Close()
	// The daemon lives until it is ended, whatever becomes of the caller's context.
	n.daemon, err = proc.Start(context.WithoutCancel(ctx), proc.Spec{
		Args: []string{filepath.Join(n.opts.BinDir, "holdfastd"), "--config", n.config}, Stderr: n.opts.Log,
		Env: []string{"NOTIFY_SOCKET=" + filepath.Join(n.opts.Dir, "ready")},
	})
	if err != nil {
		return err
	}
	told := make(chan error, 1)
	go func() {
		_, err := ready.Read(make([]byte, 64)) // ends with the socket
		told <- err
	}()
	late := time.NewTimer(startWithin)
	defer late.Stop()
	select {
	case err = <-told:
	case <-n.daemon.Done():
		err = n.daemon.Wait(ctx)
		if err == nil {
			err = errs.Text("start", "holdfastd", errs.Bug, "it ended at once")
		}
	case <-ctx.Done():
		err = ctx.Err()
	case <-late.C:
		err = errs.Text("start", "holdfastd", errs.Bug,
			"it is not ready after "+startWithin.String()+"; it said: "+n.daemon.Tail())
	}
	if err != nil {
		n.daemon.Kill()
	}
	return err
}

// runs tells whether the daemon runs. The caller holds mu.
func (n *Node) runs() bool {
	if n.daemon == nil {
		return false
	}
	select {
	case <-n.daemon.Done():
		return false
	default:
		return true
	}
}

// Kill ends the daemon as kill -9 does.
func (n *Node) Kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.daemon != nil {
		n.daemon.Kill()
	}
}

// Stop ends the daemon as systemd does. It must end cleanly.
func (n *Node) Stop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.daemon == nil {
		return nil
	}
	return n.daemon.Stop(syscall.SIGTERM, stopWithin)
}

// Done is closed when the daemon that was started last has ended.
func (n *Node) Done() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.daemon.Done()
}

// Environment is what the command line needs to know to find the node and its store.
func (n *Node) Environment() []string {
	return []string{"HOLDFAST_NODE=unix://" + n.Socket, "HOLDFAST_STORE=" + n.Store,
		"HOLDFAST_PASSPHRASE_FILE=" + n.PassphraseFile}
}

// inTurn is a writer for two who write at the same time.
type inTurn struct {
	mu sync.Mutex // held while w is written to
	w  io.Writer
}

// Write implements io.Writer.
func (i *inTurn) Write(b []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.w.Write(b)
}

// Run runs the command line to its end. Without a result, stdout and stderr go to out; with one, JSON is asked for and
// decoded, and stderr alone goes to out. An error carries the exit code as "exit status N" and what was said.
func (n *Node) Run(ctx context.Context, result any, out io.Writer, args ...string) error {
	if result != nil {
		args = append(args, "-o", "json")
	}
	var document bytes.Buffer
	both := &inTurn{w: out}
	spec := proc.Spec{
		Args: append([]string{filepath.Join(n.opts.BinDir, "holdfast")}, args...), Env: n.Environment(),
		Stdout: both, Stderr: both,
	}
	if result != nil {
		spec.Stdout = &document
	}
	p, err := proc.Start(ctx, spec)
	if err != nil {
		return err
	}
	<-p.Done()
	if err := p.Wait(ctx); err != nil || result == nil {
		return err
	}
	if err := json.Unmarshal(document.Bytes(), result); err != nil {
		return errs.New("read the output of holdfast", args[0], errs.Bug, fmt.Errorf("%q: %w", document.String(), err))
	}
	return nil
}
