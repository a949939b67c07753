package linux_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/linux"
)

// still is how many files lie untouched in a folder while others come and go: more than one reply of a listing takes.
const still = 600

// testStorm makes names come and go, in two guests at once and in folders of their own.
func (s *session) testStorm(t *testing.T, m *linux.Machine) {
	dir := s.mount(t, m, "/mnt/storm") + "/storm-" + m.Address.String()
	r := call[StormReply](t, m, "Work.Storm", StormArgs{Dir: dir, Workers: 4, Operations: 150 * times(), Still: still, Seed: 7})
	t.Logf("%+v", r)
	if r.Created == 0 || r.Renamed == 0 || r.Removed == 0 || r.Listed == 0 {
		t.Error("it was no storm")
	}
}

// testTwoClients has both guests work in one folder: of two who make a file exclusively one makes it, and what one has
// written and closed the other reads when it opens the file.
func (s *session) testTwoClients(t *testing.T, r *rig) {
	at := s.mount(t, r.a, "/mnt/two")
	s.mount(t, r.b, "/mnt/two")
	const names = 60
	call[guest.Nothing](t, r.a, "Work.Folder", at+"/contest")
	won := [2][]string{}
	guests := []*linux.Machine{r.a, r.b}
	var running sync.WaitGroup
	for i, m := range guests {
		running.Go(func() {
			if err := m.Call(t.Context(), "Work.Contest", ContestArgs{at + "/contest", m.Address.String(), names}, &won[i]); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	if len(won[0])+len(won[1]) != names {
		t.Errorf("of %d files one made %d and the other %d", names, len(won[0]), len(won[1]))
	}
	t.Logf("one made %d files, the other %d", len(won[0]), len(won[1]))
	for i, m := range guests {
		for _, name := range won[1-i] { // what the other one has made
			got := call[[]byte](t, m, "Agent.Read", at+"/contest/"+name)
			if want := guests[1-i].Address.String(); string(got) != want {
				t.Errorf("%s holds %q, its maker wrote %q", name, got, want)
			}
		}
	}
}

// block is what the writers below write at once.
const block = 64 << 10

// testRestarts takes the server away under writers, without a word and then in good order. The one in guest a writes to
// the VM's disk past its page cache, as qemu does; the one in guest b to a file through it, as much else.
func (s *session) testRestarts(t *testing.T, r *rig) {
	at := s.mount(t, r.a, "/mnt/restart")
	s.mount(t, r.b, "/mnt/restart")
	file := at + "/" + s.domain + "/buffered"
	call[guest.Nothing](t, r.b, "Work.Put", PutArgs{Path: file, Size: volumeSize})
	writers := []*writer{
		{m: r.a, args: WriteArgs{Name: "direct", Path: at + "/" + s.volume, Direct: true, Block: block, Blocks: 128}},
		{m: r.b, args: WriteArgs{Name: "buffered", Path: file, Block: block, Blocks: 128, SyncEvery: 7}},
	}
	for _, w := range writers {
		w.start(t)
	}
	kill := func() error { s.node.Kill(); return nil }
	for _, away := range slices.Repeat([]func() error{kill, s.node.Stop, kill}, times()) {
		for _, w := range writers {
			w.await(t, w.blocks(t)+60) // they are at work again, behind the last restart
		}
		if err := away(); err != nil {
			t.Error(err)
		}
		if err := s.node.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range writers {
		call[guest.Nothing](t, w.m, "Work.End", w.args.Name)
	}
	for i, w := range writers {
		w.finish(t, writers[1-i].m, at)
	}
}

// outage is how long the network is away: longer than the client waits before it asks again, and three times as long as
// sanlock waits for one answer.
const outage = 30 * time.Second

// testOutage pulls guest b's plug for a while. A hard mount must wait and go on. With vdsm's options the kernel may give
// up, since it asks again at ever longer intervals: for a VM that is a disk error, which pauses it, and the same write
// must do when it goes on. The client in guest a must not feel anything.
func (s *session) testOutage(t *testing.T, r *rig) {
	at := s.mount(t, r.a, "/mnt/outage")
	s.mountWith(t, r.b, "/mnt/soft", vdsmOptions)
	s.mountWith(t, r.b, "/mnt/hard", hardOptions)
	files := map[string]string{}
	for _, name := range []string{"soft", "hard", "other"} {
		files[name] = "/" + s.domain + "/outage-" + name
		call[guest.Nothing](t, r.a, "Work.Put", PutArgs{Path: at + files[name], Size: 64 * block})
	}
	direct := func(m *linux.Machine, name, at string) *writer {
		return &writer{m: m, args: WriteArgs{Name: name, Path: at + files[name], Direct: true, Block: block, Blocks: 64, Rounds: 2}}
	}
	soft, hard, other := direct(r.b, "soft", "/mnt/soft"), direct(r.b, "hard", "/mnt/hard"), direct(r.a, "other", at)
	soft.args.Retry = true
	cut := []*writer{soft, hard}
	for _, w := range cut {
		w.start(t)
	}
	for _, w := range cut {
		w.await(t, 10)
	}
	if err := r.b.SetLink(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	back := time.After(outage)
	other.start(t)
	other.finish(t, r.a, at) // while b hears nothing
	<-back
	if err := r.b.SetLink(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	for _, w := range cut {
		if reply := w.finish(t, r.a, at); reply.Slowest < outage/2 {
			t.Errorf("no write took longer than %s: the network was not away", reply.Slowest)
		}
	}
}

// writer is a Work.Write that runs.
type writer struct {
	m     *linux.Machine
	args  WriteArgs
	reply WriteReply
	done  chan error
}

func (w *writer) start(t *testing.T) {
	w.done = make(chan error, 1)
	go func() { w.done <- w.m.Call(t.Context(), "Work.Write", w.args, &w.reply) }()
}

// await waits until so many blocks are written.
func (w *writer) await(t *testing.T, blocks int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	there := make(chan error, 1)
	go func() {
		there <- w.m.Call(ctx, "Work.Await", AwaitArgs{w.args.Name, blocks}, nil)
	}()
	select {
	case err := <-there:
		if err != nil {
			t.Fatal(err)
		}
	case err := <-w.done:
		t.Fatalf("the writer has ended: %v", err)
	}
}

// blocks is how many blocks are written.
func (w *writer) blocks(t *testing.T) int64 {
	t.Helper()
	return call[int64](t, w.m, "Work.Blocks", w.args.Name)
}

// finish waits for the writer's end, and has the guest reader, which has the domain mounted below at, compare the file
// with what has to be in it.
func (w *writer) finish(t *testing.T, reader *linux.Machine, at string) WriteReply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	select {
	case err := <-w.done:
		if err != nil {
			t.Fatal(err)
		}
	case <-ctx.Done():
		t.Fatal("the writer does not end")
	}
	check := w.args
	check.Rounds = w.reply.Rounds
	if want := int64(w.args.Blocks * w.reply.Rounds); w.reply.Written != want || want == 0 {
		t.Errorf("it wrote %d blocks of %d", w.reply.Written, want)
	}
	parts := strings.SplitN(w.args.Path, "/", 4) // "", mnt, its name, the rest
	check.Path = at + "/" + parts[3]
	if wrong := call[int](t, reader, "Work.Check", check); wrong >= 0 {
		t.Errorf("block %d is not what was written last", wrong)
	}
	t.Logf("%s: %d blocks, %d failures, the slowest took %.1f s", w.args.Name, w.reply.Written, w.reply.Failures, w.reply.Slowest.Seconds())
	return w.reply
}
