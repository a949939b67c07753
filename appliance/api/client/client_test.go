package client_test

import (
	"context"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
)

// rig is a served service.
type rig struct {
	t       *testing.T
	service *apitest.Service
	dir     string
	at      api.Addresses
	stop    func()
}

// serve serves a service on a socket and over TLS until the test ends or stop is called.
func serve(t *testing.T, dir string, s *apitest.Service) *rig {
	t.Helper()
	h, err := api.New(api.Options{Service: s, Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan api.Addresses, 1), make(chan error, 1)
	go func() {
		done <- api.Serve(ctx, api.Listeners{
			Socket: filepath.Join(dir, "sock"), TLSAddr: "127.0.0.1:0", TokenFile: filepath.Join(dir, "token"),
			CertDir: filepath.Join(dir, "tls"), Ready: func(at api.Addresses) { ready <- at },
		}, h)
	}()
	r := &rig{t: t, service: s, dir: dir}
	select {
	case r.at = <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	ended := false
	r.stop = func() {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(r.stop)
	return r
}

// clients returns one client for each door.
func (r *rig) clients() map[string]*client.Client {
	r.t.Helper()
	all := map[string]*client.Client{}
	for name, o := range map[string]client.Options{
		"socket": {Node: r.at.Socket},
		"tls":    {Node: "https://" + r.at.TLS, TokenFile: filepath.Join(r.dir, "token"), CAFile: filepath.Join(r.dir, "tls", "cert.pem")},
	} {
		c, err := client.Dial(o)
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(c.Close)
		all[name] = c
	}
	return all
}

func TestManagers(t *testing.T) {
	ctx := t.Context()
	m := appliance.Manager{Name: "lab one/two", URL: "https://engine", User: "admin@internal", Version: "4.5"}
	r := serve(t, t.TempDir(), &apitest.Service{Managers: []appliance.Manager{m}})
	for name, c := range r.clients() {
		t.Run(name, func(t *testing.T) {
			if l, err := c.ListManagers(ctx); err != nil || !reflect.DeepEqual(l, []appliance.Manager{m}) {
				t.Errorf("%v %v", l, err)
			}
			if got, err := c.GetManager(ctx, m.Name); err != nil || got != m {
				t.Errorf("%v %v", got, err)
			}
		})
	}
}
