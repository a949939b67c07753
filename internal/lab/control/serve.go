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
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// lab is what a server lets others use.
type lab interface {
	// Exec runs a shell command in a VM, by name or ID.
	Exec(ctx context.Context, vm, command string) (output string, code int, err error)
	// Fault and Heal take a name of Faults.
	Fault(ctx context.Context, name string) error
	Heal(name string)
	// Close ends everything and waits. Its error is what did not end as it should.
	Close() error
}

// server answers those who use the lab.
type server struct {
	dir  string
	down context.CancelFunc // ends the lab
	over chan struct{}      // closed when nothing of it runs any more
	err  error              // how it ended; set before over is closed

	mu    sync.Mutex // guards what follows
	state string     // "starting", "", "ending"
	lab   lab
	info  Info
}

// serve runs the lab that begin starts, until ctx ends or somebody calls Down.
func serve(ctx context.Context, f *Folder, begin func(context.Context) (lab, Info, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{dir: f.dir, down: cancel, over: make(chan struct{}), state: "starting"}
	stop, err := s.listen()
	if err != nil {
		return err
	}
	defer stop()
	ready := false
	l, info, err := begin(ctx)
	if err == nil {
		err = writeInfo(info)
	}
	if err == nil {
		s.set("", l, info)
		ready = true
		<-ctx.Done()
	} else if ctx.Err() != nil {
		err = errs.Text(opStart, f.dir, errs.Canceled, "it was ended before it was ready")
	}
	s.set("ending", nil, Info{})
	if l != nil {
		s.err = l.Close()
	}
	if !ready {
		_ = f.clear() // the log says what there is to say; what stays is removed by the next one
	}
	close(s.over)
	return errors.Join(err, s.err)
}

func (s *server) set(state string, l lab, i Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.lab, s.info = state, l, i
}

// get returns the lab if it is there to be used.
func (s *server) get() (lab, Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != "" {
		return nil, Info{}, errs.Text("use the lab in", s.dir, errs.Busy, "it is "+s.state).
			WithNext("Wait until it has, or end it: holdfast-lab down")
	}
	return s.lab, s.info, nil
}

// writeInfo leaves the Info in the folder for people who look; scripts ask for it when they start the lab.
func writeInfo(i Info) error {
	b, err := json.MarshalIndent(i, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(i.Dir, infoName), append(b, '\n'), 0o600)
	}
	return errs.Wrap(opStart, i.Dir, err)
}

// listen begins to answer. After stop nobody is answered any more.
func (s *server) listen() (stop func(), err error) {
	path := filepath.Join(s.dir, socketName)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, errs.Wrap("listen on", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, errs.Wrap("listen on", path, err)
	}
	h := &http.Server{Handler: s.handler(), ReadHeaderTimeout: time.Minute}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = h.Serve(l) // always ends with an error: that it was closed
	}()
	return func() {
		drain, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = h.Shutdown(drain)
		_ = h.Close() // whoever still waits for an answer is cut off
		<-ended
		_ = os.Remove(filepath.Join(s.dir, infoName)) // it is not true any more
	}, nil
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		_, info, err := s.get()
		reply(w, info, err)
	})
	mux.HandleFunc("POST /exec", func(w http.ResponseWriter, r *http.Request) {
		var q execRequest
		l, _, err := s.get()
		if err == nil {
			err = read(r, &q)
		}
		var a execAnswer
		if err == nil {
			a.Output, a.Code, err = l.Exec(r.Context(), q.VM, q.Command)
		}
		reply(w, a, err)
	})
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		var q faultRequest
		l, _, err := s.get()
		if err == nil {
			err = read(r, &q)
		}
		if err == nil {
			err = s.fault(r.Context(), l, q)
		}
		reply(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /down", func(w http.ResponseWriter, r *http.Request) {
		s.down()
		select {
		case <-s.over:
			reply(w, struct{}{}, s.err)
		case <-r.Context().Done():
		}
	})
	return mux
}

func (s *server) fault(ctx context.Context, l lab, q faultRequest) error {
	i := slices.IndexFunc(Faults(), func(f Fault) bool { return f.Name == q.Name })
	switch {
	case i < 0:
		return errs.Text("find the fault", q.Name, errs.NotFound, "there is none of that name").
			WithNext("See holdfast-lab fault --help.")
	case !q.Heal:
		// Whoever asked may go: what was begun is finished.
		return l.Fault(context.WithoutCancel(ctx), q.Name)
	case q.Name == FaultNodeKilled:
		return errs.Text("take back the fault", q.Name, errs.Invalid, "it does not last: the node was started again")
	}
	l.Heal(q.Name)
	return nil
}

func read(r *http.Request, into any) error {
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(into); err != nil {
		return errs.New("read a request", r.URL.Path, errs.Invalid, err)
	}
	return nil
}

func reply(w http.ResponseWriter, answer any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		answer = refuse(err)
	}
	_ = json.NewEncoder(w).Encode(answer) // whoever asked may have gone
}
