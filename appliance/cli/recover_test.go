package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore"
)

// TestRecoveryKit opens a store with its kit alone: the passphrase is lost, and so is the wrapped key.
func TestRecoveryKit(t *testing.T) {
	b := boxAt(t, t.TempDir())
	made, err := chunkstore.Create(t.Context(), b.store, []byte(passphrase), 1, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	kit := b.file("kit", made.Kit)
	disk := b.disk("disk", 1, mib)
	point := b.imports(disk, "web").Point
	b.env = map[string]string{}
	if err := os.Remove(b.store + "/keys/master.age"); err != nil {
		t.Fatal(err)
	}
	r := b.run("recover", b.store, "--kit", kit)
	if r.code != 0 || !strings.Contains(r.out, point) || !strings.Contains(r.err, "point export POINT --to FILE --store "+b.store+" --kit "+kit) {
		t.Fatalf("%+v", r)
	}
	to := b.path("back")
	b.ok("point", "export", point, "--to", to, "--store", b.store, "--kit", kit)
	want, _ := os.ReadFile(disk)
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk that came back is another one: %v", err)
	}
	b.ok("store", "verify", "--store", b.store, "--kit", kit)
	b.env["HOLDFAST_KIT"] = kit
	b.ok("store", "status", "--store", b.store)
}

func TestRecoveryKitRefuses(t *testing.T) {
	b := newBox(t)
	other := boxAt(t, t.TempDir())
	made, err := chunkstore.Create(t.Context(), other.store, []byte(passphrase), 1, chunkstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b.fails(exitDenied, []string{"recover", b.store, "--kit", other.file("kit", made.Kit)}, "it is the kit of store")
	b.fails(exitNotFound, []string{"recover", b.store, "--kit", b.path("none")}, "none")
	b.fails(exitUsage, []string{"recover", b.store, "--kit", b.file("text", []byte("hello"))}, "row 1")
	b.fails(exitUsage, []string{"recover", b.store}, "--kit")
	b.fails(exitNotFound, []string{"recover", b.path("nowhere"), "--kit", other.path("kit")}, "no Holdfast store")
}
