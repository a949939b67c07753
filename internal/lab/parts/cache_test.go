package parts

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// TestTheCacheIsFoundFromAnywhere calls from several working folders. The test itself lies in no source tree.
func TestTheCacheIsFoundFromAnywhere(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"tree/go.mod": "module github.com/holdfast-backup/holdfast\n\ngo 1.26\n", "tree/a/b/x": "", "none/x": "",
		"other/go.mod": "module example.org/other\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("XDG_CACHE_HOME", "/var/cache")
	for _, c := range []struct{ env, work, want string }{
		{"", "tree", root + "/tree/.cache/lab"},
		{"", "tree/a/b", root + "/tree/.cache/lab"},
		{"", "other", "/var/cache/holdfast-lab"}, // somebody else's source tree is not ours to write to
		{"", "none", "/var/cache/holdfast-lab"},
		{"/srv/cache", "tree", "/srv/cache"},
		{"cache", "none", root + "/none/cache"},
	} {
		t.Setenv(CacheKey, c.env)
		t.Chdir(filepath.Join(root, c.work))
		if got, err := CacheDir(); got != c.want || err != nil {
			t.Errorf("%s=%q in %s: %q, %v; want %q", CacheKey, c.env, c.work, got, err, c.want)
		}
	}
	t.Setenv(CacheKey, "")
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	if dir, err := CacheDir(); !errs.Is(err, errs.NotFound) || errs.NextStep(err) == "" {
		t.Errorf("without a home: %q, %v", dir, err)
	}
}
