package nfsd_test

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast/fs/fstest"
	"github.com/holdfast-backup/holdfast/nfsd"
	"github.com/holdfast-backup/holdfast/nfsd/nfstest"
)

// notes is a log that may be written while it is read.
type notes struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

// TestLocksAreRefusedClearly: a mount without nolock finds the lock manager, is refused at once, and the log says what
// to do about it.
func TestLocksAreRefusedClearly(t *testing.T) {
	var log notes
	locked := make(chan netip.Addr, 10)
	s := start(t, nfsd.Options{Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Events: nfsd.Events{Locked: func(peer netip.Addr) { locked <- peer }}}, fstest.NewMemory(fstest.MemoryOptions{}))
	found := false
	for _, e := range nfsd.PortmapEntries(2049) {
		found = found || e.Program == 100021 && e.Version == 4 && e.Port == 2049
	}
	if !found {
		t.Error("the port mapper does not know the lock manager: a client would ask for it for ever")
	}
	c := nfstest.Dial(t, s.addr)
	for range 3 {
		res := c.Call(100021, 4, 2, nfstest.Words(nil).Text("cookie"))
		if cookie, answer := res.Text(), res.U32(); cookie != "cookie" || answer != 2 {
			t.Errorf("LOCK is answered %q, %d", cookie, answer)
		}
		if peer := <-locked; !peer.IsLoopback() {
			t.Errorf("the event is of %v", peer)
		}
	}
	if text := log.String(); strings.Count(text, "nolock") != 1 || !strings.Contains(text, "127.0.0.1") {
		t.Errorf("the log says, of three attempts: %q", text)
	}
}
