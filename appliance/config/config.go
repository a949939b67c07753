// Package config reads the daemon's configuration: one YAML file, parsed strictly. An unknown key, a wrong type or a
// missing value is an error, and all faults of a file are reported at once, each with its line where it has one. The
// package reads no environment and opens nothing but the file.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Config is the daemon's configuration. Keys are the yaml names.
type Config struct {
	// Store is the store's folder. Needed.
	Store string `yaml:"store"`
	// PassphraseFile holds the store's passphrase in its first line. It or KeyFile is needed.
	PassphraseFile string `yaml:"passphrase_file"`
	// KeyFile is a key file that opens the store.
	KeyFile string `yaml:"key_file"`
	// Mount shows all restore points as files; left out, nothing is mounted.
	Mount *Mount `yaml:"mount"`
	// NFS offers all restore points, read-only, over NFS v3, and the sessions of instant restores; left out, nothing is
	// served.
	NFS *NFS `yaml:"nfs"`
	// State is the folder of what the node knows and of its sessions' files. Needed with API.
	State string `yaml:"state"`
	// API makes the daemon a node that backs VMs up and restores them: it then holds the store for writing, and needs State
	// and NFS. Left out, the daemon only shows restore points.
	API *API `yaml:"api"`
	// GC says how often a node gives space back; left out, once a day.
	GC *GC `yaml:"gc"`
	// Scrub says how a node reads its store again to find damage; left out, all of it within 30 days.
	Scrub *Scrub `yaml:"scrub"`
}

// Scrub says how a node reads its store again to find damage before it is needed.
type Scrub struct {
	// Every is the time within which each pack is read once; 0s for never. Default 720h, which is 30 days.
	Every *time.Duration `yaml:"every"`
	// LimitMiB is how many MiB a second it reads at most. Default 64.
	LimitMiB int64 `yaml:"limit_mib"`
}

// ScrubEvery returns the time within which each pack is read once, 0 for never.
func (c *Config) ScrubEvery() time.Duration {
	if c.Scrub == nil || c.Scrub.Every == nil {
		return 30 * 24 * time.Hour
	}
	return *c.Scrub.Every
}

// ScrubLimit returns how many bytes a second a scrub reads at most.
func (c *Config) ScrubLimit() int64 {
	if c.Scrub == nil || c.Scrub.LimitMiB == 0 {
		return 64 << 20
	}
	return c.Scrub.LimitMiB << 20
}

// GC says when a node gives back the space of what no point needs.
type GC struct {
	// Every is the time from one collection to the next, which begins when the node has nothing else to do; 0s for never.
	// Default 24h.
	Every *time.Duration `yaml:"every"`
}

// CollectEvery returns the time from one collection to the next, 0 for never.
func (c *Config) CollectEvery() time.Duration {
	if c.GC == nil || c.GC.Every == nil {
		return 24 * time.Hour
	}
	return *c.GC.Every
}

// API says how the node is driven.
type API struct {
	// Socket is the unix socket for this machine's administrator. Needed.
	Socket string `yaml:"socket"`
	// Listen is "address:port" for TLS; left out, only the socket answers.
	Listen string `yaml:"listen"`
	// TokenFile holds the bearer token that TLS clients must show; it is made if it is not there. Needed with Listen.
	TokenFile string `yaml:"token_file"`
}

// Mount says where points are shown.
type Mount struct {
	// Dir is an existing, empty folder. Needed.
	Dir string `yaml:"dir"`
	// AllowOther lets users other than the daemon's read. Default false.
	AllowOther bool `yaml:"allow_other"`
}

// NFS says where points are served, and to whom.
type NFS struct {
	// Listen is "address:port". Needed.
	Listen string `yaml:"listen"`
	// Allow lists the networks or addresses that may connect. Needed: backups are shown to nobody by default.
	Allow []string `yaml:"allow"`
	// Portmap answers on port 111 of the address as well. Default false.
	Portmap bool `yaml:"portmap"`
	// Address is the IP address or name under which oVirt's hosts reach this server. Needed with API.
	Address string `yaml:"address"`
}

// maxSize bounds the file in bytes.
const maxSize = 1 << 20

// Load reads and checks a file. errs.Invalid lists every fault.
func Load(file string) (*Config, error) {
	const op = "read configuration"
	f, err := os.Open(file)
	if err != nil {
		return nil, errs.Wrap(op, file, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nil, errs.Wrap(op, file, err)
	}
	c, err := Parse(raw)
	if err != nil {
		return nil, errs.New(op, file, errs.Invalid, err).WithNext("Mend the file; docs/holdfastd.md lists the keys.")
	}
	return c, nil
}

// Parse reads and checks the text of a configuration.
func Parse(raw []byte) (*Config, error) {
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	err := d.Decode(&c)
	var typed *yaml.TypeError
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the file is empty")
	case errors.As(err, &typed): // every one of these carries its line; what could be read is checked too
		return nil, faults(append(typed.Errors, c.check()...))
	case err != nil:
		return nil, err
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document in the file")
	}
	return &c, faults(c.check())
}

func faults(list []string) error {
	if len(list) == 0 {
		return nil
	}
	return errors.New(strings.Join(list, "; "))
}

func (c *Config) check() (bad []string) {
	need := func(key, value string) {
		if value == "" {
			bad = append(bad, key+" is missing")
		} else if !filepath.IsAbs(value) {
			bad = append(bad, key+" is not an absolute path: "+value)
		}
	}
	need("store", c.Store)
	switch {
	case c.KeyFile == "" && c.PassphraseFile == "":
		bad = append(bad, "passphrase_file is missing, and key_file too")
	case c.KeyFile != "" && c.PassphraseFile != "":
		bad = append(bad, "passphrase_file and key_file are both there: one opens the store")
	case c.KeyFile != "":
		need("key_file", c.KeyFile)
	default:
		need("passphrase_file", c.PassphraseFile)
	}
	if c.Mount != nil {
		need("mount.dir", c.Mount.Dir)
	}
	if c.NFS != nil {
		if _, err := netip.ParseAddrPort(c.NFS.Listen); err != nil {
			bad = append(bad, fmt.Sprintf("nfs.listen %q is not an address with a port", c.NFS.Listen))
		}
		if len(c.NFS.Allow) == 0 {
			bad = append(bad, "nfs.allow is empty: nobody could connect")
		}
		if _, err := c.NFS.Prefixes(); err != nil {
			bad = append(bad, err.Error())
		}
	}
	if c.API != nil {
		need("state", c.State)
		bad = append(bad, c.checkNode()...)
	}
	if c.GC != nil && c.API == nil {
		bad = append(bad, "gc is there without api: the daemon then only reads the store")
	}
	if e := c.CollectEvery(); e < 0 || e > 0 && e < time.Minute {
		bad = append(bad, fmt.Sprintf("gc.every %v is shorter than a minute; 0s is never", e))
	}
	if c.Scrub != nil && c.API == nil {
		bad = append(bad, "scrub is there without api: the daemon then only reads the store")
	}
	if e := c.ScrubEvery(); e < 0 || e > 0 && e < time.Hour {
		bad = append(bad, fmt.Sprintf("scrub.every %v is shorter than an hour; 0s is never", e))
	}
	if l := c.ScrubLimit() >> 20; l < 1 || l > 1<<20 {
		bad = append(bad, fmt.Sprintf("scrub.limit_mib %d is not between 1 and %d", l, 1<<20))
	}
	if c.Mount == nil && c.NFS == nil {
		bad = append(bad, "neither mount nor nfs is there: nothing to do")
	}
	return bad
}

// checkNode looks at what only a node needs.
func (c *Config) checkNode() (bad []string) {
	if c.API.Socket == "" || !filepath.IsAbs(c.API.Socket) {
		bad = append(bad, "api.socket is missing or not an absolute path")
	}
	if c.API.Listen != "" {
		if _, err := netip.ParseAddrPort(c.API.Listen); err != nil {
			bad = append(bad, fmt.Sprintf("api.listen %q is not an address with a port", c.API.Listen))
		}
		if !filepath.IsAbs(c.API.TokenFile) {
			bad = append(bad, "api.token_file is missing or not an absolute path")
		}
	}
	if c.NFS == nil {
		return append(bad, "nfs is missing: instant restores need it")
	}
	if c.NFS.Address == "" || strings.ContainsAny(c.NFS.Address, ":/ ") && !strings.Contains(c.NFS.Address, "::") {
		bad = append(bad, fmt.Sprintf("nfs.address %q is not an address or name that hosts could mount from", c.NFS.Address))
	}
	return bad
}

// Prefixes returns the networks that Allow names.
func (n *NFS) Prefixes() ([]netip.Prefix, error) { return ParseNetworks(n.Allow) }

// ParseNetworks reads networks such as 10.1.0.0/16 and single addresses.
func ParseNetworks(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(t); err == nil {
				p = netip.PrefixFrom(addr, addr.BitLen())
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a network such as 10.1.0.0/16", t)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
