// Package control runs a lab in the background, for people and scripts to play with: a data center and a node beside it,
// in one folder and one process with its children. Who knows the folder can look up where everything is, run commands
// in the guests, break things, and end it.
//
// Terms. Serve is the lab's process. A Lab is the view of those who use it, by the socket in its folder. An Info is what
// they are told; it is there when everything is ready.
//
// Rules: one lab to a folder, which it locks; what a killed lab left is no obstacle to
// the next one, which begins from nothing.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
	// Node is the node's socket as --node takes it, NodeURL its address for those with a token.
	Node           string `json:"node"`
	Socket         string `json:"node_socket"`
	NodeURL        string `json:"node_url"`
	TokenFile      string `json:"token_file"`
	Store          string `json:"store"`
	PassphraseFile string `json:"passphrase_file"`
	Dir            string `json:"dir"`
	LogFile        string `json:"log_file"`
	PID            int    `json:"pid"`
}

// Files in a lab's folder.
const (
	infoName   = "lab.json"
	socketName = "lab.sock"
	lockName   = "lock"
	// LogName is what the lab's parts say.
	LogName = "lab.log"
)

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

// Info returns what must be known, or errs.NotFound if no lab is up there.
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

// Exec runs a command as root in a VM and returns what it printed and its exit code.
func (l *Lab) Exec(ctx context.Context, vm, command string) (output string, code int, err error) {
	var a execAnswer
	err = l.call(ctx, http.MethodPost, "/exec", execRequest{vm, command}, &a)
	return a.Output, a.Code, err
}

type faultRequest struct {
	Name string `json:"name"`
	Heal bool   `json:"heal"`
}

// Fault injects a fault, or ends one that lasts.
func (l *Lab) Fault(ctx context.Context, name string, heal bool) error {
	return l.call(ctx, http.MethodPost, "/fault", faultRequest{name, heal}, nil)
}

// Down ends the lab and waits until nothing of it runs.
func (l *Lab) Down(ctx context.Context) error {
	if err := l.call(ctx, http.MethodPost, "/down", struct{}{}, nil); err != nil {
		return err
	}
	for {
		lock, err := lockDir(l.dir)
		if err == nil {
			return lock.Close()
		}
		if !errs.Is(err, errs.Busy) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errs.Wrap("end the lab in", l.dir, ctx.Err())
		}
	}
}

// refusal is an error as it travels over the socket.
type refusal struct {
	Kind int    `json:"kind"`
	Text string `json:"text"`
	Next string `json:"next,omitempty"`
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
		if ctx.Err() != nil {
			return errs.Wrap(op, l.dir, ctx.Err())
		}
		return errs.Text(op, l.dir, errs.NotFound, "no lab is up there").WithNext("Start one: holdfast-lab up")
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return errs.Wrap(op, l.dir, err)
	}
	if resp.StatusCode != http.StatusOK {
		var no refusal
		if err := json.Unmarshal(raw, &no); err != nil {
			return errs.Text(op, l.dir, errs.Bug, string(raw))
		}
		return errs.Text("ask the lab in", l.dir, errs.Kind(no.Kind), no.Text).WithNext(no.Next)
	}
	if answer == nil {
		return nil
	}
	return errs.Wrap(op, l.dir, json.Unmarshal(raw, answer))
}

// writeInfo leaves the folder's Info for people who look; scripts ask the socket.
func writeInfo(i Info) error {
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(i.Dir, infoName), append(b, '\n'), 0o600)
}
