package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
	"github.com/holdfast-backup/holdfast/internal/errs"
)

// nodeFlag is a persistent flag of the commands that ask a node; its default comes from the environment.
type nodeFlag struct{ name, env, usage string }

var nodeFlags = [...]nodeFlag{
	{"node", "HOLDFAST_NODE", "node to ask: https://host:port, or its socket's path (HOLDFAST_NODE; default: this machine's)"},
	{"token-file", "HOLDFAST_TOKEN_FILE", "file with the token for a node on another machine (HOLDFAST_TOKEN_FILE)"},
	{"node-ca-file", "HOLDFAST_NODE_CA", "file with the certificate to know that node by (HOLDFAST_NODE_CA)"},
}

// ofNode gives a group of commands the flags that name the node.
func (a *app) ofNode(c *cobra.Command) *cobra.Command {
	for i, to := range []*string{&a.nodeAt.Node, &a.nodeAt.TokenFile, &a.nodeAt.CAFile} {
		f := nodeFlags[i]
		c.PersistentFlags().StringVar(to, f.name, a.Getenv(f.env), f.usage)
	}
	return c
}

// runE is what a command does, as cobra wants it.
type runE = func(c *cobra.Command, args []string) error

// withNode makes a command's function of one that talks to a node.
func (a *app) withNode(f func(c *cobra.Command, s api.Service, args []string) error) runE {
	return func(c *cobra.Command, args []string) error {
		s, end, err := a.dial()
		if err != nil {
			return err // of the command line or of a file on this machine
		}
		defer end()
		return fromNode(f(c, s, args))
	}
}

// dial connects to the node. Nothing has been asked yet.
func (a *app) dial() (s api.Service, end func(), err error) {
	if a.Dial != nil {
		s, err = a.Dial(a.nodeAt)
		return s, func() {}, err
	}
	c, err := client.Dial(a.nodeAt)
	if err != nil {
		return nil, nil, err
	}
	return c, func() { c.Close() }, nil
}

// commandLine writes a command of ours for people to copy: it asks the same node as this one does.
func (a *app) commandLine(words ...string) string {
	for i, value := range []string{a.nodeAt.Node, a.nodeAt.TokenFile, a.nodeAt.CAFile} {
		if value != a.Getenv(nodeFlags[i].env) {
			words = append(words, "--"+nodeFlags[i].name, value)
		}
	}
	line := "holdfast"
	for _, w := range words {
		line += " " + quote(w)
	}
	return line
}

// quote writes a word as a shell takes it.
func quote(word string) string {
	harmless := func(r rune) bool {
		return r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("@%+=:,./_-", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !harmless(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// nodeNexts says what a person can do about a node's error that does not say it itself.
var nodeNexts = [len(errs.Kinds)]string{
	errs.Bug:         "This is a fault of Holdfast: please report these lines and the node's log (journalctl -u holdfastd).",
	errs.Invalid:     "Correct what the command was given; its --help says what it takes.",
	errs.NotFound:    "Check the name: `holdfast vm list`, `holdfast session list`, `holdfast manager list` show what there is.",
	errs.Exists:      "Choose another name, or remove what has it now.",
	errs.Denied:      "Check the user, the password or the token, and what they are allowed to do.",
	errs.Busy:        "See `holdfast task list` for what is at work; when it has ended, run the same command again.",
	errs.Transient:   "Run the same command again; if that goes on, look at the network, and at what is named above.",
	errs.Stale:       "Look again at what is there now, then run the command again.",
	errs.NoSpace:     "Make room there, then run the same command again; what was backed up before is not affected.",
	errs.Corrupt:     "Look at the node's log (journalctl -u holdfastd) and at its disk's health; run `holdfast store verify` there.",
	errs.Unsupported: "This version, or this engine, cannot do that; docs/cli.md says what this version can.",
	errs.Canceled:    "The node may have begun it before: see `holdfast task list`.",
}

// hinted is an error with the next step that it lacked.
type hinted struct {
	error
	next string
}

func (h *hinted) Unwrap() error { return h.error }

// fromNode gives an error a next step that fits what nodes do, if it has none.
func fromNode(err error) error {
	var p *partial
	var h *hinted
	if err == nil || errors.As(err, &p) || errors.As(err, &h) || errs.NextStep(err) != "" {
		return err
	}
	return &hinted{err, nodeNexts[errs.KindOf(err)]}
}

// incomplete reports what a list lacks: each problem on stderr, then the error that ends the command.
func (a *app) incomplete(problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	next := ""
	for _, err := range problems {
		a.note("holdfast: " + plain(err.Error()))
		if next == "" {
			next = errs.NextStep(err)
		}
	}
	if next == "" {
		next = "Look at what is named above, then run the same command again."
	}
	text := fmt.Sprintf("the list is not complete (%s, see above); what could be read is in it", count(int64(len(problems)), "problem"))
	return &partial{exitPartial, text, next}
}

// find returns the ID that a text names: one of ids, or the beginning of exactly one. get asks the node for a thing by
// its whole ID: a list leaves out what cannot be read, and that must not look as if it did not exist.
func find(noun, text string, ids []string, get func(id string) error) (string, error) {
	op := "find " + noun
	prefix := strings.ToLower(text)
	var like []string
	for _, id := range ids {
		if id == text {
			return id, nil
		}
		if prefix != "" && strings.HasPrefix(id, prefix) {
			like = append(like, id)
		}
	}
	see := "See `holdfast " + noun + " list`."
	switch {
	case len(like) == 1:
		return like[0], nil
	case len(like) > 1:
		slices.Sort(like)
		return "", errs.Text(op, text, errs.Invalid, fmt.Sprintf("%d %ss begin with it", len(like), noun)).
			WithNext("Give more digits: " + strings.Join(like[:min(len(like), 5)], ", ") + ".")
	case text == "":
		return "", errs.Text(op, "", errs.Invalid, "no "+noun+" was named").WithNext(see)
	}
	if err := get(text); err != nil && !errs.Is(err, errs.NotFound) && !errs.Is(err, errs.Invalid) {
		return "", err
	} else if err == nil {
		return text, nil
	}
	return "", errs.Text(op, text, errs.NotFound, "there is no "+noun+" whose ID is that, or begins with it").WithNext(see)
}

// findTask returns the ID of the task that a text names.
func findTask(ctx context.Context, s api.Service, text string) (string, error) {
	list, err := s.ListTasks(ctx)
	if err != nil {
		return "", err
	}
	ids := make([]string, len(list))
	for i, t := range list {
		ids[i] = t.ID
	}
	return find("task", text, ids, func(id string) error { _, err := s.GetTask(ctx, id); return err })
}

// findSession returns the ID of the session that a text names.
func findSession(ctx context.Context, s api.Service, text string) (string, error) {
	list, err := s.ListSessions(ctx)
	if err != nil {
		return "", err
	}
	ids := make([]string, len(list))
	for i, one := range list {
		ids[i] = one.ID
	}
	return find("session", text, ids, func(id string) error { _, err := s.GetSession(ctx, id); return err })
}

// shortest returns how many digits of IDs tell them apart in a table: eight, or more if they must be.
func shortest(ids []string) int {
	sorted := slices.Sorted(slices.Values(ids))
	n := 8
	for i := 1; i < len(sorted); i++ {
		a, b, same := sorted[i-1], sorted[i], 0
		for same < min(len(a), len(b)) && a[same] == b[same] {
			same++
		}
		if a != b {
			n = max(n, same+1)
		}
	}
	return n
}

func short(id string, n int) string { return id[:min(n, len(id))] }

// local writes a time for people: theirs, with the name of the zone, as points are named in UTC.
func (a *app) local(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	zone := a.Zone
	if zone == nil {
		zone = time.Local
	}
	return t.In(zone).Format("2006-01-02 15:04:05 MST")
}

// span writes a length of time for people.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0.0 s"
	case d < 100*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", d/time.Minute, d/time.Second%60)
	}
	return fmt.Sprintf("%d h %02d min", d/time.Hour, d/time.Minute%60)
}

// plain keeps a name or a text that came from elsewhere from moving the cursor, or anything else but being read.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, oneLine.Replace(s))
}

// cut shortens a text to so many letters.
func cut(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// dash stands for what is not there in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return plain(s)
}
