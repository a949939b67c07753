package netns

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
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
	l, err := net.Listen("tcp", net.JoinHostPort(address.String(), "111"))
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

func TestDetachedProgramIsReachedOverItsLink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root; `make test` runs it")
	}
	t.Setenv(stage, "linked")
	output, log, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	d, err := Detach(nil, log)
	_ = log.Close()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan int, 1)
	go func() {
		state, _ := d.Process.Wait()
		ended <- state.ExitCode()
	}()
	if d.Unlinked != nil {
		_ = d.Process.Kill()
		t.Fatal(d.Unlinked)
	}
	text, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address, _, _ := net.SplitHostPort(strings.TrimSpace(text))
	if address == "127.0.0.1" || address == "" {
		t.Fatalf("it listens at %q, which is not on the link", text)
	}
	c, err := net.DialTimeout("tcp", net.JoinHostPort(address, "111"), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if code := <-ended; code != 42 {
		t.Errorf("exit code %d, want 42", code)
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
