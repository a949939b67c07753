package cli

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/chunkstore/keys"
)

// keyed is a box whose store was made by the command line with a key file and nothing else.
func keyed(t *testing.T) (b *box, file string) {
	b = boxAt(t, t.TempDir())
	delete(b.env, "HOLDFAST_PASSPHRASE_FILE")
	file = b.path("key")
	b.ok("init", b.store, "--key-file", file)
	return b, file
}

func TestInitWithAKeyFile(t *testing.T) {
	b, file := keyed(t)
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() != keys.FileSize {
		t.Fatalf("the key file: %v, %v", st, err)
	}
	content, err := os.ReadFile(file)
	if err != nil || bytes.Equal(content, make([]byte, keys.FileSize)) {
		t.Fatalf("the key file: %x, %v", content, err)
	}
	b.ok("point", "list", "--key-file", file)
	b.env["HOLDFAST_KEY_FILE"] = file
	point := b.imports(b.disk("disk", 1, mib), "web").Point
	b.clean(point)
	b.ok("recover", b.store, "--kit", b.store+".kit")
	b.fails(exitDenied, []string{"point", "list", "--passphrase-file", b.path("passphrase")}, "no passphrase opens this store")

	// The same file opens a second store, which a passphrase opens too.
	b.env["HOLDFAST_PASSPHRASE_FILE"] = b.path("passphrase")
	b.ok("init", b.path("two"), "--key-file", file)
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, content) {
		t.Errorf("the key file was changed: %v", err)
	}
	b.ok("point", "list", "--store", b.path("two"))
	b.ok("point", "list", "--store", b.path("two"), "--passphrase-file", b.path("passphrase"))
	b.ok("point", "list", "--store", b.path("two"), "--kit", b.path("two.kit"))
}

func TestKeyFileRefusals(t *testing.T) {
	b, file := keyed(t)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o644, 0o601} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		b.fails(exitDenied, []string{"point", "list", "--key-file", file}, "others than its owner", "chmod 600")
	}
	b.fails(exitDenied, []string{"init", b.path("new"), "--key-file", file}, "others than its owner")
	if err := os.Chmod(file, 0o400); err != nil {
		t.Fatal(err)
	}
	b.ok("point", "list", "--key-file", file)
	b.fails(exitDenied, []string{"point", "list", "--key-file", b.file("other", noise(1, keys.FileSize))}, "not the one that opens this store")
	b.fails(exitUsage, []string{"point", "list", "--key-file", b.file("short", noise(1, keys.FileSize-1))}, "31 bytes")
	b.fails(exitNotFound, []string{"point", "list", "--key-file", b.path("none")}, "none")
	for _, inside := range []string{b.path("new"), b.path("new/key"), b.path("new/keys/key")} {
		b.fails(exitUsage, []string{"init", b.path("new"), "--key-file", inside}, "inside the store")
	}
	b.fails(exitConflict, []string{"init", b.store, "--kit", b.path("k"), "--key-file", b.path("fresh")}, "there is a store in it already")
	b.fails(exitNotFound, []string{"init", b.path("new"), "--key-file", b.path("nowhere/key")}, "nowhere")
	for _, f := range []string{"fresh", "fresh.part", "new", "none"} {
		if _, err := os.Lstat(b.path(f)); err == nil {
			t.Errorf("a refused command left %s", f)
		}
	}
}

// TestKeys walks through the life of a store's keys as an administrator would.
func TestKeys(t *testing.T) {
	b := newBox(t)
	old, fresh := b.path("passphrase"), b.file("fresh", []byte("another passphrase\n"))
	point := b.imports(b.disk("disk", 1, mib), "web").Point
	before := b.packBytes()

	b.ok("store", "passphrase", "--new-passphrase-file", fresh)
	b.fails(exitDenied, []string{"point", "list"}, "the passphrase is wrong")
	b.env["HOLDFAST_PASSPHRASE_FILE"] = fresh
	b.clean(point)
	if !bytes.Equal(before, b.packBytes()) {
		t.Error("the change of the passphrase touched a pack or a record")
	}
	b.ok("store", "key", "add", "node", "--new-key-file", b.path("node.key"))
	b.ok("store", "key", "add", "second", "--new-passphrase-file", old)
	var list []struct{ Name, Form, Error string }
	b.json(&list, "store", "key", "list")
	if len(list) != 3 || list[0].Name != "master" || list[1].Name != "node" || list[1].Form != "key-file" || list[2].Form != "passphrase" {
		t.Errorf("keys %+v", list)
	}
	if out := b.ok("store", "key", "list", "--key-file", b.path("node.key")); !strings.Contains(out, "in use by this command") {
		t.Errorf("the list says %q", out)
	}
	b.fails(exitUsage, []string{"store", "passphrase", "--key-file", b.path("node.key"), "--new-passphrase-file", old}, "several", "passphrase NAME")
	b.fails(exitUsage, []string{"store", "passphrase"}, "no terminal", "--new-passphrase-file")
	b.fails(exitNotFound, []string{"store", "passphrase", "third", "--new-passphrase-file", old}, "no key of that name")
	b.fails(exitUsage, []string{"store", "passphrase", "node", "--new-passphrase-file", old}, "key file")
	b.fails(exitConflict, []string{"store", "key", "add", "node", "--new-key-file", b.path("x.key")}, "a key of that name")
	b.fails(exitUsage, []string{"store", "key", "add", "x", "--new-key-file", b.store + "/x.key"}, "inside the store")
	b.fails(exitUsage, []string{"store", "key", "add", "x", "--new-key-file", "a", "--new-passphrase-file", "b"}, "two keys")
	b.fails(exitNotFound, []string{"store", "key", "rm", "x"}, "store key list")

	b.ok("store", "key", "rm", "master")
	b.fails(exitDenied, []string{"point", "list"}, "passphrase is wrong")
	b.env["HOLDFAST_PASSPHRASE_FILE"] = old
	b.ok("store", "key", "rm", "node")
	b.fails(exitDenied, []string{"point", "list", "--key-file", b.path("node.key")}, "no key file opens this store")
	b.fails(exitUsage, []string{"store", "key", "rm", "second"}, "nothing else but the recovery kit", "store key add")
	b.clean(point)
}

// packBytes returns the content of all packs and records.
func (b *box) packBytes() []byte {
	b.t.Helper()
	var all bytes.Buffer
	for _, dir := range []string{"data", "meta", "points"} {
		if err := os.CopyFS(b.path("copy"), os.DirFS(b.store+"/"+dir)); err != nil {
			b.t.Fatal(err)
		}
	}
	err := walkFiles(b.path("copy"), func(path string) error {
		content, err := os.ReadFile(path)
		all.WriteString(path)
		all.Write(content)
		return err
	})
	if err == nil {
		err = os.RemoveAll(b.path("copy"))
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return all.Bytes()
}

// TestLostPassphrase: the kit sets a new one, also when every key object is gone, and is good afterwards.
func TestLostPassphrase(t *testing.T) {
	b := boxAt(t, t.TempDir())
	b.ok("init", b.store)
	kit := b.store + ".kit"
	fresh := b.file("fresh", []byte("another passphrase\n"))
	b.ok("store", "passphrase", "--kit", kit, "--new-passphrase-file", fresh)
	b.ok("point", "list", "--passphrase-file", fresh)
	b.fails(exitDenied, []string{"point", "list"}, "passphrase is wrong")
	if err := os.RemoveAll(b.store + "/keys"); err != nil {
		t.Fatal(err)
	}
	b.fails(exitCorrupt, []string{"point", "list"}, "the store's key is gone", "recovery kit")
	b.ok("store", "passphrase", "--kit", kit, "--new-passphrase-file", b.path("passphrase"))
	b.ok("point", "list")
	b.ok("point", "list", "--kit", kit)
	if err := os.WriteFile(b.store+"/keys/master.age", []byte("damage"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.fails(exitCorrupt, []string{"point", "list"}, "keys/master.age", "recovery kit")
	r := b.run("store", "key", "list", "--kit", kit)
	if r.code != exitPartial || !strings.Contains(r.out, "opens nothing") {
		t.Errorf("listing a damaged key: %+v", r)
	}
	b.ok("store", "passphrase", "--kit", kit, "--new-passphrase-file", b.path("passphrase"))
	b.ok("point", "list")
}

// TestPassphraseChangeKilled kills the change at many moments: the old passphrase opens the store or the new one does,
// and the next change works.
func TestPassphraseChangeKilled(t *testing.T) {
	b := newBox(t)
	files := []string{b.path("passphrase"), b.file("fresh", []byte("another passphrase\n"))}
	use := func(i int) bool {
		b.env["HOLDFAST_PASSPHRASE_FILE"] = files[i]
		return b.run("point", "list").code == 0
	}
	rng, now, changed := rand.New(rand.NewPCG(5, 5)), 0, 0
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		b.env["HOLDFAST_PASSPHRASE_FILE"] = files[now]
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(500))*time.Millisecond)
		p := b.start("store", "passphrase", "--new-passphrase-file", files[1-now])
		select {
		case <-ctx.Done():
		case <-p.ended:
		}
		cancel()
		p.end(syscall.SIGKILL)
		old, fresh := use(now), use(1-now)
		if old == fresh {
			t.Fatalf("after a kill the old passphrase opens the store: %v; the new one: %v", old, fresh)
		}
		if fresh {
			now, changed = 1-now, changed+1
		}
	}
	t.Logf("%d of %d changes were done when the kill came", changed, rounds)
	b.env["HOLDFAST_PASSPHRASE_FILE"] = files[now]
	b.ok("store", "passphrase", "--new-passphrase-file", files[1-now])
	b.env["HOLDFAST_PASSPHRASE_FILE"] = files[1-now]
	b.clean()
}

// TestPassphraseChangeAsks types the new passphrase on a terminal.
func TestPassphraseChangeAsks(t *testing.T) {
	b := newBox(t)
	near, far := terminal(t)
	for _, c := range []struct {
		lines []string
		code  int
	}{{[]string{"one", "two"}, exitUsage}, {[]string{""}, exitUsage}, {[]string{"one", "one"}, exitOK}} {
		p := &prompted{asked: func(n int) { _, _ = near.WriteString(c.lines[min(n, len(c.lines)-1)] + "\n") }}
		code := Run(t.Context(), World{
			Args: []string{"store", "passphrase"}, Getenv: func(k string) string { return b.env[k] }, Stdin: far,
			Stdout: &bytes.Buffer{}, Stderr: p, Now: time.Now,
		})
		if code != c.code {
			t.Errorf("%q: exit code %d\n%s", c.lines, code, p.String())
		}
	}
	b.ok("point", "list", "--passphrase-file", b.file("one", []byte("one")))
}

// walkFiles calls f for every file below a folder, in order.
func walkFiles(dir string, f func(path string) error) error {
	return filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return f(path)
	})
}
