package netns

import (
	"bufio"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// linked runs in the detached process: it answers one connection at its address on the link.
func linked() int {
	if err := Enter(); err != nil {
		return 9
	}
	address, err := Join()
	if err != nil {
		return 8
	}
	l, err := listen(net.JoinHostPort(address.String(), "111"))
	if err != nil {
		return 7
	}
	_, _ = os.Stdout.WriteString(l.Addr().String() + "\n")
	c, err := l.Accept()
	if err != nil {
		return 6
	}
	_, _ = io.WriteString(c, "hello")
	_ = c.Close()
	return 42
}

// listen listens for half a minute, so that no test that dies leaves a process for good.
func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return l, l.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second))
}

// left runs in the detached process: it leaves its link and goes on until it is killed.
func left() int {
	if err := Enter(); err != nil {
		return 9
	}
	if _, err := Join(); err != nil {
		return 8
	}
	if err := Leave(); err != nil {
		return 7
	}
	if err := Leave(); err != nil { // there is nothing left to leave
		return 6
	}
	l, err := listen("127.0.0.1:0")
	if err != nil {
		return 5
	}
	_, _ = os.Stdout.WriteString("left\n")
	_, _ = l.Accept() // nobody comes
	return 4
}

// child is a detached process.
type child struct {
	*Detached
	line string // the first that it wrote
	code chan int
}

// detach starts the test binary again, in one of its roles, and ends it with the test.
func detach(t *testing.T, role string) (child, error) {
	output, log, err := os.Pipe()
	if err != nil {
		return child{}, err
	}
	defer output.Close()
	d, err := Detach(Spec{Env: []string{stage + "=" + role}, Log: log})
	_ = log.Close()
	if err != nil {
		return child{}, err
	}
	c := child{Detached: d, code: make(chan int, 1)}
	go func() {
		state, _ := d.Process.Wait()
		c.code <- state.ExitCode()
		close(c.code)
	}()
	t.Cleanup(func() {
		_ = d.Process.Kill() // it has ended, unless the test failed
		for range c.code {
		}
	})
	if d.Unlinked != nil {
		return c, d.Unlinked
	}
	c.line, err = bufio.NewReader(output).ReadString('\n')
	c.line = strings.TrimSpace(c.line)
	return c, err
}

func needRoot(t *testing.T) {
	t.Helper()
	if NeedRoot() != nil {
		t.Skip("needs root; `make test` runs it")
	}
}

func TestDetachedProgramsAreReachedOverTheirLinks(t *testing.T) {
	needRoot(t)
	// They choose their addresses at the same time.
	var children [4]child
	var starts sync.WaitGroup
	for i := range children {
		starts.Go(func() {
			var err error
			if children[i], err = detach(t, "linked"); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	var seen []string
	for _, c := range children {
		address, port, _ := net.SplitHostPort(c.line)
		if address == "127.0.0.1" || port != "111" || slices.Contains(seen, address) {
			t.Errorf("one listens at %q, others at %v", c.line, seen)
		}
		seen = append(seen, address)
	}
	if t.Failed() {
		return
	}
	for _, c := range children {
		if got := hear(t, c.line); got != "hello" {
			t.Errorf("%s says %q", c.line, got)
		}
		if code := <-c.code; code != 42 {
			t.Errorf("exit code %d, want 42", code)
		}
	}
}

// hear returns what somebody says who is connected to.
func hear(t *testing.T, address string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer conn.Close()
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return string(got)
}

func TestLeaveTakesTheLinkAwayAtOnce(t *testing.T) {
	needRoot(t)
	c, err := detach(t, "left")
	if err != nil || c.line != "left" {
		t.Fatalf("it wrote %q, %v", c.line, err)
	}
	if i, err := net.InterfaceByName("lab" + strconv.Itoa(c.Process.Pid)); err == nil {
		t.Errorf("%s is still there", i.Name)
	}
	_ = c.Process.Kill()
	if code := <-c.code; code != -1 {
		t.Errorf("it ended by itself, with exit code %d", code)
	}
}

func TestFreeSubnetIsNotOursAlready(t *testing.T) {
	p, err := freeSubnet()
	if err != nil {
		t.Fatal(err)
	}
	if !pool.Contains(p.outside) || p.outside.Next() != p.inside || p.inside.As4()[3]%4 != 2 {
		t.Errorf("%v and %v are no pair in %v", p.outside, p.inside, pool)
	}
}
