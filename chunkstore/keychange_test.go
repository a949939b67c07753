package chunkstore

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/chunkstore/keys"
	"github.com/holdfast-backup/holdfast/internal/disk"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

func byPassphrase(p string) Unlock {
	return WithPassphrase(func() ([]byte, error) { return []byte(p), nil })
}

func byFile(b []byte) Unlock { return WithKeyFile(func() ([]byte, error) { return b, nil }) }

func secretPhrase(p string) Secret { return Secret{Passphrase: []byte(p), Work: testWork} }

// opens tells whether the store opens, and fails the test if it does not for another reason than a wrong secret.
func opens(t *testing.T, d disk.Disk, dir string, u Unlock) bool {
	t.Helper()
	r, err := OpenReader(t.Context(), dir, Options{Disk: d, Unlock: u})
	if err != nil {
		if !errs.Is(err, errs.Denied) || errs.NextStep(err) == "" {
			t.Errorf("opening: %v", err)
		}
		return false
	}
	_ = r.Close()
	return true
}

func openedReader(t *testing.T, d disk.Disk, dir string, u Unlock) *Reader {
	t.Helper()
	r, err := OpenReader(t.Context(), dir, Options{Disk: d, Unlock: u})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestKeysOfEveryForm: a passphrase, a key file or both open what Create made with them, and nothing else does.
func TestKeysOfEveryForm(t *testing.T) {
	file, other := keys.NewFile(), keys.NewFile()
	for name, c := range map[string]struct {
		pass string
		file []byte
	}{"passphrase": {"p", nil}, "key file": {"", file}, "both": {"p", file}} {
		d := disk.NewCrash()
		made, err := Create(t.Context(), "/s", []byte(c.pass), testWork, Options{Disk: d, KeyFile: c.file})
		if err != nil {
			t.Fatal(name, err)
		}
		if got := opens(t, d, "/s", byPassphrase("p")); got != (c.pass != "") {
			t.Errorf("%s: opened by passphrase: %v", name, got)
		}
		if got := opens(t, d, "/s", byFile(file)); got != (c.file != nil) {
			t.Errorf("%s: opened by key file: %v", name, got)
		}
		if opens(t, d, "/s", byPassphrase("q")) || opens(t, d, "/s", byFile(other)) {
			t.Errorf("%s: something else opens it", name)
		}
		k, _, err := keys.ParseKit(made.Kit)
		if err != nil || !opens(t, d, "/s", WithMaster(k)) {
			t.Errorf("%s: the kit does not open it: %v", name, err)
		}
	}
	if _, err := Create(t.Context(), "/s", nil, testWork, Options{Disk: disk.NewCrash()}); !errs.Is(err, errs.Invalid) {
		t.Error("no secret at all:", err)
	}
	if _, err := Create(t.Context(), "/s", nil, testWork, Options{Disk: disk.NewCrash(), KeyFile: []byte{1}}); !errs.Is(err, errs.Invalid) {
		t.Error("a short key file:", err)
	}
}

// TestKeyLifecycle adds, changes and removes keys, and looks after each step at what opens the store.
func TestKeyLifecycle(t *testing.T) {
	d := disk.NewCrash()
	made, err := Create(t.Context(), "/s", []byte("one"), testWork, Options{Disk: d})
	if err != nil {
		t.Fatal(err)
	}
	file := keys.NewFile()
	r := openedReader(t, d, "/s", byPassphrase("one"))
	if r.OpenedBy() != firstPhrase {
		t.Errorf("opened by %q", r.OpenedBy())
	}
	check := func(step string, err error, phrases string, fileOpens bool) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", step, err)
		}
		for _, p := range []string{"one", "two", "three"} {
			if got := opens(t, d, "/s", byPassphrase(p)); got != strings.Contains(phrases, p) {
				t.Errorf("%s: passphrase %q opens: %v", step, p, got)
			}
		}
		if got := opens(t, d, "/s", byFile(file)); got != fileOpens {
			t.Errorf("%s: the key file opens: %v", step, got)
		}
		if k, _, err := keys.ParseKit(made.Kit); err != nil || !opens(t, d, "/s", WithMaster(k)) {
			t.Errorf("%s: the kit no longer opens the store", step)
		}
	}
	ctx := t.Context()
	check("add a passphrase", r.AddKey(ctx, "second", secretPhrase("two")), "one two", false)
	check("add a key file", r.AddKey(ctx, "node", Secret{KeyFile: file}), "one two", true)
	check("change", r.ChangeKey(ctx, "second", secretPhrase("three")), "one three", true)
	check("remove the first", r.RemoveKey(ctx, firstPhrase), "three", true)
	check("remove the other", r.RemoveKey(ctx, "second"), "", true)
	if err := r.RemoveKey(ctx, "node"); !errs.Is(err, errs.Invalid) || errs.NextStep(err) == "" {
		t.Error("the last one:", err)
	}
	check("after that", nil, "", true)
	if k := openedReader(t, d, "/s", byFile(file)); k.OpenedBy() != "node" {
		t.Errorf("opened by %q", k.OpenedBy())
	}
	check("and back", r.AddKey(ctx, "master", secretPhrase("one")), "one", true)
}

func TestKeyRefusals(t *testing.T) {
	d := disk.NewCrash()
	if _, err := Create(t.Context(), "/s", []byte("one"), testWork, Options{Disk: d}); err != nil {
		t.Fatal(err)
	}
	r := openedReader(t, d, "/s", byPassphrase("one"))
	ctx := t.Context()
	for what, c := range map[string]struct {
		err  error
		want errs.Kind
	}{
		"a taken name":         {r.AddKey(ctx, firstPhrase, secretPhrase("x")), errs.Exists},
		"a taken name, a file": {r.AddKey(ctx, firstPhrase, Secret{KeyFile: keys.NewFile()}), errs.Exists},
		"an empty passphrase":  {r.AddKey(ctx, "x", secretPhrase("")), errs.Invalid},
		"no such key":          {r.RemoveKey(ctx, "x"), errs.NotFound},
		"nothing to change":    {r.ChangeKey(ctx, "x", secretPhrase("x")), errs.NotFound},
		"another form":         {r.ChangeKey(ctx, firstPhrase, Secret{KeyFile: keys.NewFile()}), errs.Invalid},
		"a path":               {r.AddKey(ctx, "../x", secretPhrase("x")), errs.Invalid},
		"an empty name":        {r.AddKey(ctx, "", secretPhrase("x")), errs.Invalid},
		"capitals":             {r.RemoveKey(ctx, "Master"), errs.Invalid},
	} {
		if !errs.Is(c.err, c.want) {
			t.Errorf("%s: %v", what, c.err)
		}
	}
	for i := range maxKeys - 1 {
		if err := r.AddKey(ctx, "key-"+string(rune('a'+i/26))+string(rune('a'+i%26)), Secret{KeyFile: keys.NewFile()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.AddKey(ctx, "one-more", Secret{KeyFile: keys.NewFile()}); !errs.Is(err, errs.NoSpace) {
		t.Error("too many:", err)
	}
}

// TestKeyCrash cuts the power at every sync of every change: what opened the store before, or what was to open it,
// does, and after a change that returned exactly what it promised.
func TestKeyCrash(t *testing.T) {
	file := keys.NewFile()
	secrets := []Unlock{byPassphrase("one"), byPassphrase("two"), byFile(file)}
	for what, c := range map[string]struct {
		change        func(r *Reader) error
		before, after [3]bool
	}{
		"change": {func(r *Reader) error { return r.ChangeKey(t.Context(), firstPhrase, secretPhrase("two")) },
			[3]bool{true, false, true}, [3]bool{false, true, true}},
		"add": {func(r *Reader) error { return r.AddKey(t.Context(), "x", secretPhrase("two")) },
			[3]bool{true, false, true}, [3]bool{true, true, true}},
		"remove": {func(r *Reader) error { return r.RemoveKey(t.Context(), firstPhrase) },
			[3]bool{true, false, true}, [3]bool{false, false, true}},
	} {
		t.Run(what, func(t *testing.T) {
			d := disk.NewCrash()
			if _, err := Create(t.Context(), "/s", []byte("one"), testWork, Options{Disk: d, KeyFile: file}); err != nil {
				t.Fatal(err)
			}
			r := openedReader(t, d, "/s", byPassphrase("one"))
			state := func(d disk.Disk) (s [3]bool) {
				for i, u := range secrets {
					s[i] = opens(t, d, "/s", u)
				}
				return s
			}
			syncs := 0
			d.OnSync(func() {
				syncs++
				for seed := range uint64(6) {
					if s := state(d.Clone(seed)); s != c.before && s != c.after {
						t.Errorf("sync %d, seed %d: %v opens, which is neither before nor after", syncs, seed, s)
					}
				}
			})
			if err := c.change(r); err != nil {
				t.Fatal(err)
			}
			d.OnSync(nil)
			if s := state(d.Clone(0)); s != c.after || syncs == 0 {
				t.Errorf("after %d syncs %v opens, want %v", syncs, s, c.after)
			}
		})
	}
}

// TestKeyFaults: a change that failed leaves something that opens the store, and can be done again.
func TestKeyFaults(t *testing.T) {
	base := disk.NewCrash()
	if _, err := Create(t.Context(), "/s", []byte("one"), testWork, Options{Disk: base}); err != nil {
		t.Fatal(err)
	}
	atEveryOperation(t, base, func(t *testing.T, under *disk.Crash, d disk.Disk, _ bool) error {
		err := func() error {
			r, err := OpenReader(t.Context(), "/s", Options{Disk: d, Unlock: byPassphrase("one")})
			if err != nil {
				return err
			}
			defer r.Close()
			if err := r.AddKey(t.Context(), "x", secretPhrase("x")); err != nil {
				return err
			}
			if err := r.ChangeKey(t.Context(), firstPhrase, secretPhrase("two")); err != nil {
				return err
			}
			return r.RemoveKey(t.Context(), "x")
		}()
		for _, after := range []*disk.Crash{under, under.Clone(0), under.Clone(3)} {
			two := opens(t, after, "/s", byPassphrase("two"))
			if one := opens(t, after, "/s", byPassphrase("one")); one == two {
				t.Errorf("after %v: the old opens: %v, the new: %v", err, one, two)
			}
			if err == nil && (!two || opens(t, after, "/s", byPassphrase("x"))) {
				t.Error("it succeeded, and the new passphrase does not open, or the removed one does")
			}
		}
		return err
	})
}

// TestKeysAreLocked: two processes that each leave "one other" would leave none.
func TestKeysAreLocked(t *testing.T) {
	dir := t.TempDir() + "/s"
	if _, err := Create(t.Context(), dir, []byte("one"), testWork, Options{}); err != nil {
		t.Fatal(err)
	}
	r := openedReader(t, disk.OS{}, dir, byPassphrase("one"))
	lock, err := lockKeys(disk.OS{}, filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddKey(t.Context(), "x", secretPhrase("x")); !errs.Is(err, errs.Busy) {
		t.Error("while another one changes them:", err)
	}
	_ = lock.Close()
	if err := r.AddKey(t.Context(), "x", secretPhrase("x")); err != nil {
		t.Error(err)
	}
	// All keys lost: the kit opens the store, and a new passphrase can be set.
	if err := os.RemoveAll(filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	if err := r.AddKey(t.Context(), "master", secretPhrase("new")); err != nil || !opens(t, disk.OS{}, dir, byPassphrase("new")) {
		t.Error("after all keys were lost:", err)
	}
}

// TestStrangeKeys: what lies below keys/ and is of no use harms nothing, and is shown.
func TestStrangeKeys(t *testing.T) {
	dir := t.TempDir() + "/s"
	file := keys.NewFile()
	if _, err := Create(t.Context(), dir, []byte("one"), testWork, Options{KeyFile: file}); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(dir + "/" + keyName)
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := keys.WrapFile(keys.Master{7}, keys.NewFile())
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-3] ^= 1
	for name, content := range map[string][]byte{
		"foreign.key": foreign, "broken.age": flipped, "renamed.key": whole, "empty.age": {}, "huge.key": make([]byte, 1<<20),
		"README": []byte("x"), "Capital.age": whole, "x.age.tmp": whole, ".age": whole,
	} {
		if err := os.WriteFile(filepath.Join(dir, "keys", name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := openedReader(t, disk.OS{}, dir, byPassphrase("one"))
	list, err := r.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var good, bad []string
	for _, k := range list {
		if k.Err == nil {
			good = append(good, k.Name)
		} else if bad = append(bad, k.Name); !errs.Is(k.Err, errs.Corrupt) && !errs.Is(k.Err, errs.Denied) {
			t.Errorf("%s: %v", k.Name, k.Err)
		}
	}
	if !slices.Equal(good, []string{"keyfile", "master"}) || !slices.Equal(bad, []string{"broken", "empty", "foreign", "huge", "renamed"}) {
		t.Errorf("usable %q, not usable %q", good, bad)
	}
	if !opens(t, disk.OS{}, dir, byFile(file)) || opens(t, disk.OS{}, dir, byPassphrase("two")) {
		t.Error("they are in the way")
	}
	for _, name := range bad {
		if err := r.RemoveKey(t.Context(), name); err != nil {
			t.Errorf("removing %s: %v", name, err)
		}
	}
}
