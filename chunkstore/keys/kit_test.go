package keys

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

var (
	testStore = [16]byte{0x01, 0x93, 0x5f, 0xa0, 0x12, 0x34, 0x7a, 0xbc, 0x9d, 0xef, 1, 2, 3, 4, 5, 6}
	testMade  = time.Date(2026, 11, 24, 18, 48, 2, 0, time.UTC)
)

func readVector(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKitVector: the page is part of the format, and one printed long ago has to be read.
func TestKitVector(t *testing.T) {
	want := readVector(t, "kit.txt")
	if got := FormatKit(testMaster, testStore, testMade); !bytes.Equal(got, want) {
		t.Errorf("the page has changed:\n%s", got)
	}
	if m, u, err := ParseKit(want); err != nil || m != testMaster || u != testStore {
		t.Errorf("%v, %x, %v", m, u, err)
	}
}

func TestKitTolerance(t *testing.T) {
	page := string(FormatKit(testMaster, testStore, testMade))
	rows := page[strings.Index(page, "    1:"):]
	compact := strings.NewReplacer(" ", "", "\t", "").Replace(rows)
	lines := strings.Split(strings.TrimSpace(rows), "\n")
	for name, text := range map[string]string{
		"CRLF":            strings.ReplaceAll(page, "\n", "\r\n"),
		"CR":              strings.ReplaceAll(page, "\n", "\r"),
		"small":           strings.ToLower(page),
		"rows only":       rows,
		"without spaces":  compact,
		"dashes and tabs": strings.ReplaceAll(rows, " ", " -\t"),
		"look-alikes":     strings.NewReplacer("0", "o", "1", "l").Replace(rows),
		"another order":   lines[4] + "\n" + lines[0] + "\n" + lines[2] + "\n" + lines[1] + "\n" + lines[3],
		"blank lines":     strings.ReplaceAll(rows, "\n", "\n\n  \n"),
		"twice":           page + page,
		"a BOM and prose": "\ufeffHello:\n" + rows + "\nGoodbye: 1",
	} {
		if m, u, err := ParseKit([]byte(text)); err != nil || m != testMaster || u != testStore {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}

// TestKitTypos changes, drops, doubles and exchanges every character of the rows: each mistake is found, and its row
// is named.
func TestKitTypos(t *testing.T) {
	page := string(FormatKit(testMaster, testStore, testMade))
	start := strings.Index(page, "    1:")
	row := byte('0')
	for i := start; i < len(page); i++ {
		c := page[i]
		if c == ' ' || c == '\n' {
			continue
		}
		if page[i+1] == ':' {
			row = c
			continue
		}
		if c == ':' {
			continue
		}
		other := "Z"
		if c == 'Z' {
			other = "7"
		}
		bad := []string{page[:i] + other + page[i+1:], page[:i] + page[i+1:], page[:i] + string(c) + page[i:], page[:i] + "U" + page[i+1:], page[:i] + "é" + page[i+1:]}
		if next := page[i+1]; next != ' ' && next != '\n' && next != c {
			bad = append(bad, page[:i]+string(next)+string(c)+page[i+2:])
		}
		for _, text := range bad {
			m, _, err := ParseKit([]byte(text))
			if !errs.Is(err, errs.Invalid) || !m.IsZero() || !strings.Contains(err.Error(), "row "+string(row)) || !strings.Contains(errs.NextStep(err), string(row)) {
				t.Errorf("row %c, character %d: %v", row, i, err)
			}
		}
	}
}

func TestKitRefuses(t *testing.T) {
	page := string(FormatKit(testMaster, testStore, testMade))
	other := string(FormatKit(Master{9}, testStore, testMade))
	lines := strings.SplitAfter(page[strings.Index(page, "    1:"):], "\n")
	others := strings.SplitAfter(other[strings.Index(other, "    1:"):], "\n")
	exchanged := strings.Replace(lines[0], "1:", "2:", 1) + strings.Replace(lines[1], "2:", "1:", 1)
	for name, text := range map[string]string{
		"nothing":           "",
		"prose":             "This is no kit.",
		"a row missing":     lines[0] + lines[1] + lines[3] + lines[4],
		"rows exchanged":    exchanged + lines[2] + lines[3] + lines[4],
		"two kits":          page + other,
		"two kits' rows":    lines[0] + lines[1] + others[2] + lines[3] + lines[4],
		"a huge file":       page + strings.Repeat("\n", maxKit),
		"a row without ':'": strings.Replace(page, "3:", "3", 1),
	} {
		if m, _, err := ParseKit([]byte(text)); !errs.Is(err, errs.Invalid) || errs.NextStep(err) == "" || !m.IsZero() {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := ParseKit(newerKit()); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a newer kit: %v", err)
	}
}

func newerKit() []byte {
	data := make([]byte, kitRows*kitRowBytes)
	data[0] = kitVersion + 1
	data[len(data)-1] = kitSum(data[:len(data)-1])
	var out []byte
	for i := range kitRows {
		out = append(out, byte('1'+i), ':')
		out = append(out, kitRow(i, data[i*kitRowBytes:(i+1)*kitRowBytes])...)
		out = append(out, '\n')
	}
	return out
}

// TestKitPage looks at the page as a person would.
func TestKitPage(t *testing.T) {
	page := string(FormatKit(testMaster, testStore, testMade))
	for _, want := range []string{"2026-11-24 18:48 UTC", "01935fa0-1234-7abc-9def-010203040506", "holdfast recover", "--kit"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for line := range strings.Lines(page) {
		if len(line) > 80 {
			t.Errorf("too long to print: %q", line)
		}
	}
}

// FuzzKit: what parses, formats to a page that parses to the same; nothing panics.
func FuzzKit(f *testing.F) {
	f.Add(FormatKit(testMaster, testStore, testMade))
	f.Add(newerKit())
	f.Add([]byte("1: 0000 0000 0000 0000 0000\r2:\n:"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, u, err := ParseKit(b)
		if err != nil {
			if k := errs.KindOf(err); k != errs.Invalid && k != errs.Unsupported {
				t.Errorf("kind %v: %v", k, err)
			}
			return
		}
		m2, u2, err := ParseKit(FormatKit(m, u, testMade))
		if err != nil || m2 != m || u2 != u {
			t.Errorf("%v", err)
		}
	})
}

// TestCorpus: a fuzz target without seeds tests nothing.
func TestCorpus(t *testing.T) {
	if files, err := os.ReadDir("testdata/fuzz/FuzzKit"); err != nil || len(files) == 0 {
		t.Errorf("FuzzKit has no corpus: %v", err)
	}
}
