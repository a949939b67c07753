package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// print writes v as one JSON document, or lets table write it for people.
func (a *app) print(v any, table func(io.Writer)) error {
	if a.output == "json" {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		_, err = a.Stdout.Write(append(b, '\n'))
		return err
	}
	tw := tabwriter.NewWriter(a.Stdout, 0, 8, 2, ' ', 0)
	table(tw)
	return tw.Flush()
}

// size writes a number of bytes for people, in IEC units.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1023.95 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}

// when writes a time for people. Points are named in UTC everywhere, so it is shown in UTC as well.
func when(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// progress shows one line that changes: on a terminal several times a second, elsewhere every ten seconds.
type progress struct {
	w     io.Writer
	tty   bool
	every time.Duration
	start time.Time
	last  time.Time
	shown int        // letters of the line that stands
	width func() int // letters that a line has room for; 0 if that is not known
	now   func() time.Time
}

func (a *app) progress() *progress {
	p := &progress{w: a.Stderr, every: 10 * time.Second, now: time.Now}
	if f, ok := a.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.tty, p.every = true, 200*time.Millisecond
		p.width = func() int {
			width, _, _ := term.GetSize(int(f.Fd()))
			return width
		}
	}
	p.start = p.now()
	p.last = p.start
	return p
}

// show prints the line that text makes, if it is time to.
func (p *progress) show(text func() string) {
	now := p.now()
	if now.Sub(p.last) < p.every {
		return
	}
	p.last = now
	s := text()
	if !p.tty {
		fmt.Fprintln(p.w, s)
		return
	}
	if room := p.width(); room > 1 {
		s = cut(s, room-1) // a line that wraps cannot be written over
	}
	n := utf8.RuneCountInString(s)
	fmt.Fprintf(p.w, "\r%s%s", s, strings.Repeat(" ", max(0, p.shown-n)))
	p.shown = n
}

// done leaves the terminal's line clean.
func (p *progress) done() {
	if p.shown > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.shown))
		p.shown = 0
	}
}

// part says how far done is on the way to all, and how long the rest may take at this pace.
func (p *progress) part(done, all int64) string {
	if all <= 0 || done <= 0 {
		return "  0 %"
	}
	s := fmt.Sprintf("%3d %%", done*100/all)
	if spent := p.now().Sub(p.start); spent > 2*time.Second && done < all {
		left := time.Duration(float64(spent) * float64(all-done) / float64(done))
		s += fmt.Sprintf(", about %s left", left.Round(time.Second))
	}
	return s
}
