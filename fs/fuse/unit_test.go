package fuse

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/fs"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestErrnosAreTotal(t *testing.T) {
	for _, s := range fs.Statuses {
		e := errnos[s]
		if (e == 0) != (s == fs.StatusOK) {
			t.Errorf("status %q has the errno %d", s, e)
		}
		if e == syscall.ENOSYS {
			t.Errorf("status %q has ENOSYS, after which the kernel never asks again", s)
		}
	}
}

func quiet() *view { return &view{delayLimit: time.Minute, log: slog.New(slog.DiscardHandler)} }

func TestErrnoOfKinds(t *testing.T) {
	for kind, want := range map[errs.Kind]syscall.Errno{
		errs.Corrupt: syscall.EIO, errs.Bug: syscall.EIO, errs.NoSpace: syscall.ENOSPC, errs.Denied: syscall.EACCES,
		errs.NotFound: syscall.ENOENT, errs.Unsupported: syscall.EOPNOTSUPP,
	} {
		if got := quiet().errno("x", 1, errs.New("x", "", kind, nil)); got != want {
			t.Errorf("%v: %v, want %v", kind, got, want)
		}
	}
}

func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, tries := time.Now(), 0
		errno := quiet().again(t.Context(), "x", 1, func(context.Context) error {
			if tries++; time.Since(begun) < 10*time.Second {
				return errs.New("x", "", errs.Transient, nil)
			}
			return nil
		})
		if errno != 0 || tries > 30 {
			t.Errorf("back after ten seconds: %v, %d tries", errno, tries)
		}
		begun = time.Now()
		errno = quiet().again(t.Context(), "x", 1, func(context.Context) error { return fs.StatusDelay })
		if d := time.Since(begun); errno != syscall.EIO || d != time.Minute {
			t.Errorf("never back: %v after %v", errno, d)
		}
		tries = 0
		errno = quiet().again(t.Context(), "x", 1, func(context.Context) error { tries++; return fs.StatusNoSpace })
		if errno != syscall.ENOSPC || tries != 1 {
			t.Errorf("another failure: %v, %d tries", errno, tries)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begun = time.Now()
		errno = quiet().again(ctx, "x", 1, func(context.Context) error { return fs.StatusDelay })
		if d := time.Since(begun); errno != syscall.EINTR || d != 3*time.Second {
			t.Errorf("interrupted: %v after %v", errno, d)
		}
	})
}

func TestInterruptedOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct{ takes, until time.Duration }{
			{300 * time.Millisecond, 300 * time.Millisecond},   // done before the signal
			{900 * time.Millisecond, 1400 * time.Millisecond},  // cut off by it, and done in the grace
			{1500 * time.Millisecond, 1500 * time.Millisecond}, // too long for the grace
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			begun := time.Now()
			errno := quiet().again(ctx, "read", 1, func(ctx context.Context) error {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(c.takes):
					return nil
				}
			})
			cancel()
			want := syscall.Errno(0)
			if c.takes > time.Second {
				want = syscall.EINTR
			}
			if errno != want || time.Since(begun) != c.until {
				t.Errorf("an operation of %v: %v after %v", c.takes, errno, time.Since(begun))
			}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		whole, done := quiet().whole(ended)
		defer done()
		if whole.Err() != nil {
			t.Error("a change of names was interrupted")
		}
		if _, ok := whole.Deadline(); !ok {
			t.Error("a change of names may take for ever")
		}
	})
}

func TestFaultsAreLoggedAndThrottled(t *testing.T) {
	var b strings.Builder
	v := quiet()
	v.log = slog.New(slog.NewTextHandler(&b, nil))
	for range 1000 {
		v.errno("read", 7, errs.Text("read pack", "p", errs.Corrupt, "bad tag"))
	}
	if n := strings.Count(b.String(), "\n"); n > 3 || !strings.Contains(b.String(), "read pack p: bad tag") {
		t.Errorf("%d lines:\n%s", n, &b)
	}
	var th throttle
	now := time.Unix(1, 0)
	for i, c := range []struct {
		after time.Duration
		ok    bool
		left  int
	}{{0, true, 0}, {0, false, 0}, {time.Second / 2, false, 0}, {time.Second / 2, true, 2}, {time.Hour, true, 0}} {
		now = now.Add(c.after)
		if ok, left := th.pass(now); ok != c.ok || left != c.left {
			t.Errorf("call %d: %v, %d left out", i, ok, left)
		}
	}
}

func TestParseMounts(t *testing.T) {
	table := `22 27 0:20 / /proc rw,nosuid - proc proc rw
40 27 0:41 / /mnt/a\040b\134c rw,nosuid,nodev shared:5 master:2 - fuse.holdfast holdfast rw,user_id=0
41 27 0:42 / /mnt/x rw - fuse.sshfs holdfast rw
42 27 0:43 / /mnt/y rw - fuse.holdfast other rw
broken line
43 27 0:44 / /mnt/z rw -
44 27 0:45 / /mnt/\0zz rw shared:1 - ext4 /dev/sda1 rw
`
	all := parseMounts([]byte(table))
	if len(all) != 5 {
		t.Fatalf("%d mounts: %+v", len(all), all)
	}
	if m := all[1]; m.device != "0:41" || m.dir != `/mnt/a b\c` || !m.ours() {
		t.Errorf("%+v", m)
	}
	for _, i := range []int{0, 2, 3, 4} {
		if all[i].ours() {
			t.Errorf("%+v is not ours", all[i])
		}
	}
	if all[4].dir != `/mnt/\0zz` {
		t.Errorf("a broken escape must stay as it is: %q", all[4].dir)
	}
}

func TestMountErrorsHaveAKind(t *testing.T) {
	if err := mountError("/d", unix.EPERM); !errs.Is(err, errs.Denied) || errs.NextStep(err) == "" {
		t.Errorf("%v", err)
	}
	if err := emptyDir("/d", errors.New("odd")); err == nil {
		t.Error("a folder that cannot be looked at was accepted")
	}
	for _, alive := range []error{nil, context.DeadlineExceeded} {
		if err := inUse("/d", mounted{device: "0:77"}, alive); !errs.Is(err, errs.Busy) || errs.NextStep(err) == "" {
			t.Errorf("%v", err)
		}
	}
	if got := errs.NextStep(inUse("/d", mounted{device: "0:77"}, context.DeadlineExceeded)); !strings.Contains(got, "/77/") {
		t.Errorf("next: %s", got)
	}
}
