package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const good = `
store: /var/lib/holdfast/store
passphrase_file: /etc/holdfast/passphrase
mount: {dir: /srv/points, allow_other: true}
nfs:
  listen: 0.0.0.0:2049
  allow: [10.0.0.0/8, 192.168.1.7, "fd00::/8"]
`

func TestGood(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	nets, err := c.NFS.Prefixes()
	if c.Store != "/var/lib/holdfast/store" || !c.Mount.AllowOther || err != nil || len(nets) != 3 || nets[1].String() != "192.168.1.7/32" {
		t.Fatalf("%+v %v %v", c, nets, err)
	}
}

func TestGoodNode(t *testing.T) {
	const text = good + "  address: 192.0.2.10\nstate: /var/lib/holdfast\napi:\n  socket: /run/holdfast/s\n  listen: 0.0.0.0:8443\n  token_file: /etc/holdfast/token\n"
	c, err := Parse([]byte(text))
	if err != nil || c.API.Listen != "0.0.0.0:8443" || c.NFS.Address != "192.0.2.10" || c.CollectEvery() != 24*time.Hour {
		t.Fatalf("%+v %v", c, err)
	}
	if c.ScrubEvery() != 720*time.Hour || c.ScrubLimit() != 64<<20 {
		t.Errorf("by default a scrub takes %v at %d bytes a second", c.ScrubEvery(), c.ScrubLimit())
	}
	if c, err := Parse([]byte(text + "scrub: {every: 0s, limit_mib: 3}\n")); err != nil || c.ScrubEvery() != 0 || c.ScrubLimit() != 3<<20 {
		t.Errorf("%v, %v", c, err)
	}
	for more, every := range map[string]time.Duration{"gc: {every: 36h}\n": 36 * time.Hour, "gc: {every: 0s}\n": 0, "gc: {}\n": 24 * time.Hour} {
		if c, err := Parse([]byte(text + more)); err != nil || c.CollectEvery() != every {
			t.Errorf("%s: %v, %v", more, c, err)
		}
	}
}

func TestKeyFile(t *testing.T) {
	c, err := Parse([]byte(strings.Replace(good, "passphrase_file:", "key_file:", 1)))
	if err != nil || c.KeyFile != "/etc/holdfast/passphrase" || c.PassphraseFile != "" {
		t.Fatalf("%+v %v", c, err)
	}
}

func TestFaultsAreNamedAllAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"empty":          {"", []string{"empty"}},
		"unknown keys":   {good + "stroe: x\nmuont: y\n", []string{"stroe", "muont"}},
		"wrong type":     {strings.Replace(good, "true", "[1]", 1), []string{"line 4"}},
		"all missing":    {"nfs: {listen: nowhere}", []string{"store is missing", "passphrase_file is missing", "nowhere", "nfs.allow"}},
		"relative":       {strings.Replace(good, "/var/lib", "lib", 1), []string{"absolute"}},
		"bad network":    {strings.Replace(good, "10.0.0.0/8", "10.0.0/8", 1), []string{"10.0.0/8"}},
		"nothing to do":  {"store: /s\npassphrase_file: /p\n", []string{"nothing to do"}},
		"two documents":  {good + "---\nstore: /x\n", []string{"more than one"}},
		"not yaml":       {"a: [", []string{"yaml"}},
		"node":           {good + "api: {listen: x}\n", []string{"state is missing", "api.socket", "api.listen", "api.token_file", "nfs.address"}},
		"node alone":     {"store: /s\npassphrase_file: /p\nmount: {dir: /m}\nstate: /st\napi: {socket: /x}\n", []string{"nfs is missing"}},
		"gc alone":       {good + "gc: {every: 24h}\n", []string{"gc is there without api"}},
		"gc too often":   {good + "gc: {every: 3s}\n", []string{"gc.every 3s"}},
		"scrub alone":    {good + "scrub: {every: 720h}\n", []string{"scrub is there without api"}},
		"scrub too fast": {good + "scrub: {every: 1m, limit_mib: -1}\n", []string{"scrub.every 1m", "scrub.limit_mib -1"}},
		"gc backwards":   {good + "gc: {every: -3h}\n", []string{"gc.every"}},
		"two openers":    {good + "key_file: /k\n", []string{"both there"}},
		"relative key":   {strings.Replace(good, "passphrase_file: /etc", "key_file: etc", 1), []string{"key_file is not an absolute path"}},
		"unknown inside": {strings.Replace(good, "dir:", "path:", 1), []string{"path", "mount.dir is missing"}},
	} {
		_, err := Parse([]byte(c.text))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
	if _, err := Load("/nowhere/c.yaml"); !errs.Is(err, errs.NotFound) {
		t.Error("missing file:", err)
	}
	file := filepath.Join(t.TempDir(), "c.yaml")
	_ = os.WriteFile(file, []byte("x: 1"), 0o600)
	if _, err := Load(file); !errs.Is(err, errs.Invalid) || errs.NextStep(err) == "" {
		t.Error("bad file:", err)
	}
}
