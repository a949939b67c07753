package linux_test

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/lab/guest"
	"github.com/holdfast-backup/holdfast/internal/lab/linux"
)

// sanlock is the daemon that keeps two hosts from one disk. vdsm runs it on every host; it reads and writes the domain's
// small files with O_DIRECT, and gives a host id up if it cannot for 80 seconds.
const sanlock = "/usr/sbin/sanlock"

// sanlockFiles are what the daemon looks up: its user with the groups that it has on a host.
var sanlockFiles = map[string]string{
	"/etc/passwd": "root:x:0:0::/:/bin/sh\nsanlock:x:179:179::/:/bin/false\n",
	"/etc/group":  "root:x:0:\nkvm:x:36:sanlock\nsanlock:x:179:\n",
	"/etc/hosts":  "127.0.0.1 localhost\n",
}

// sleep is a program that does nothing, to hold a lease.
const sleep = "/bin/sleep"

// hosts are two hosts' sanlocks, each with a host id of its own in the domain's lockspace.
type hosts struct {
	s       *session
	guests  [2]*linux.Machine
	ids     [2]int
	joining sync.WaitGroup
	failed  [2]error
	at      string // where the domain is mounted, until the end
}

// join starts the daemons and has them take their host ids, which takes half a minute of waiting by design.
func (s *session) join(t *testing.T, r *rig) *hosts {
	t.Helper()
	h := &hosts{s: s, guests: [2]*linux.Machine{r.a, r.b}, ids: [2]int{11, 12}, at: "/mnt/domain"}
	for i, m := range h.guests {
		s.mount(t, m, h.at)
		for _, dir := range []string{"/run/sanlock", "/var/log", "/var/run"} {
			call[guest.Nothing](t, m, "Work.Folder", dir)
		}
		h.run(t, i, "daemon", "-w", "0", "-e", fmt.Sprint("host", i))
		until(t, "the daemon listens", func() bool {
			_, err := m.Run(t.Context(), sanlock, "client", "status")
			return err == nil
		})
		h.joining.Go(func() { _, h.failed[i] = m.Run(t.Context(), sanlock, "client", "add_lockspace", "-s", h.lockspace(i)) })
	}
	return h
}

// lockspace is a host's place in the domain's lockspace.
func (h *hosts) lockspace(i int) string {
	return fmt.Sprintf("%s:%d:%s/%s/dom_md/ids:0", h.s.domain, h.ids[i], h.at, h.s.domain)
}

// run runs a command of sanlock's.
func (h *hosts) run(t *testing.T, i int, args ...string) string {
	t.Helper()
	out, err := h.guests[i].Run(t.Context(), append([]string{sanlock}, args...)...)
	if err != nil {
		t.Fatalf("%v; %s\nits log: %s", err, out, h.log(t, i))
	}
	return out
}

func (h *hosts) log(t *testing.T, i int) string {
	t.Helper()
	out, err := h.guests[i].Run(t.Context(), sanlock, "client", "log_dump") // ends with 1, though it has printed all
	if out == "" && err != nil {
		return err.Error()
	}
	return out
}

// lease has one host take the lease of the VM's disk and hold it, and the other one refused.
func (h *hosts) lease(t *testing.T) {
	h.joining.Wait()
	for i, err := range h.failed {
		if err != nil {
			t.Fatalf("%v; its log: %s", err, h.log(t, i))
		}
	}
	volume := h.at + "/" + h.s.volume
	resource := fmt.Sprintf("%s:%s:%s.lease:0", h.s.domain, path.Base(volume), volume)
	held := make(chan error, 1)
	go func() {
		args := guest.RunArgs{Args: []string{sanlock, "client", "command", "-r", resource, "-c", sleep, "1000"}, Within: time.Hour}
		held <- h.guests[0].Call(t.Context(), "Agent.Run", args, &guest.RunReply{})
	}()
	until(t, "the lease is held", func() bool {
		return strings.Contains(h.run(t, 0, "client", "status"), "r "+resource)
	})
	out, err := h.guests[1].Run(t.Context(), sanlock, "client", "command", "-r", resource, "-c", sleep, "0")
	t.Logf("the other host: %v %s", err, out)
	if err == nil {
		t.Error("two hosts hold one lease")
	}
	if leader := h.run(t, 1, "direct", "read_leader", "-r", resource); field(t, leader, "owner_id") != h.ids[0] {
		t.Errorf("the lease is said to be owned so:\n%s", leader)
	}
	// The holder ends, and with it the lease; the other host gets it.
	h.endHolder(t)
	<-held
	until(t, "the other host gets the lease", func() bool {
		_, err := h.guests[1].Run(t.Context(), sanlock, "client", "command", "-r", resource, "-c", sleep, "0")
		return err == nil
	})
}

// endHolder ends the program that holds the lease on the first host.
func (h *hosts) endHolder(t *testing.T) {
	t.Helper()
	call[guest.Nothing](t, h.guests[0], "Work.EndProgram", sleep)
}

// until waits for something that a guest will have done.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(90 * time.Second); !is(); <-time.After(200 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

// field is a number in what sanlock prints.
func field(t *testing.T, text, name string) int {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + name + ` +(\d+)`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("there is no %s in:\n%s", name, text)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// renewed is when a host has last renewed its id, by the domain's file, as the other host reads it.
func (h *hosts) renewed(t *testing.T, i int) int {
	t.Helper()
	return field(t, h.run(t, 1-i, "direct", "read_leader", "-s", h.lockspace(i)), "timestamp")
}

// leave looks whether both still hold their ids, waits until they have renewed them once more, and gives them back.
func (h *hosts) leave(t *testing.T) {
	for i := range h.guests {
		if status := h.run(t, i, "client", "status"); !strings.Contains(status, "s "+h.lockspace(i)) {
			t.Fatalf("host %d has lost its id: %s\n%s", i, status, h.log(t, i))
		}
		if log := h.log(t, i); strings.Contains(log, "check_our_lease failed") || strings.Contains(log, "corrupt") {
			t.Errorf("host %d complains: %s", i, log)
		}
	}
	before := []int{h.renewed(t, 0), h.renewed(t, 1)}
	for i := range h.guests {
		until(t, "host ids are renewed", func() bool { return h.renewed(t, i) > before[i] })
	}
	for i := range h.guests {
		h.run(t, i, "client", "rem_lockspace", "-s", h.lockspace(i))
		if at := h.renewed(t, i); at != 0 {
			t.Errorf("host id %d is not free: its time is %d", h.ids[i], at)
		}
		h.run(t, i, "client", "shutdown", "-f", "1")
	}
}
