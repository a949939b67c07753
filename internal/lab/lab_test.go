package lab

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/lab/parts"
)

func TestExitCodes(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		args []string
		code int
		says string
	}{
		{"help", t.Context(), []string{"--help"}, 0, ""},
		{"no such command", t.Context(), []string{"fly"}, 2, "holdfast-lab --help"},
		{"no such flag", t.Context(), []string{"disk", "--wings"}, 2, "holdfast-lab disk --help"},
		{"a disk too small", t.Context(), []string{"disk", "--size", "1"}, 1, "at least"},
		{"interrupted", ended, []string{"disk", "--size", "1"}, 130, ""},
	} {
		var out, errors bytes.Buffer
		if code := Run(c.ctx, c.args, &out, &errors); code != c.code || !strings.Contains(errors.String(), c.says) {
			t.Errorf("%s: exit code %d, want %d; said %q", c.name, code, c.code, errors.String())
		}
	}
}

func TestTheDiskCommandPrintsNothingButAPath(t *testing.T) {
	inTheWay := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(inTheWay, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(parts.CacheKey, inTheWay)
	var out, errors bytes.Buffer
	if code := Run(t.Context(), []string{"disk"}, &out, &errors); code != 1 || out.Len() != 0 || errors.Len() == 0 {
		t.Errorf("exit code %d, output %q, errors %q", code, out.String(), errors.String())
	}
}
