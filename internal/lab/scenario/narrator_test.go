package scenario

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

func TestNarratorShowsCommandsSoThatTheyCanBeTyped(t *testing.T) {
	var out bytes.Buffer
	n := newNarrator(&out)
	n.chapter("A beginning")
	n.command([]string{"holdfast", "init", "/a b", "it's", ""}, " &")
	_, _ = n.quoted().Write([]byte("10 %\r20 %\r\n\nplain\nunfin"))
	n.done("A beginning", "fine", 1500*time.Millisecond)
	n.summary(2 * time.Second)
	for _, want := range []string{
		"1. A beginning\n", `$ holdfast init '/a b' 'it'\''s' '' &`, "   | 20 %\n   | plain\n", "[1.5 s] fine", " 2.0 s",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "10 %") || strings.Contains(out.String(), "unfin") {
		t.Errorf("more was shown than the last state of finished lines:\n%s", out.String())
	}
}

func TestLinerCutsLines(t *testing.T) {
	l := &liner{lines: make(chan string, 2)}
	for _, piece := range []string{"{\"url\":", "\"x\"}\nsecond\nthird, too many\nrest"} {
		if n, err := l.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Error(n, err)
		}
	}
	if a, b := <-l.lines, <-l.lines; a != `{"url":"x"}` || b != "second" || len(l.lines) != 0 {
		t.Errorf("lines %q, %q", a, b)
	}
}

func TestSizesForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 1 << 10: "1.0 KiB", 5 << 19: "2.5 MiB", 2 << 30: "2.00 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d gives %q, want %q", n, got, want)
		}
	}
}

func TestWithoutTheProgramNothingStarts(t *testing.T) {
	_, err := newCore(Options{BinDir: t.TempDir(), WorkDir: t.TempDir()})
	if !errs.Is(err, errs.NotFound) || !strings.Contains(errs.NextStep(err), "make build") {
		t.Errorf("error %v, next step %q", err, errs.NextStep(err))
	}
}
