package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
)

// slowClient reads what cannot be read.
func slowClient(c *client) {
	flags := unix.O_RDONLY
	if len(c.args) > 0 {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(c.path("slow"), flags, 0)
	c.must("open", err)
	fmt.Println("reading")
	_, err = unix.Read(fd, make([]byte, 10))
	c.refuses("read", err, unix.EIO)
}

// interruptClient gets a signal while it reads. It is the thread that waits for the kernel which must get it.
func interruptClient(c *client) {
	fd, err := unix.Open(c.path("slow"), unix.O_RDONLY|unix.O_DIRECT, 0)
	c.must("open", err)
	signal.Notify(make(chan os.Signal, 100), unix.SIGUSR1)
	runtime.LockOSThread()
	thread := unix.Gettid()
	go func() {
		for { // a signal sent before the read began interrupts nothing
			time.Sleep(100 * time.Millisecond)
			c.must("signal", unix.Tgkill(os.Getpid(), thread, unix.SIGUSR1))
		}
	}()
	_, err = unix.Read(fd, make([]byte, 10))
	if c.args[0] == "long" {
		c.refuses("read", err, unix.EINTR)
	} else {
		c.must("read", err)
	}
}

func TestContextEndsWithTheReader(t *testing.T) {
	ended := make(chan error, 100)
	slow := withRead{newPattern(5, 100), func(ctx context.Context, p []byte, off int64) (int, error) {
		<-ctx.Done()
		ended <- ctx.Err()
		return 0, ctx.Err()
	}}
	told := func() {
		t.Helper()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the read ended with %v", err)
			}
			if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the last try ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the tree was not told that its reader is gone")
		}
	}
	mount := show(t, Options{Tree: static(map[string]fs.Node{"slow": slow})})
	use(t, mount.Dir(), "interrupt", "long")
	told()
	kill := func(args ...string) {
		t.Helper()
		p := start(t, append([]string{"client", "slow", mount.Dir()}, args...)...)
		p.line()
		time.Sleep(100 * time.Millisecond) // the client has said that it will read, not that it does
		begun := time.Now()
		p.kill()
		if d := time.Since(begun); d > 5*time.Second {
			t.Errorf("the reader needed %v to die", d)
		}
	}
	kill("direct")
	told()
	kill() // the kernel goes on reading ahead, but the reader is gone, and so is the mount when asked
	if err := mount.Unmount(); err != nil {
		t.Error(err)
	}
	told()
}

func TestSignalsDoNotDisturbReaders(t *testing.T) {
	slow := withRead{newPattern(5, 100), func(ctx context.Context, p []byte, off int64) (int, error) {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(300 * time.Millisecond): // the client gets a signal every 100 ms
			return len(p), nil
		}
	}}
	mount := show(t, Options{Tree: static(map[string]fs.Node{"slow": slow})})
	use(t, mount.Dir(), "interrupt", "short")
}

func TestDelayIsWaitedFor(t *testing.T) {
	var tries atomic.Int32
	away := withRead{newPattern(5, 100), nil}
	away.read = func(ctx context.Context, p []byte, off int64) (int, error) {
		if tries.Add(1) <= 3 {
			return 0, fs.StatusDelay
		}
		return away.pattern.ReadAt(ctx, p, off)
	}
	mount := show(t, Options{Tree: static(map[string]fs.Node{"pattern": away})})
	use(t, mount.Dir(), "reads", "100")
	if n := tries.Load(); n < 4 {
		t.Errorf("%d tries", n)
	}
	gone := withRead{newPattern(5, 100), func(context.Context, []byte, int64) (int, error) { return 0, fs.StatusDelay }}
	limited := show(t, Options{
		Tree: static(map[string]fs.Node{"slow": gone}), DelayLimit: 300 * time.Millisecond,
	})
	p := start(t, "client", "slow", limited.Dir())
	p.line()
	begun := time.Now()
	p.finish() // it checks for EIO
	if d := time.Since(begun); d < 200*time.Millisecond || d > 10*time.Second {
		t.Errorf("given up after %v", d)
	}
}

func TestPanicIsOnlyAnError(t *testing.T) {
	broken := withRead{newPattern(5, 100), func(context.Context, []byte, int64) (int, error) { panic("a bug") }}
	panics := make(chan any, 100)
	mount := show(t, Options{
		Tree:   static(map[string]fs.Node{"slow": broken, "pattern": newPattern(6, 1000)}),
		Events: Events{Panic: func(v any, stack []byte) { panics <- fmt.Sprintf("%v %v", v, len(stack) > 100) }},
	})
	p := start(t, "client", "slow", mount.Dir())
	p.line()
	p.finish()
	if got := <-panics; got != "a bug true" {
		t.Errorf("the event says %v", got)
	}
	use(t, mount.Dir(), "reads", "1000")
}

func TestShortReadIsAnError(t *testing.T) {
	short := withRead{newPattern(5, 100), func(_ context.Context, p []byte, _ int64) (int, error) { return 1, nil }}
	mount := show(t, Options{Tree: static(map[string]fs.Node{"slow": short})})
	p := start(t, "client", "slow", mount.Dir())
	p.line()
	p.finish()
}
