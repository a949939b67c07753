package product

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// roleKey makes the test binary one of the product's programs, which are made up here: the value says which, and after
// a comma how it behaves.
const roleKey = "HOLDFAST_PRODUCT_TEST"

func TestMain(m *testing.M) {
	role, how, _ := strings.Cut(os.Getenv(roleKey), ",")
	switch role {
	case "holdfast":
		os.Exit(commandLine(how))
	case "holdfastd":
		os.Exit(daemon(how))
	}
	os.Exit(m.Run())
}

// commandLine prints what it was given, and what of the environment counts.
func commandLine(how string) int {
	switch how {
	case "fails":
		fmt.Fprintln(os.Stderr, "holdfast: it cannot be\n  Do something else.")
		return 4
	case "nonsense":
		fmt.Println("no document")
		return 0
	}
	fmt.Fprintln(os.Stderr, "progress")
	fmt.Printf(`{"args":%q,"node":%q,"store":%q}`+"\n",
		strings.Join(os.Args[1:], " "), os.Getenv("HOLDFAST_NODE"), os.Getenv("HOLDFAST_STORE"))
	return 0
}

// daemon says that it is ready, as to systemd, and waits until it is told to end.
func daemon(how string) int {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	switch how {
	case "dies":
		fmt.Fprintln(os.Stderr, "holdfastd: the store is locked")
		return 4
	case "leaves":
		return 0
	case "waits":
	default:
		c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err != nil {
			return 99
		}
		_, _ = c.Write([]byte("READY=1"))
		_ = c.Close()
	}
	select {
	case <-told:
	case <-time.After(time.Minute): // whatever becomes of the test
	}
	if how == "unclean" {
		fmt.Fprintln(os.Stderr, "holdfastd: something is left")
		return 1
	}
	return 0
}

// programs makes the two programs in a folder and returns it.
func programs(t *testing.T, holdfast, holdfastd string) string {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, how := range map[string]string{"holdfast": holdfast, "holdfastd": holdfastd} {
		// Without GORACE a program with the race detector waits a second before it ends.
		script := fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 %s=%s,%s exec '%s' \"$@\"\n", roleKey, name, how, self)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// install installs a made-up product, in a folder whose path is short enough.
func install(t *testing.T, holdfast, holdfastd string) *Node {
	t.Helper()
	dir, err := os.MkdirTemp("", "node")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n, err := Install(t.Context(), Options{
		BinDir: programs(t, holdfast, holdfastd), Dir: filepath.Join(dir, "n"), Address: "192.0.2.7", Log: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Kill)
	return n
}

func TestInstallSaysWhatTheDaemonHasToKnow(t *testing.T) {
	n := install(t, "", "")
	b, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"store: " + n.Store, "passphrase_file: " + n.PassphraseFile, "socket: " + n.Socket,
		"token_file: " + n.TokenFile, "listen: 192.0.2.7:9443", "listen: 192.0.2.7:2049",
		"allow: [192.0.2.7]", "portmap: true"} {
		if !strings.Contains(string(b), want+"\n") {
			t.Errorf("the configuration lacks %q:\n%s", want, b)
		}
	}
	if n.API != "https://192.0.2.7:9443" || filepath.Dir(n.CertFile) != filepath.Join(n.opts.Dir, "state", "tls") {
		t.Errorf("API %s, certificate %s", n.API, n.CertFile)
	}
	for _, secret := range []string{n.PassphraseFile, n.config} {
		if info, err := os.Stat(secret); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", secret, info.Mode(), err)
		}
	}
}

func TestInstallFailsAsItsParts(t *testing.T) {
	bin := programs(t, "fails", "")
	long := "/" + strings.Repeat("x", maxSocketPath)
	if _, err := Install(t.Context(), Options{BinDir: bin, Dir: long}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a path that is too long: %v", err)
	}
	dir, err := os.MkdirTemp("", "node")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	_, err = Install(t.Context(), Options{BinDir: bin, Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "exit status 4") || !strings.Contains(err.Error(), "it cannot be") {
		t.Errorf("no store was made: %v", err)
	}
	none := filepath.Join(dir, "none")
	if _, err := Install(t.Context(), Options{BinDir: none, Dir: dir}); !errs.Is(err, errs.NotFound) {
		t.Errorf("without programs: %v", err)
	}
}

func TestRunKnowsTheNodeAndReadsDocuments(t *testing.T) {
	n := install(t, "", "")
	var got struct{ Args, Node, Store string }
	var out bytes.Buffer
	if err := n.Run(t.Context(), &got, &out, "vm", "show", "web 1"); err != nil {
		t.Fatal(err)
	}
	if got.Args != "vm show web 1 -o json" || got.Node != "unix://"+n.Socket || got.Store != n.Store {
		t.Errorf("it was run with %+v", got)
	}
	if out.String() != "progress\n" {
		t.Errorf("told was %q", out.String())
	}
	out.Reset()
	err := n.Run(t.Context(), nil, &out, "vm", "list")
	if err != nil || !strings.Contains(out.String(), `"args":"vm list"`) {
		t.Errorf("%q, %v", out.String(), err)
	}
	n = install(t, "", "")
	n.opts.BinDir = programs(t, "nonsense", "")
	err = n.Run(t.Context(), &got, &out, "vm", "list")
	if !errs.Is(err, errs.Bug) || !strings.Contains(err.Error(), "no document") {
		t.Errorf("nonsense: %v", err)
	}
	n.opts.BinDir = programs(t, "fails", "")
	if err := n.Run(t.Context(), &got, &out, "vm", "list"); err == nil || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("a failure: %v", err)
	}
}

func TestTheDaemonIsStartedStoppedAndKilled(t *testing.T) {
	n := install(t, "", "")
	if err := n.Stop(); err != nil {
		t.Errorf("stopped before it was started: %v", err)
	}
	for range 2 {
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); !errs.Is(err, errs.Exists) {
			t.Errorf("started twice: %v", err)
		}
		n.Kill()
		<-n.Done()
		n.Kill()
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-n.Done():
		t.Fatal("it ended with the context of the one who started it")
	case <-time.After(50 * time.Millisecond):
	}
	if err := n.Stop(); err != nil {
		t.Error(err)
	}
	if names, err := filepath.Glob(filepath.Join(n.opts.Dir, "ready*")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

func TestADaemonThatIsNotWellIsToldOf(t *testing.T) {
	for _, c := range []struct{ how, says string }{
		{"dies", "the store is locked"},
		{"leaves", "it ended at once"},
	} {
		n := install(t, "", c.how)
		if err := n.Start(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.how, err)
		}
	}
	n := install(t, "", "unclean")
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err == nil || !strings.Contains(err.Error(), "something is left") {
		t.Errorf("it ended badly: %v", err)
	}
	n = install(t, "", "waits")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := n.Start(ctx); !errs.Is(err, errs.Canceled) {
		t.Errorf("it is never ready: %v", err)
	}
	<-n.Done()
}
