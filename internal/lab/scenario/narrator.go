package scenario

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// narrator tells the story to a person.
type narrator struct {
	mu       sync.Mutex // guards out: programs speak while we do
	out      io.Writer
	chapters int
	table    []row
}

type row struct {
	title, result string
	took          time.Duration
}

func newNarrator(out io.Writer) *narrator { return &narrator{out: out} }

func (n *narrator) printf(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintf(n.out, format, args...)
}

func (n *narrator) chapter(title string) {
	n.chapters++
	n.printf("\n%d. %s\n", n.chapters, title)
}

// say tells one short sentence.
func (n *narrator) say(format string, args ...any) { n.printf("   "+format+"\n", args...) }

// command shows a command line before it runs. after is what a shell would have behind it.
func (n *narrator) command(args []string, after string) {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if a == "" || strings.ContainsAny(a, " \t\n\"'$&;|<>(){}*?") {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	n.printf("   $ %s%s\n", strings.Join(words, " "), after)
}

func (n *narrator) done(title, result string, took time.Duration) {
	n.table = append(n.table, row{title, result, took})
	n.say("[%.1f s] %s", took.Seconds(), result)
}

func (n *narrator) summary(total time.Duration) {
	n.printf("\nSummary\n")
	n.mu.Lock()
	defer n.mu.Unlock()
	w := tabwriter.NewWriter(n.out, 0, 0, 2, ' ', 0)
	for i, r := range n.table {
		fmt.Fprintf(w, "%2d\t%s\t%7.1f s\t%s\n", i+1, r.title, r.took.Seconds(), r.result)
	}
	fmt.Fprintf(w, "\tall\t%7.1f s\t\n", total.Seconds())
	_ = w.Flush() // a story nobody can read is not worth failing for
}

// quoted shows what a program says, line by line.
func (n *narrator) quoted() io.Writer { return &quoter{n: n} }

// quoter marks each line. A program that draws progress over and over in one line is shown its last state only.
type quoter struct {
	n    *narrator
	mu   sync.Mutex // guards rest: a program's two outputs may be one quoter
	rest []byte
}

// Write implements io.Writer and never fails.
func (q *quoter) Write(b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rest = append(q.rest, b...)
	for {
		i := bytes.IndexByte(q.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		line := bytes.TrimRight(q.rest[:i], "\r")
		line = line[bytes.LastIndexByte(line, '\r')+1:]
		if len(bytes.TrimSpace(line)) > 0 {
			q.n.printf("   | %s\n", line)
		}
		q.rest = q.rest[i+1:]
	}
}

// size writes bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
