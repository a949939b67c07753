package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-backup/holdfast/chunkstore/keys"
)

// contextDone is a context whose deadline has passed.
func contextDone(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithDeadline(t.Context(), time.Unix(0, 0))
}

func TestInit(t *testing.T) {
	b := boxAt(t, t.TempDir())
	var made struct{ Store, UUID, Kit string }
	b.json(&made, "init", b.store)
	if made.Store != b.store || len(made.UUID) != 32 || made.Kit != b.store+".kit" {
		t.Errorf("made %+v", made)
	}
	st, err := os.Stat(made.Kit)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the kit: %v, %v", st, err)
	}
	kit, err := os.ReadFile(made.Kit)
	if err != nil {
		t.Fatal(err)
	}
	if _, id, err := keys.ParseKit(kit); err != nil || fmt.Sprintf("%x", id) != made.UUID {
		t.Errorf("the kit is for %x: %v", id, err)
	}
	if out := b.ok("point", "list"); !strings.Contains(out, "no restore points yet") {
		t.Errorf("an empty store lists %q", out)
	}
	for _, out := range []string{b.ok("store", "status"), b.ok("store", "status", "-o", "json"), b.run("-v", "point", "list").err} {
		for line := range strings.Lines(string(kit)) {
			if _, row, ok := strings.Cut(line, ": "); ok && len(row) > 20 && strings.Contains(out, strings.TrimSpace(row)) {
				t.Errorf("a command shows the key: %s", out)
			}
		}
	}
	if out := b.ok("init", b.path("two"), "--kit", b.path("k")); !strings.Contains(out, b.path("k")) {
		t.Errorf("init says %q", out)
	}
}

// TestInitChoosesTheCutter: by content unless told otherwise, for the life of the store.
func TestInitChoosesTheCutter(t *testing.T) {
	b := boxAt(t, t.TempDir())
	for flag, want := range map[string]string{"": "cdc", "--cutter=cdc": "cdc", "--cutter=fixed-64k": "fixed-64k"} {
		dir := b.path("store" + want + flag)
		args := []string{"init", dir}
		if flag != "" {
			args = append(args, flag)
		}
		b.ok(args...)
		var st statusJSON
		if b.json(&st, "store", "status", "--store", dir); st.Cutter != want {
			t.Errorf("%q: the store is cut by %s, want %s", flag, st.Cutter, want)
		}
	}
	res := b.run("init", b.path("none"), "--cutter", "rabin", "--key-file", b.path("key"))
	if res.code != 2 || !strings.Contains(res.err, "cdc and fixed-64k") {
		t.Errorf("an unknown cutter: exit code %d, %q", res.code, res.err)
	}
	for _, name := range []string{"none", "key"} {
		if _, err := os.Lstat(b.path(name)); !os.IsNotExist(err) {
			t.Errorf("it left %s", name)
		}
	}
}

func TestInitRefuses(t *testing.T) {
	b := newBox(t)
	if err := os.MkdirAll(b.path("full/sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"link": b.path("full"), "sublink": b.path("full/sub")} {
		if err := os.Symlink(to, b.path(from)); err != nil {
			t.Fatal(err)
		}
	}
	taken := b.file("taken.kit", []byte("another store's"))
	for _, tc := range []struct {
		args string
		code int
		word string
	}{
		{b.store, exitConflict, "there is a store in it already"},
		{b.path("full"), exitConflict, "it is not empty"},
		{b.path("new") + " --kit " + taken, exitConflict, "the file exists"},
		{b.path("new") + " --kit " + b.path("new/kit"), exitUsage, "inside the store"},
		{b.path("new") + " --kit " + b.path("new"), exitUsage, "inside the store"},
		{b.path("new") + " --kit " + b.path("x/../new/sub/kit"), exitUsage, "inside the store"},
		{b.path("full") + " --kit " + b.path("link/kit"), exitUsage, "inside the store"},
		{b.path("link") + " --kit " + b.path("full/kit"), exitUsage, "inside the store"},
		{b.path("full") + " --kit " + b.path("sublink/kit"), exitUsage, "inside the store"},
		{b.path("link/new") + " --kit " + b.path("full/new/kit"), exitUsage, "inside the store"},
		{b.path("new") + " --kit " + b.path("nowhere/kit"), exitNotFound, "nowhere"},
		{b.path("taken.kit") + "/store", exitUsage, "not a directory"},
	} {
		b.fails(tc.code, append([]string{"init"}, strings.Fields(tc.args)...), tc.word)
	}
	if got, err := os.ReadFile(taken); err != nil || string(got) != "another store's" {
		t.Errorf("the other kit: %q, %v", got, err)
	}
	for _, f := range []string{"store.kit", "full.kit", "full.kit.part", "store.kit.part"} {
		if _, err := os.Lstat(b.path(f)); err == nil {
			t.Errorf("a refused init left %s", f)
		}
	}
	b.file("passphrase", nil)
	b.fails(exitUsage, []string{"init", b.path("new")}, "does not hold a passphrase")
	b.ok("init", b.path("new"), "--passphrase-file", b.file("p", []byte("word\r\nignored")), "--kit", b.path("new-kit"))
	b.ok("store", "status", "--store", b.path("new"), "--passphrase-file", b.file("p2", []byte("word")))
}

// TestInitCutShort repeats an init that ended at each of its steps.
func TestInitCutShort(t *testing.T) {
	b := boxAt(t, t.TempDir())
	whole := boxAt(t, t.TempDir())
	whole.ok("init", whole.store)
	copyFile := func(from, to string) {
		t.Helper()
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o700)
		}
		if err == nil {
			err = os.WriteFile(to, content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, left := range []map[string]string{
		{"store/lock": "/dev/null"},
		{"store/lock": "/dev/null", "store/keys/master.age.tmp": "/dev/null"},
		{"store/keys/master.age": whole.store + "/keys/master.age"},
		{"store/keys/master.age": whole.store + "/keys/master.age", "store.kit.part": "/dev/null"},
		{"store/keys/master.age": whole.store + "/keys/master.age", "store.kit.part": whole.store + ".kit"},
		{"store/keys/master.age": whole.store + "/keys/master.age", "store.kit.part": whole.store + ".kit", "store/superblock.tmp": "/dev/null"},
		{"store/keys/master.age": whole.store + "/keys/master.age", "store.kit.part": whole.store + ".kit", "store/superblock": whole.store + "/superblock"},
	} {
		b.dir = filepath.Join(t.TempDir())
		b.store, b.env["HOLDFAST_STORE"] = b.path("store"), b.path("store")
		for to, from := range left {
			copyFile(from, b.path(to))
		}
		b.ok("init", b.store)
		b.ok("point", "list")
		kit, err := os.ReadFile(b.store + ".kit")
		if err != nil {
			t.Fatal(err)
		}
		if _, id, err := keys.ParseKit(kit); err != nil || !strings.Contains(b.ok("store", "status", "-o", "json"), fmt.Sprintf("%x", id)) {
			t.Errorf("case %d: the kit is not that of the store: %v", i, err)
		}
		if _, err := os.Lstat(b.store + ".kit.part"); err == nil {
			t.Errorf("case %d: the unfinished kit is still there", i)
		}
		if left := b.leftovers(); len(left) > 0 {
			t.Errorf("case %d: left behind %q", i, left)
		}
	}
}

// terminal is a pair of pseudo terminal ends.
func terminal(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo terminals here: ", err)
	}
	t.Cleanup(func() { _ = near.Close() })
	if err := unix.IoctlSetPointerInt(int(near.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(near.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Skip("no pseudo terminals here: ", err)
	}
	t.Cleanup(func() { _ = far.Close() })
	return near, far
}

// prompted is a stderr that types an answer whenever it is asked.
type prompted struct {
	bytes.Buffer
	asked func(n int)
	n     int
}

func (p *prompted) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(": ")) && !bytes.HasPrefix(b, []byte("holdfast")) && !bytes.HasPrefix(b, []byte("  ")) {
		p.asked(p.n)
		p.n++
	}
	return p.Buffer.Write(b)
}

func TestPassphraseIsAskedForOnATerminalOnly(t *testing.T) {
	b := newBox(t)
	delete(b.env, "HOLDFAST_PASSPHRASE_FILE")
	b.fails(exitUsage, []string{"point", "list"}, "no terminal", "--passphrase-file")
	near, far := terminal(t)
	ask := func(ctx context.Context, args []string, asked func(n int)) (int, string) {
		p := &prompted{asked: asked}
		code := Run(ctx, World{Args: args, Getenv: func(k string) string { return b.env[k] }, Stdin: far, Stdout: &bytes.Buffer{}, Stderr: p, Now: time.Now})
		return code, p.String()
	}
	typing := func(lines ...string) func(int) {
		return func(n int) { _, _ = near.WriteString(lines[min(n, len(lines)-1)] + "\n") }
	}
	for _, tc := range []struct {
		args  []string
		lines []string
		code  int
		asks  int
	}{
		{[]string{"point", "list"}, []string{passphrase}, exitOK, 1},
		{[]string{"point", "list"}, []string{"wrong"}, exitDenied, 1},
		{[]string{"point", "list"}, []string{""}, exitDenied, 1},
		{[]string{"init", b.path("new")}, []string{"one", "two"}, exitUsage, 2},
		{[]string{"init", b.path("new")}, []string{""}, exitUsage, 2},
		{[]string{"init", b.path("new")}, []string{"one", "one"}, exitOK, 2},
		{[]string{"point", "list", "--store", b.path("none")}, []string{""}, exitNotFound, 0},
	} {
		code, said := ask(t.Context(), tc.args, typing(tc.lines...))
		if asks := strings.Count(said, "Passphrase: ") + strings.Count(said, "again: "); code != tc.code || asks != tc.asks {
			t.Errorf("%q with %q: exit code %d, %d questions\n%s", tc.args, tc.lines, code, asks, said)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if code, said := ask(ctx, []string{"point", "list"}, func(int) { cancel() }); code != exitInterrupted {
		t.Errorf("interrupted while it asked: %d\n%s", code, said)
	}
	typing("")(0) // lets the read that was left behind end
}
