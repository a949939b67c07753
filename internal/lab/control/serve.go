package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/datacenter"
	"github.com/holdfast-backup/holdfast/internal/lab/engine"
	"github.com/holdfast-backup/holdfast/internal/lab/product"
)

// FaultNodeKilled is a fault of our own: the node ends as by kill -9 and is started again, as systemd would.
const FaultNodeKilled = "node-killed"

// Faults lists what Fault knows.
func Faults() []engine.FaultInfo {
	return append(slices.Clone(engine.Faults), engine.FaultInfo{Name: FaultNodeKilled, Text: "the node is killed (kill -9) and started again"})
}

// bootWithin is how long a guest may take until it takes commands.
const bootWithin = 4 * time.Minute

// Options says what lab is wanted.
type Options struct {
	Dir          string
	BinDir       string // of the product's programs
	Disk         string // image that the VMs' disks are copies of
	Address      string
	ClusterLevel string
	Scale        float64
	VMs          []string
	Log          io.Writer
}

// server is a lab that is up.
type server struct {
	info   Info
	center *datacenter.DataCenter
	node   *product.Node
	down   context.CancelFunc
}

// Serve runs a lab until ctx ends or somebody calls Down. It takes the folder over: what lies in it is removed first.
func Serve(ctx context.Context, o Options) (err error) {
	if err := clear(o.Dir, true); err != nil {
		return err
	}
	lock, err := lockDir(o.Dir)
	if errs.Is(err, errs.Busy) {
		return errs.Text("start a lab in", o.Dir, errs.Exists, "one is up there").WithNext("End it first: holdfast-lab down")
	}
	if err != nil {
		return err
	}
	defer lock.Close() // at the very end: Down waits for it
	if err := clear(o.Dir, false); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{down: cancel}
	s.center, err = datacenter.Start(ctx, datacenter.Options{
		Dir: filepath.Join(o.Dir, "datacenter"), Disk: o.Disk, Address: o.Address, ClusterLevel: o.ClusterLevel, Scale: o.Scale, VMs: o.VMs, Log: o.Log,
	})
	if err != nil {
		return err
	}
	defer s.center.Close()
	s.node, err = product.Install(ctx, product.Options{BinDir: o.BinDir, Dir: o.Dir, Address: o.Address, Log: o.Log})
	if err != nil {
		return err
	}
	if err := s.node.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.node.Stop()) }()
	if err := s.awaitGuests(ctx); err != nil {
		return err
	}
	s.info = Info{
		EngineURL: s.center.URL, User: datacenter.User, PasswordFile: s.center.PasswordFile, CAFile: s.center.CAFile,
		Domains: []string{datacenter.Local, datacenter.Spare}, Node: "unix://" + s.node.Socket, Socket: s.node.Socket, NodeURL: s.node.API,
		TokenFile: s.node.TokenFile, Store: s.node.Store, PassphraseFile: s.node.PassphraseFile,
		Dir: o.Dir, LogFile: filepath.Join(o.Dir, LogName), PID: os.Getpid(),
	}
	for _, vm := range s.center.VMs {
		s.info.VMs = append(s.info.VMs, vm.Name)
	}
	if err := writeInfo(s.info); err != nil {
		return errs.Wrap("start a lab in", o.Dir, err)
	}
	defer os.Remove(filepath.Join(o.Dir, infoName))
	return s.serve(ctx, o.Dir)
}

// lockDir takes the folder's lock, which a lab holds as long as anything of it runs: errs.Busy.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.Wrap("lock", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, errs.New("lock", dir, errs.Busy, err)
	}
	return f, nil
}

// clear removes what an earlier lab left in the folder, or only looks whether that may be done: a folder that was never
// a lab's is not touched.
func clear(dir string, look bool) error {
	const op = "start a lab in"
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return errs.Wrap(op, dir, os.MkdirAll(dir, 0o755))
	}
	if err != nil {
		return errs.Wrap(op, dir, err)
	}
	ours := slices.ContainsFunc(names, func(e os.DirEntry) bool { return e.Name() == lockName })
	begun := len(names) == 1 && names[0].Name() == LogName
	if len(names) > 0 && !ours && !begun {
		return errs.Text(op, dir, errs.Exists, "the folder is not empty, and no lab was there before").WithNext("Name another with --dir.")
	}
	for _, e := range names {
		if look || e.Name() == LogName || e.Name() == lockName { // the log is being written to
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return errs.Wrap(op, dir, err)
		}
	}
	return nil
}

// awaitGuests waits until every guest takes commands.
func (s *server) awaitGuests(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	for _, vm := range s.center.VMs {
		if _, err := s.center.Exec(ctx, vm.Name, "true"); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) serve(ctx context.Context, dir string) error {
	path := filepath.Join(dir, socketName)
	l, err := net.Listen("unix", path)
	if err != nil {
		return errs.Wrap("listen on", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return errs.Wrap("listen on", path, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.info, nil) })
	mux.HandleFunc("POST /exec", func(w http.ResponseWriter, r *http.Request) {
		var q execRequest
		if !read(w, r, &q) {
			return
		}
		out, code, err := s.center.Host.Exec(r.Context(), q.VM, q.Command)
		reply(w, execAnswer{out, code}, err)
	})
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		var q faultRequest
		if read(w, r, &q) {
			reply(w, struct{}{}, s.fault(ctx, q))
		}
	})
	mux.HandleFunc("POST /down", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, struct{}{}, nil)
		s.down()
	})
	h := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(l) }()
	select {
	case <-ctx.Done():
	case err := <-ended:
		return errs.Wrap("listen on", path, err)
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = h.Shutdown(drain) // whoever still waits for an answer is cut off
	return nil
}

func (s *server) fault(ctx context.Context, q faultRequest) error {
	if q.Name == FaultNodeKilled {
		s.node.Kill()
		return s.node.Start(ctx)
	}
	if q.Heal {
		s.center.Engine.Heal(q.Name)
		return nil
	}
	if err := s.center.Engine.Fault(q.Name); err != nil {
		var names []string
		for _, f := range Faults() {
			names = append(names, f.Name)
		}
		return errs.New("inject fault", q.Name, errs.KindOf(err), err).WithNext("There are: " + strings.Join(names, ", ") + ".")
	}
	return nil
}

func read(w http.ResponseWriter, r *http.Request, into any) bool {
	err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(into)
	if err != nil {
		reply(w, nil, errs.New("read a request", r.URL.Path, errs.Invalid, err))
	}
	return err == nil
}

func reply(w http.ResponseWriter, answer any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		answer = refusal{int(errs.KindOf(err)), err.Error(), errs.NextStep(err)}
	}
	_ = json.NewEncoder(w).Encode(answer) // whoever asked may have gone
}
