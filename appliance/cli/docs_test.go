package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestTheManualsExamples runs them in their order.
func TestTheManualsExamples(t *testing.T) {
	b := boxAt(t, t.TempDir())
	for _, dir := range []string{"backup", "images", "mnt/points"} {
		if err := os.MkdirAll(b.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	b.store, b.env["HOLDFAST_STORE"] = b.path("backup/store"), b.path("backup/store")
	b.disk("images/web.raw", 1, mib)
	b.file("images/password", []byte("secret\n"))
	b.file("images/passphrase", []byte(passphrase+"\n"))
	b.file("images/new-passphrase", []byte("another\n"))
	b.file("images/ca.pem", []byte("-----BEGIN CERTIFICATE-----\n"))
	blocks := regexp.MustCompile("(?s)```\n(.*?)```").FindAllStringSubmatch(manual(t), -1)
	if len(blocks) < 8 {
		t.Fatalf("only %d blocks of examples", len(blocks))
	}
	for _, block := range blocks {
		for line := range strings.Lines(block[1]) {
			args := strings.Fields(regexp.MustCompile(` /(backup|images|mnt)/`).ReplaceAllString(line, " "+b.dir+"/$1/"))
			if args[0] != "holdfast" {
				t.Errorf("not a command of ours: %s", line)
				continue
			}
			b.example(args[1:])
		}
	}
}

// example runs one; those that go on are ended when they are ready.
func (b *box) example(args []string) {
	b.t.Helper()
	goesOn := args[0] == "mount" || slices.Contains(args, "serve")
	if !goesOn {
		b.ok(args...)
		return
	}
	if _, err := os.Stat("/dev/fuse"); args[0] == "mount" && (err != nil || os.Geteuid() != 0) {
		b.t.Log("not run here: mount")
		return
	}
	p := b.start(args...)
	p.line()
	if code := p.end(syscall.SIGINT); code != 0 {
		b.t.Errorf("%q: exit code %d\n%s", args, code, p.said())
	}
}

// TestTheManualIsComplete looks for every command, flag and exit code.
func TestTheManualIsComplete(t *testing.T) {
	text := manual(t)
	a := &app{World: World{Getenv: func(string) string { return "" }}}
	for _, c := range a.root().Commands() {
		for _, sub := range below(c) {
			if sub.HasSubCommands() || sub.Name() == "help" || sub.Name() == "completion" {
				continue
			}
			if !strings.Contains(text, sub.CommandPath()) {
				t.Errorf("%s is missing", sub.CommandPath())
			}
			for line := range strings.Lines(sub.LocalFlags().FlagUsages()) {
				flag := regexp.MustCompile(`--[a-z0-9-]+`).FindString(line)
				if flag != "" && flag != "--help" && !strings.Contains(text, "`"+flag) && !strings.Contains(text, " "+flag) && !strings.Contains(text, "["+flag) {
					t.Errorf("%s of %s is missing", flag, sub.CommandPath())
				}
			}
		}
	}
	for _, k := range errs.Kinds {
		if !strings.Contains(text, fmt.Sprintf("\n| %d |", codes[k])) {
			t.Errorf("exit code %d is missing", codes[k])
		}
	}
	for _, code := range []int{exitOK, exitPartial, exitTimeout} {
		if !strings.Contains(text, fmt.Sprintf("\n| %d |", code)) {
			t.Errorf("exit code %d is missing", code)
		}
	}
}

// below returns a command and all its subcommands.
func below(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, below(sub)...)
	}
	return all
}

// tool runs a program of somebody else's that must succeed.
func tool(t *testing.T, pkg, name string, args ...string) string {
	t.Helper()
	if err := parts.Need([]parts.Part{{Path: name, Package: pkg}}); err != nil {
		needs(t, err.Error()+" ("+errs.NextStep(err)+")")
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// TestURLsAreLibnfs gives the URL as it is printed to a tool of libnfs.
func TestURLsAreLibnfs(t *testing.T) {
	b := newBox(t)
	b.imports(b.file("disk.raw", noise(1, mib)), "web")
	p, r := b.serve("web@latest", "--nfs", "127.0.0.1:0", "--format", "raw")
	if got := tool(t, "libnfs-utils", "nfs-cat", r.URL); got != string(noise(1, mib)) {
		t.Errorf("nfs-cat gives %d other bytes", len(got))
	}
	p.end(syscall.SIGINT)
}

// TestIncrementalImport follows an image with a dirty bitmap over three points.
func TestIncrementalImport(t *testing.T) {
	b := newBox(t)
	img, raw := b.path("disk.qcow2"), b.path("raw")
	write := func(commands ...string) {
		t.Helper()
		args := []string{"-f", "qcow2"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		tool(t, "qemu-utils", "qemu-io", append(args, img)...)
	}
	tool(t, "qemu-utils", "qemu-img", "create", "-f", "qcow2", img, "64M")
	write("write -P 1 0 8M", "write -P 2 20M 8M")
	last := b.imports(img, "web")
	for i, change := range [][]string{{"write -P 3 1M 64k", "write -z 21M 1M"}, {"write -P 4 60M 4k", "discard 0 512k"}} {
		tool(t, "qemu-utils", "qemu-img", "bitmap", "--add", img, "holdfast-"+last.Point)
		write(change...)
		res := b.imports(img, "web")
		if !res.Incremental || res.Parent != last.Point || res.Read > 2*mib {
			t.Errorf("import %d: %+v", i, res)
		}
		tool(t, "qemu-utils", "qemu-img", "convert", "-O", "raw", img, raw)
		if b.sha256(res.Point) != sum(t, raw) {
			t.Errorf("import %d: other bytes than qemu reads", i)
		}
		last = res
	}
	if all := b.imports(img, "web"); all.Incremental || all.New != 0 {
		t.Errorf("without a bitmap: %+v", all)
	}
	if left, _ := filepath.Glob(b.path("*.part")); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}
