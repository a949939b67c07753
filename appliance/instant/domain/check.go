package domain

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

const (
	maxName = 50 // characters of a domain's name, by the engine's API
	maxPath = 1024
	maxMeta = 512 // bytes of a volume's metadata; vdsm reads no more
	grid    = 4096
)

// check returns errs.Invalid, with everything that is wrong, for a domain that vdsm or the engine would not take.
func (s Spec) check() error {
	var all []error
	wrong := func(format string, args ...any) { all = append(all, fmt.Errorf(format, args...)) }
	if !oneLine(s.Description, maxName) {
		wrong("the name %q is not one line of 1 to %d characters", s.Description, maxName)
	}
	if !oneLine(s.RemotePath, maxPath) || !strings.Contains(s.RemotePath, ":/") {
		wrong("%q is not an address:/path", s.RemotePath)
	}
	seen := map[string]bool{}
	id := func(what, id string) {
		if u, err := uuid.Parse(id); err != nil || u.String() != id || u == uuid.Nil {
			wrong("the %s %q is not a UUID in lower case", what, id)
		}
		// vdsm takes a volume that it sees twice for a template; the other kinds are kept apart for people's sake.
		if seen[id] {
			wrong("the %s %s is used twice", what, id)
		}
		seen[id] = true
	}
	id("domain", s.UUID)
	for _, v := range s.Volumes {
		id("disk", v.Disk)
		id("image", v.Image)
		if err := v.check(s.UUID); err != nil {
			all = append(all, err)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return errs.New("check storage domain", s.UUID, errs.Invalid, errors.Join(all...))
}

func (v Volume) check(domain string) error {
	switch {
	case v.Size <= 0 || v.Size%grid != 0:
		return fmt.Errorf("disk %s: its size, %d bytes, is not a multiple of %d", v.Disk, v.Size, grid)
	case v.Format != "cow" && v.Format != "raw":
		return fmt.Errorf("disk %s: the format %q is neither cow nor raw", v.Disk, v.Format)
	case v.Created.Unix() <= 0 || v.Created.Year() > 2200:
		return fmt.Errorf("disk %s: its creation time %v makes no sense", v.Disk, v.Created)
	case len(v.metadata(domain)) > maxMeta:
		return fmt.Errorf("disk %s: its metadata is longer than %d bytes", v.Disk, maxMeta)
	}
	return nil
}

// oneLine tells whether s is text of 1 to limit characters that vdsm reads back as one line: it ends lines at any
// character that Python calls a line boundary. Blanks at the ends are refused, since engines strip them.
func oneLine(s string, limit int) bool {
	bad := func(r rune) bool { return unicode.IsControl(r) || r == 0x2028 || r == 0x2029 }
	n := utf8.RuneCountInString(s)
	return n > 0 && n <= limit && utf8.ValidString(s) && !strings.ContainsFunc(s, bad) && strings.TrimSpace(s) == s
}
