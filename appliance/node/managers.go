package node

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/catalog"
	"github.com/holdfast-backup/holdfast/appliance/ovirt"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// managerDoc is a manager as the catalog keeps it. Its JSON is a stored format.
type managerDoc struct {
	appliance.Manager
	CA     string `json:"ca"`     // PEM
	Secret []byte `json:"secret"` // the password, sealed with a key that follows from the store's
}

// login is a login to an engine, with the authority that its hosts' certificates come from.
type login struct {
	*ovirt.Client
	ca []byte
}

// managers knows the engines and keeps one login to each.
type managers struct {
	n     *Node
	aead  cipher.AEAD
	mu    sync.Mutex // guards conns; not held during calls
	conns map[string]*login
}

func newManagers(n *Node) (*managers, error) {
	key := n.store.DerivedKey("engine passwords")
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, errs.New("seal passwords", "", errs.Bug, err)
	}
	aead, err := cipher.NewGCM(block)
	return &managers{n: n, aead: aead, conns: map[string]*login{}}, errs.Wrap("seal passwords", "", err)
}

func (m *managers) seal(name, password string) []byte {
	nonce := make([]byte, m.aead.NonceSize())
	_, _ = rand.Read(nonce)
	return m.aead.Seal(nonce, nonce, []byte(password), []byte(name))
}

func (m *managers) open(d managerDoc) (string, error) {
	k := m.aead.NonceSize()
	if len(d.Secret) < k {
		return "", errs.Text("read password of manager", d.Name, errs.Corrupt, "it is not there")
	}
	p, err := m.aead.Open(nil, d.Secret[:k], d.Secret[k:], []byte(d.Name))
	if err != nil {
		return "", errs.Text("read password of manager", d.Name, errs.Corrupt, "it was sealed for another store or name").
			WithNext("Remove the manager and add it again.")
	}
	return string(p), nil
}

// client returns the login to an engine, and makes it if need be.
func (m *managers) client(ctx context.Context, name string) (*login, error) {
	m.mu.Lock()
	c := m.conns[name]
	m.mu.Unlock()
	if c != nil {
		return c, nil
	}
	var d managerDoc
	if err := m.n.catalog.Get(catalog.Managers, name, &d); err != nil {
		return nil, errs.Wrap("use manager", name, err)
	}
	password, err := m.open(d)
	if err != nil {
		return nil, err
	}
	c, err = m.dial(ctx, d, password)
	if err != nil {
		return nil, errs.Wrap("use manager", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if first := m.conns[name]; first != nil { // another call was faster; its login stays
		go func() { _ = c.Close(context.WithoutCancel(ctx)) }()
		return first, nil
	}
	m.conns[name] = c
	return c, nil
}

func (m *managers) dial(ctx context.Context, d managerDoc, password string) (*login, error) {
	c, err := ovirt.Dial(ctx, ovirt.Options{URL: d.URL, User: d.User, Password: password, CA: []byte(d.CA), Logger: m.n.log})
	return &login{c, []byte(d.CA)}, err
}

// close ends all logins.
func (m *managers) close(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, c := range m.conns {
		if err := c.Close(ctx); err != nil {
			m.n.log.Warn("ending the login to an engine", "manager", name, "err", err)
		}
	}
	clear(m.conns)
}

// AddManager implements api.Service.
func (n *Node) AddManager(ctx context.Context, s api.ManagerSpec) (appliance.Manager, error) {
	m, err := n.managers.add(ctx, s)
	return m, errs.Wrap("add manager", s.Name, err)
}

func (m *managers) add(ctx context.Context, s api.ManagerSpec) (appliance.Manager, error) {
	var none appliance.Manager
	url, err := ovirt.NormalizeURL(s.URL)
	if err != nil {
		return none, err
	}
	if err := ovirt.CheckUser(s.User); err != nil {
		return none, err
	}
	err = m.n.catalog.Get(catalog.Managers, s.Name, new(managerDoc))
	if err == nil {
		return none, errs.Text("check name", s.Name, errs.Exists, "a manager of that name exists").
			WithNext("Choose another name, or remove that one first.")
	}
	if !errs.Is(err, errs.NotFound) {
		return none, err
	}
	d := managerDoc{CA: s.CA, Manager: appliance.Manager{Name: s.Name, URL: url, User: s.User, Added: time.Now().UTC()}}
	if err := m.trust(ctx, s, &d); err != nil {
		return none, err
	}
	c, err := m.dial(ctx, d, s.Password)
	if err != nil {
		return none, err
	}
	info, err := c.Info(ctx)
	if err == nil {
		d.Version = info.Version
		d.Secret = m.seal(s.Name, s.Password)
		err = m.n.catalog.Put(catalog.Managers, s.Name, d)
	}
	if err != nil {
		_ = c.Close(context.WithoutCancel(ctx))
		return none, err
	}
	m.mu.Lock()
	m.conns[s.Name] = c
	m.mu.Unlock()
	return d.Manager, nil
}

// trust settles which certificate authority is believed: the one that was given, or the one that the engine shows, if
// its fingerprint is the one a person has confirmed.
func (m *managers) trust(ctx context.Context, s api.ManagerSpec, d *managerDoc) error {
	if s.CA != "" {
		var err error
		d.Fingerprint, err = ovirt.Fingerprint([]byte(s.CA))
		return err
	}
	pem, found, err := ovirt.FetchCA(ctx, d.URL)
	if err != nil {
		return err
	}
	if !ovirt.SameFingerprint(s.Fingerprint, found) {
		why := "the engine's certificate authority is not known yet; its fingerprint (SHA-256) is " + found
		next := "Compare it with the engine's own (there: openssl x509 -in /etc/pki/ovirt-engine/ca.pem -noout -fingerprint -sha256), then add the manager with --accept-fingerprint, or with --ca-file."
		if s.Fingerprint != "" {
			why = "the engine's certificate authority has another fingerprint (SHA-256) than the one that was confirmed: " + found
			next = "Look at the engine's own (there: openssl x509 -in /etc/pki/ovirt-engine/ca.pem -noout -fingerprint -sha256). If it is not the one above, do not go on: somebody may stand between."
		}
		return errs.Text("trust engine", d.URL, errs.Denied, why).WithNext(next)
	}
	d.CA, d.Fingerprint = string(pem), found
	return nil
}

// ListManagers implements api.Service.
func (n *Node) ListManagers(context.Context) ([]appliance.Manager, error) {
	docs, bad := catalog.List[managerDoc](n.catalog, catalog.Managers)
	out := make([]appliance.Manager, 0, len(docs))
	for _, d := range docs {
		out = append(out, d.Manager)
	}
	if len(bad) > 0 {
		return out, bad[0]
	}
	return out, nil
}

// GetManager implements api.Service. It asks the engine for its version.
func (n *Node) GetManager(ctx context.Context, name string) (appliance.Manager, error) {
	var d managerDoc
	if err := n.catalog.Get(catalog.Managers, name, &d); err != nil {
		return d.Manager, err
	}
	c, err := n.managers.client(ctx, name)
	if err != nil {
		return d.Manager, err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return d.Manager, errs.Wrap("ask engine", name, err)
	}
	d.Version = info.Version
	return d.Manager, nil
}

// RemoveManager implements api.Service.
func (n *Node) RemoveManager(ctx context.Context, name string) error {
	const op = "remove manager"
	sessions, bad := n.records()
	if len(bad) > 0 {
		return bad[0]
	}
	for _, r := range sessions {
		if r.Manager == name && !ended(r.State) {
			return errs.Text(op, name, errs.Busy, fmt.Sprintf("session %s (VM %s) needs it", r.ID, r.VM)).
				WithNext("Release the session first.")
		}
	}
	restores, bad := n.restores()
	if len(bad) > 0 {
		return bad[0]
	}
	for _, r := range restores {
		if r.Manager == name && !r.Ended() {
			return errs.Text(op, name, errs.Busy, "the restore of VM "+r.VM+" needs it").WithNext("Wait until it has ended, or cancel task " + r.Task + ".")
		}
	}
	runs, bad := n.runs()
	if len(bad) > 0 {
		return bad[0]
	}
	if i := slices.IndexFunc(runs, func(r runDoc) bool { return r.Manager == name }); i >= 0 {
		return errs.Text(op, name, errs.Busy, "a backup of VM "+runs[i].VMName+" needs it").WithNext("Wait until it has ended.")
	}
	if err := n.catalog.Delete(catalog.Managers, name); err != nil {
		return err
	}
	n.managers.mu.Lock()
	c := n.managers.conns[name]
	delete(n.managers.conns, name)
	n.managers.mu.Unlock()
	if c != nil {
		if err := c.Close(ctx); err != nil {
			n.log.Warn("ending the login to an engine", "manager", name, "err", err)
		}
	}
	return nil
}
