package domain_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/nfsdomain"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
	"github.com/holdfast-backup/holdfast/nfsd"
)

// TestMountsThatFail: a host says why it could not connect.
func TestMountsThatFail(t *testing.T) {
	needParts(t)
	options, _ := serve(t, fstest.NewMemory(fstest.MemoryOptions{}), "127.0.0.1:0")
	closed, stop := serve(t, fstest.NewMemory(fstest.MemoryOptions{}), "127.0.0.1:0")
	stop()
	foreign, _ := serveAs(t, "127.0.0.1:0", nfsd.Export{Tree: fstest.NewMemory(fstest.MemoryOptions{}),
		Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	frozen, _ := serveAs(t, "127.0.0.1:0", nfsd.Export{Tree: fstest.NewMemory(fstest.MemoryOptions{}), ReadOnly: true})
	const here = "127.0.0.1:" + exportPath
	for _, c := range []struct{ name, export, options, words string }{
		{"no such export", "127.0.0.1:/ir/other", options, "MountError 127.0.0.1:/ir/other"},
		{"not allowed", here, foreign, "MountError " + here},
		{"read-only", here, frozen, "StorageServerAccessPermissionError " + here +
			": vdsm (uid 36, gid 36) may not read, write and search"},
		{"nobody there", here, closed, here},
		{"version", here, options + ",nfsvers=4.2", "MountError " + here + ": Protocol not supported"},
		{"no path", "127.0.0.1", options, "MountError 127.0.0.1: it is not address:/path"},
		{"slash at the end", here + "/", options, "it is " + exportPath},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, nfsdomain.Options{Timeout: 2 * time.Second})
			info, err := h.ProbeDomain(t.Context(), c.export, c.options)
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("found %v, error %v; want %q", info, err, c.words)
			}
		})
	}
	info, err := newHost(t, nfsdomain.Options{}).ProbeDomain(t.Context(), here, options)
	if info != nil || err != nil {
		t.Errorf("at an empty export: %v, %v", info, err)
	}
}

// TestAHostComesBackWhenToldSo: an answer to ask again later is no failure, if it ends in time.
func TestAHostComesBackWhenToldSo(t *testing.T) {
	needParts(t)
	dir, spec := write(t)
	m := load(t, dir)
	options, _ := serve(t, m, "127.0.0.1:0")
	var asked atomic.Int32
	m.SetHook(func(op string, _ fs.ID) error {
		if op == "list" && asked.Add(1) <= 2 {
			return fs.StatusDelay
		}
		return nil
	})
	info, err := newHost(t, nfsdomain.Options{}).ProbeDomain(t.Context(), spec.RemotePath, options)
	if err != nil || info == nil {
		t.Errorf("found %v, error %v", info, err)
	}
	if n := asked.Load(); n < 3 {
		t.Errorf("the host asked %d times", n)
	}
}

// slot returns what a host wrote into the ids file: its name, its generation and the time.
func slot(t *testing.T, tree fs.Tree, host int) (name string, generation, timestamp uint64) {
	t.Helper()
	b := read(t, tree, ids)[(host-1)*512:][:512]
	word := binary.LittleEndian.Uint64
	return strings.TrimRight(string(b[104:152]), "\x00"), word(b[40:]), word(b[152:])
}

// TestHostsShareADomain: each has its own slot, and takes none that is another's.
func TestHostsShareADomain(t *testing.T) {
	needParts(t)
	dir, spec := write(t)
	m := load(t, dir)
	options, _ := serve(t, m, "127.0.0.1:0")
	one := newHost(t, nfsdomain.Options{HostID: 1, HostName: "one"})
	two := newHost(t, nfsdomain.Options{HostID: 2, HostName: "two"})
	for _, h := range []*nfsdomain.Host{one, two} {
		if step, _, err := use(t, h, options, spec); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	if name, generation, at := slot(t, m, 2); name != "two" || generation != 1 || at == 0 {
		t.Errorf("slot 2 has %q, generation %d at %d", name, generation, at)
	}
	// The first joined twice: once to attach, once to be active.
	if name, generation, at := slot(t, m, 1); name != "one" || generation != 2 || at == 0 {
		t.Errorf("slot 1 has %q, generation %d at %d", name, generation, at)
	}
	three := newHost(t, nfsdomain.Options{HostID: 1, HostName: "three"})
	if step, _, err := use(t, three, options, spec); step != "attach" || !errs.Is(err, errs.Busy) {
		t.Errorf("%s: %v", step, err)
	}
	if err := one.Close(); err != nil { // its power fails
		t.Fatal(err)
	}
	if step, _, err := use(t, newHost(t, nfsdomain.Options{HostID: 1, HostName: "one"}), options, spec); err != nil {
		t.Errorf("the host comes back: %s: %v", step, err)
	}
	if err := two.DeactivateDomain(t.Context(), spec.UUID); err != nil {
		t.Error(err)
	}
	if _, generation, at := slot(t, m, 2); generation != 1 || at != 0 {
		t.Errorf("slot 2 has generation %d at %d", generation, at)
	}
}

// TestAHostLivesThroughARestart: its sign of life goes on at the server's successor, and is missed when it is lost.
func TestAHostLivesThroughARestart(t *testing.T) {
	needParts(t)
	dir, spec := write(t)
	m := load(t, dir)
	options, stop := serve(t, m, "127.0.0.1:0")
	h := newHost(t, nfsdomain.Options{Renew: 20 * time.Millisecond, Timeout: time.Second})
	if step, _, err := use(t, h, options, spec); err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	stop()
	_, _, before := slot(t, m, 1)
	_, port, _ := strings.Cut(strings.Split(options, ",")[0], "=")
	serve(t, m, net.JoinHostPort("127.0.0.1", port))
	eventually(t, "a new sign of life", func() bool {
		_, _, now := slot(t, m, 1)
		return now > before
	})
	if _, _, err := h.DomainSpace(t.Context(), spec.UUID); err != nil {
		t.Error(err)
	}
	take := leader(ids, 0, func(b []byte) { copy(b[104:], "somebody") })
	eventually(t, "the host to see that its slot was taken", func() bool {
		take(t, m) // again and again, for the host may just be writing
		_, _, err := h.DomainSpace(t.Context(), spec.UUID)
		return err != nil && strings.Contains(err.Error(), "somebody")
	})
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline, tick := time.After(20*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

// TestSanlockReadsWhatTheHostWrote: the host's records are sanlock's, by sanlock's own reading.
func TestSanlockReadsWhatTheHostWrote(t *testing.T) {
	needParts(t)
	if err := parts.Need(parts.Sanlock); err != nil {
		if os.Getenv("HOLDFAST_REAL_PARTS") == "1" {
			t.Fatal(err, errs.NextStep(err))
		}
		t.Skip(err, "; `make test` installs it and runs this test")
	}
	dir, spec := write(t)
	m := load(t, dir)
	options, _ := serve(t, m, "127.0.0.1:0")
	h := newHost(t, nfsdomain.Options{HostID: 3, HostName: "third"})
	if step, _, err := use(t, h, options, spec); err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	for _, c := range []struct{ file, flag, name, offset, words string }{
		{ids, "-s", "3", "0", "resource_name third, owner_id 3, owner_generation 2, io_timeout 10"},
		{leases, "-r", "SDM", "1048576", "resource_name SDM, owner_id 3, owner_generation 1, lver 1, timestamp 0"},
	} {
		copied := filepath.Join(t.TempDir(), "copy")
		if err := os.WriteFile(copied, read(t, m, c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), parts.Sanlock[0].Path, "direct", "read_leader", c.flag,
			strings.Join([]string{spec.UUID, c.name, copied, c.offset}, ":")).CombinedOutput()
		if err != nil {
			t.Fatalf("sanlock: %v\n%s", err, out)
		}
		for w := range strings.SplitSeq("read_leader done 0, "+c.words, ", ") {
			if !strings.Contains(string(out), w+"\n") {
				t.Errorf("of %s sanlock does not say %q but\n%s", c.file, w, out)
			}
		}
	}
}
