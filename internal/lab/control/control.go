// Package control runs a lab in the background, for people and scripts to play with: a data center and a node beside
// it, in one folder and one process with its children. Who knows the folder can look up where everything is, run
// commands in the guests, break things, and end it.
//
// Terms. Serve is the lab's process. A Lab is the view of those who use it, by the socket in its folder. An Info is
// what they are told; it is there when everything is ready. A Folder is a lab's claim on its folder.
//
// Rules:
//
//  1. One lab to a folder, which it locks as long as anything of it runs.
//  2. A folder that was never a lab's is not touched; in one that was, only what a lab makes is removed.
//  3. What a killed lab left is no obstacle to the next one, which begins from nothing. All of it lies in the folder.
//  4. Down answers when nothing runs any more, and says so if something did not end as it should.
//
// The tests run the server over a lab that is made up; the whole of it, real and by its command line, is tested in
// internal/lab.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Info is what a user of a lab has to know. Its JSON is a promise to scripts.
type Info struct {
	EngineURL    string   `json:"engine_url"`
	User         string   `json:"user"`
	PasswordFile string   `json:"password_file"`
	CAFile       string   `json:"ca_file"`
	VMs          []string `json:"vms"`
	Domains      []string `json:"storage_domains"`
	// Node is the node's socket as --node takes it, Socket its path. NodeURL is the node's address for those with the
	// token, NodeCAFile the certificate to know it by.
	Node           string `json:"node"`
	Socket         string `json:"node_socket"`
	NodeURL        string `json:"node_url"`
	NodeCAFile     string `json:"node_ca_file"`
	TokenFile      string `json:"token_file"`
	Store          string `json:"store"`
	PassphraseFile string `json:"passphrase_file"`
	Dir            string `json:"dir"`
	LogFile        string `json:"log_file"`
	PID            int    `json:"pid"`
}

// Lab is a lab that somebody runs in a folder.
type Lab struct {
	dir    string
	client *http.Client
}

// Open returns the lab of a folder; it need not be up.
func Open(dir string) *Lab {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, socketName))
	}
	return &Lab{dir: dir, client: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Info returns what must be known: errs.NotFound if no lab is up there, errs.Busy if one is starting or ending.
func (l *Lab) Info(ctx context.Context) (Info, error) {
	var i Info
	return i, l.call(ctx, http.MethodGet, "/info", nil, &i)
}

// execRequest and execAnswer are a command and its outcome.
type execRequest struct {
	VM      string `json:"vm"`
	Command string `json:"command"`
}

type execAnswer struct {
	Output string `json:"output"`
	Code   int    `json:"code"`
}

// Exec runs a command as root in a VM, in a shell of its own, and returns what it printed and its exit code. A command
// that still runs when ctx ends is interrupted.
func (l *Lab) Exec(ctx context.Context, vm, command string) (output string, code int, err error) {
	var a execAnswer
	err = l.call(ctx, http.MethodPost, "/exec", execRequest{vm, command}, &a)
	return a.Output, a.Code, err
}

type faultRequest struct {
	Name string `json:"name"`
	Heal bool   `json:"heal"`
}

// Fault injects a fault, or takes one back that lasts or has not struck yet.
func (l *Lab) Fault(ctx context.Context, name string, heal bool) error {
	return l.call(ctx, http.MethodPost, "/fault", faultRequest{name, heal}, nil)
}

// Down ends the lab, also one that is just starting, and waits until nothing of it runs. Then it removes what the lab
// has made, unless that is to be kept; what a killed lab has left it removes too. wasUp tells whether a lab ran. If
// something did not end as it should, that is the error, and everything is kept.
func (l *Lab) Down(ctx context.Context, keep bool) (wasUp bool, err error) {
	const op = "end the lab in"
	for asked := false; ; {
		lock, err := lockDir(l.dir, 0)
		switch {
		case err == nil:
			f := &Folder{dir: l.dir, lock: lock}
			if !keep {
				err = f.remove()
			}
			return wasUp, errors.Join(err, f.Close())
		case errs.Is(err, errs.NotFound):
			return wasUp, nil
		case errs.Is(err, errs.Denied):
			return wasUp, errs.New(op, l.dir, errs.Denied, err).WithNext(asRoot)
		case !errs.Is(err, errs.Busy):
			return wasUp, err
		}
		wasUp = true
		if !asked {
			err := l.call(ctx, http.MethodPost, "/down", struct{}{}, nil) // it answers when everything has ended
			asked = err == nil
			// It may not listen yet, or not any more: then it holds the lock for a moment only.
			if err != nil && ctx.Err() == nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Stale) {
				return true, errs.Wrap(op, l.dir, err)
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return true, errs.New(op, l.dir, errs.Canceled, ctx.Err()).
				WithNext("The lab goes on ending. Wait for it: holdfast-lab down")
		}
	}
}

const asRoot = "Run the same command as root, or with sudo."

// refusal is an error as it travels over the socket.
type refusal struct {
	Op      string    `json:"op"`
	Subject string    `json:"subject"`
	Kind    errs.Kind `json:"kind"`
	Text    string    `json:"text"`
	Next    string    `json:"next,omitempty"`
}

func (r refusal) error() error { return errs.Text(r.Op, r.Subject, r.Kind, r.Text).WithNext(r.Next) }

func refuse(err error) refusal {
	r := refusal{Op: "ask", Subject: "the lab", Kind: errs.KindOf(err), Text: err.Error(), Next: errs.NextStep(err)}
	var e *errs.Error
	if errors.As(err, &e) && e.Err != nil && e.Error() == err.Error() { // not within something else
		r.Op, r.Subject, r.Text = e.Op, e.Subject, e.Err.Error()
	}
	return r
}

func (l *Lab) call(ctx context.Context, method, path string, request, answer any) error {
	const op = "talk to the lab in"
	body, err := json.Marshal(request)
	if err != nil {
		return errs.New(op, l.dir, errs.Bug, err)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, bytes.NewReader(body))
	if err != nil {
		return errs.New(op, l.dir, errs.Bug, err)
	}
	resp, err := l.client.Do(r)
	if err != nil {
		return l.explain(ctx, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return l.explain(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		var no refusal
		if err := json.Unmarshal(raw, &no); err != nil {
			return errs.Text(op, l.dir, errs.Bug, string(raw))
		}
		return no.error()
	}
	if answer == nil {
		return nil
	}
	return errs.Wrap(op, l.dir, json.Unmarshal(raw, answer))
}

// explain says why a lab did not answer.
func (l *Lab) explain(ctx context.Context, err error) error {
	const op = "talk to the lab in"
	switch {
	case ctx.Err() != nil:
		return errs.Wrap(op, l.dir, ctx.Err())
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return errs.Text(op, l.dir, errs.NotFound, "no lab is up there").WithNext("Start one: holdfast-lab up")
	case errors.Is(err, os.ErrPermission):
		return errs.New(op, l.dir, errs.Denied, os.ErrPermission).WithNext(asRoot)
	}
	return errs.New(op, l.dir, errs.Stale, err).
		WithNext("The lab was ended meanwhile, or has died: see " + filepath.Join(l.dir, LogName))
}
