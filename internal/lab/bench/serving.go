package bench

import (
	"context"
	"encoding/json"
	"os"
	"syscall"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
	"github.com/holdfast-backup/holdfast/internal/lab/proc"
)

const (
	// readyWithin is how long a server may take until it answers, and until it has ended.
	readyWithin = 30 * time.Second
	ganesha     = "nfs-ganesha"
	// cacheMiB is what our servers may keep decoded: more than the disk's data, for what is read a second time to be warm.
	cacheMiB = "512"
)

// server is one that runs.
type server struct {
	process *proc.Process
	place   place
}

// stop ends it with a signal. nfs-ganesha takes SIGTERM, ours takes both.
func (s *server) stop() error { return s.process.Stop(syscall.SIGTERM, readyWithin) }

// served is one of the servers that are compared.
type served struct {
	name, peer string
	qcow2      bool
	start      func(context.Context) (*server, error)
}

// nfs measures reading over NFS.
func (b *bed) nfs(ctx context.Context) (err error) {
	if err := b.findData(); err != nil {
		return err
	}
	g, err := b.prepareGanesha(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := g.close(); err == nil {
			err = cerr
		}
	}()
	servers := []served{
		{name: "holdfast raw", peer: ganesha, start: b.serveFormat("raw")},
		{name: "holdfast qcow2", peer: ganesha, qcow2: true, start: b.serveFormat("qcow2")},
		{name: ganesha, start: g.start},
	}
	patterns := []pattern{
		{"read 1 MiB in order, 1 in flight", 1, b.sequential()},
		{"read 1 MiB in order, 8 in flight", 8, b.sequential()},
		{"read 4 KiB at random, 1 in flight", 1, scattered(b.data, grain, b.effort.few, 1)},
		{"read 4 KiB at random, 16 in flight", 16, scattered(b.data, grain, b.effort.many, 2)},
	}
	for round := range b.effort.rounds {
		for _, p := range patterns {
			for _, i := range turns(len(servers), round) {
				if err := b.nfsOnce(ctx, servers[i], p); err != nil {
					return errs.Wrap("read from", servers[i].name, err)
				}
			}
		}
	}
	return nil
}

// findData looks where the exported file has data.
func (b *bed) findData() error {
	f, err := os.Open(b.file)
	if err != nil {
		return err
	}
	defer f.Close()
	b.data, err = dataRanges(f)
	if err == nil && total(b.data) < window {
		err = errs.Text("find the data of", b.file, errs.Invalid, "there is nearly none")
	}
	return err
}

// nfsOnce starts a server and reads one pattern twice: cold and warm.
func (b *bed) nfsOnce(ctx context.Context, s served, p pattern) (err error) {
	b.dropCaches()
	srv, err := s.start(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if serr := srv.stop(); err == nil {
			err = serr
		}
	}()
	c, err := dial(ctx, srv.place)
	if err != nil {
		return err
	}
	defer c.Close()
	if s.qcow2 {
		if err := c.qcow2Shift(); err != nil {
			return err
		}
	}
	for _, state := range []string{"cold", "warm"} {
		sum, err := b.watch(srv.process.PID(), p.work, func() (reading, error) { return c.read(p.work, p.depth) })
		if err != nil {
			return err
		}
		b.add(key{"nfs", p.name + ", " + state, s.name, s.peer}, sum)
	}
	return nil
}

// watch reads and looks what a server used for it. What was read is verified when the clocks have stopped.
func (b *bed) watch(pid int, work []byteRange, read func() (reading, error)) (sample, error) {
	before, err := measure.ProcessCPU(pid)
	if err != nil {
		return sample{}, err
	}
	r, err := read()
	if err != nil {
		return sample{}, err
	}
	after, err := measure.ProcessCPU(pid)
	if err != nil {
		return sample{}, err
	}
	s := r.sample()
	s.cpu = (after - before).Seconds()
	if s.peak, err = measure.ProcessPeak(pid); err != nil {
		return s, err
	}
	return s, r.verify(work, b.file)
}

// serveFormat returns how our server is started.
func (b *bed) serveFormat(format string) func(context.Context) (*server, error) {
	return func(ctx context.Context) (*server, error) {
		p, line, err := b.foreground(ctx, "point", "serve", b.store.first, "--nfs", "127.0.0.1:0", "--format", format, "--cache", cacheMiB)
		if err != nil {
			return nil, err
		}
		var ready struct {
			URL string `json:"url"`
		}
		at, err := place{}, json.Unmarshal(line, &ready)
		if err == nil {
			at, err = parseURL(ready.URL)
		}
		if err != nil {
			p.Kill()
			return nil, err
		}
		return &server{p, at}, nil
	}
}

// foreground starts a command of holdfast that goes on, and waits for its first line.
func (b *bed) foreground(ctx context.Context, args ...string) (*proc.Process, []byte, error) {
	lines := make(firstLine, 1)
	p, err := proc.Start(ctx, proc.Spec{Args: append([]string{b.bin}, args...), Env: b.store.env(), Dir: b.opts.WorkDir, Stdout: &lineWriter{to: lines}})
	if err != nil {
		return nil, nil, err
	}
	late := time.NewTimer(readyWithin)
	defer late.Stop()
	select {
	case line := <-lines:
		return p, line, nil
	case <-p.Done():
		return nil, nil, errs.Text("start", "holdfast "+args[0], errs.Bug, "it ended; it said: "+p.Tail())
	case <-late.C:
		p.Kill()
		return nil, nil, errs.Text("start", "holdfast "+args[0], errs.Bug, "it was not ready within "+readyWithin.String())
	}
}

type firstLine chan []byte

// lineWriter hands the first line of what a program writes on.
type lineWriter struct {
	got []byte
	to  firstLine
}

// Write implements io.Writer and never fails.
func (w *lineWriter) Write(p []byte) (int, error) {
	if w.to == nil {
		return len(p), nil
	}
	for _, c := range p {
		if c == '\n' {
			w.to <- w.got
			w.to = nil
			break
		}
		w.got = append(w.got, c)
	}
	return len(p), nil
}
