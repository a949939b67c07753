package api

import (
	"errors"
	"testing"
)

// TestMay: who may use the socket of a server that runs as an ordinary user.
func TestMay(t *testing.T) {
	const self, group = 990, 991
	for name, c := range map[string]struct {
		p   peer
		may bool
	}{
		"root":                {peer{uid: 0, groups: []uint32{0}}, true},
		"the server's user":   {peer{uid: self, groups: []uint32{5}}, true},
		"the group":           {peer{uid: 1000, groups: []uint32{group}}, true},
		"a member":            {peer{uid: 1000, groups: []uint32{1000, 4, group, 6}}, true},
		"somebody":            {peer{uid: 1000, groups: []uint32{1000, self}}, false},
		"a namesake":          {peer{uid: group, groups: []uint32{1000}}, false},
		"root's group":        {peer{uid: 1000, groups: []uint32{0}}, false},
		"who cannot be known": {peer{uid: 0, groups: []uint32{0}, err: errors.New("no")}, false},
	} {
		if got := c.p.may(self, group); got != c.may {
			t.Errorf("%s: %v", name, got)
		}
	}
}
