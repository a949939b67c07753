package domain

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestCheck(t *testing.T) {
	if err := example().check(); err != nil {
		t.Fatal(err)
	}
	other := example().Volumes[1]
	for _, c := range []struct {
		damage func(*Spec)
		want   string
	}{
		{func(s *Spec) { s.UUID = "" }, `the domain "" is not a UUID`},
		{func(s *Spec) { s.UUID = "../../etc" }, "is not a UUID"},
		{func(s *Spec) { s.UUID = strings.ToUpper(s.UUID) }, "in lower case"},
		{func(s *Spec) { s.UUID = "{" + s.UUID + "}" }, "is not a UUID"},
		{func(s *Spec) { s.UUID = "00000000-0000-0000-0000-000000000000" }, "is not a UUID"},
		{func(s *Spec) { s.Description = "" }, "one line"},
		{func(s *Spec) { s.Description = strings.Repeat("é", 51) }, "1 to 50"},
		{func(s *Spec) { s.Description = "a\nROLE=Master" }, "one line"},
		{func(s *Spec) { s.Description = "a\u2028ROLE=Master" }, "one line"},
		{func(s *Spec) { s.Description = "a\u0085ROLE=Master" }, "one line"},
		{func(s *Spec) { s.Description = "a\xff" }, "one line"},
		{func(s *Spec) { s.Description = "a " }, "one line"},
		{func(s *Spec) { s.RemotePath = "" }, "address:/path"},
		{func(s *Spec) { s.RemotePath = "/exports" }, "address:/path"},
		{func(s *Spec) { s.RemotePath = "a:/b\nROLE=Master" }, "address:/path"},
		{func(s *Spec) { s.Volumes[0].Disk = "x" }, `the disk "x" is not a UUID`},
		{func(s *Spec) { s.Volumes[0].Image = "x/../y" }, `the image "x/../y" is not a UUID`},
		{func(s *Spec) { s.Volumes[0].Disk = other.Disk }, "is used twice"},
		{func(s *Spec) { s.Volumes[0].Image = other.Image }, "is used twice"},
		{func(s *Spec) { s.Volumes[0].Size = 0 }, "its size, 0 bytes"},
		{func(s *Spec) { s.Volumes[0].Size = -4096 }, "its size"},
		{func(s *Spec) { s.Volumes[1].Size = 4097 }, "not a multiple of 4096"},
		{func(s *Spec) { s.Volumes[1].Size = 512 }, "not a multiple of 4096"},
		{func(s *Spec) { s.Volumes[1].Format = "COW" }, "neither cow nor raw"},
		{func(s *Spec) { s.Volumes[1].Created = time.Time{} }, "creation time"},
		{func(s *Spec) { s.UUID, s.Volumes[0].Format = "", "vmdk" }, "vmdk"},
	} {
		s := example()
		c.damage(&s)
		dir := filepath.Join(t.TempDir(), "root")
		err := Write(dir, s)
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q instead of an error about %q", err, c.want)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Error("something was written all the same")
		}
	}
}

func TestCheckTakes(t *testing.T) {
	for _, change := range []func(*Spec){
		func(s *Spec) { s.Description = strings.Repeat("é", 50) },
		func(s *Spec) { s.RemotePath = "[fd00::1]:/sessions/1" },
		func(s *Spec) { s.Volumes = nil },
		func(s *Spec) { s.Volumes[0].Size = 1 << 50 },
		func(s *Spec) { s.Volumes[0].Alias = "two\nlines \xff" + strings.Repeat("🙂", 300) },
	} {
		s := example()
		change(&s)
		if err := s.check(); err != nil {
			t.Error(err)
		}
	}
}
