package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
	"github.com/holdfast-backup/holdfast/internal/lab/measure"
)

func TestRowsAreMediansHeldAgainstThePeer(t *testing.T) {
	var r results
	us, peer, other := key{"nfs", "read", "holdfast raw", "them"}, key{"nfs", "read", "them", ""}, key{"import", "first", "holdfast", "restic"}
	for _, seconds := range []float64{4, 1, 2} {
		r.add(peer, sample{seconds: seconds * 2, ops: 100, bytes: 4e6, cpu: 0.01})
		r.add(other, sample{seconds: 1, cpu: 1, peak: 3 << 20, added: 1 << 19})
		r.add(us, sample{seconds: seconds, ops: 100, bytes: 4e6, p50: 2 * time.Microsecond})
	}
	rows := r.rows()
	if len(rows) != 3 || rows[0].Program != "holdfast raw" || rows[1].Program != "them" || rows[2].Section != "import" {
		t.Fatalf("rows %+v", rows)
	}
	want := Row{Section: "nfs", Task: "read", Program: "holdfast raw", Rounds: 3, Ratio: 2, Seconds: 2, Spread: 1.5,
		OpsPerSec: 50, MBps: 2, P50: 2}
	if rows[0] != want {
		t.Errorf("row %+v\nwant %+v", rows[0], want)
	}
	if rows[1].CPUPerOp != 100 || rows[1].Ratio != 0 || rows[2].PeakMiB != 3 || rows[2].AddedMiB != 0.5 || rows[2].Ratio != 0 {
		t.Errorf("rows %+v", rows[1:])
	}
	var table, doc bytes.Buffer
	report := &Report{Rows: rows}
	if err := report.Table(&table); err != nil || !strings.Contains(table.String(), "NFS") || !strings.Contains(table.String(), "IMPORT") ||
		!strings.Contains(table.String(), "could NOT be dropped") {
		t.Errorf("table (%v):\n%s", err, table.String())
	}
	var back Report
	if err := report.JSON(&doc); err != nil || json.Unmarshal(doc.Bytes(), &back) != nil || !slices.Equal(back.Rows, rows) {
		t.Errorf("JSON (%v): %s", err, doc.String())
	}
}

func TestTurnsChangeWhoBegins(t *testing.T) {
	if got := turns(3, 4); !slices.Equal(got, []int{1, 2, 0}) {
		t.Errorf("turns %v", got)
	}
}

func TestCut(t *testing.T) {
	ranges := []byteRange{{1, 2}, {3, 9}, {20, 8}}
	for _, c := range []struct {
		wholly bool
		want   []byteRange
	}{
		{true, []byteRange{{4, 4}, {8, 4}, {20, 4}, {24, 4}}},
		{false, []byteRange{{0, 4}, {4, 4}, {8, 4}, {20, 4}, {24, 4}}},
	} {
		if got := cut(ranges, 4, c.wholly); !slices.Equal(got, c.want) {
			t.Errorf("wholly %v: %v, want %v", c.wholly, got, c.want)
		}
	}
}

func TestRewriteChangesTheShareThatWasAsked(t *testing.T) {
	name, changed := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "changed")
	if err := smallDisk(name); err != nil {
		t.Fatal(err)
	}
	if err := measure.CopySparse(t.Context(), name, changed); err != nil {
		t.Fatal(err)
	}
	if err := measure.SameBytes(name, changed); err != nil {
		t.Fatal(err)
	}
	if err := rewrite(changed, 10, 1); err != nil {
		t.Fatal(err)
	}
	if err := measure.SameBytes(name, changed); !errs.Is(err, errs.Corrupt) {
		t.Errorf("after the change: %v", err)
	}
	before, after := read(t, name), read(t, changed)
	differs := 0
	for off := 0; off < len(before); off += grain {
		if !bytes.Equal(before[off:off+grain], after[off:off+grain]) {
			differs += grain
		}
	}
	if share := float64(differs) / (32 << 20); share < 0.07 || share > 0.101 {
		t.Errorf("%.1f %% of the data differs, want about 10", share*100)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseURL(t *testing.T) {
	got, err := parseURL("nfs://127.0.0.1/point/disk0.raw?nfsport=7&mountport=8&version=3")
	if want := (place{"127.0.0.1:7", "127.0.0.1:8", "/point", "disk0.raw"}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseURL("nfs://127.0.0.1/point/disk0.raw"); !errs.Is(err, errs.Invalid) {
		t.Errorf("without ports: %v", err)
	}
}

// serveOnce is a server that answers each call with what answer makes of its number, in pairs and the second first.
func serveOnce(t *testing.T, answer func(xid uint32) []byte) *client {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, 4096)
		for {
			var pair [2]uint32
			for i := range pair {
				record, err := readRecord(conn, buf)
				if err != nil {
					return
				}
				pair[i] = binary.BigEndian.Uint32(record)
			}
			for _, xid := range []uint32{pair[1], pair[0]} {
				if _, err := conn.Write(answer(xid)); err != nil {
					return
				}
			}
		}
	}()
	c, err := connect(context.WithoutCancel(t.Context()), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); _ = ln.Close(); <-done })
	return c
}

// reply makes a record with an accepted reply, in two fragments.
func reply(xid uint32, results *words) []byte {
	body := append(new(words).u32(xid, 1, 0, 0, 0, 0).b, results.b...)
	out := new(words).u32(8)
	out.b = append(out.b, body[:8]...)
	out.u32(uint32(len(body)-8) | 1<<31)
	return append(out.b, body[8:]...)
}

func TestClientReadsOutOfOrderAndVerifies(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	content := bytes.Repeat([]byte{0, 0, 0, 1}, grain)
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	work := []byteRange{{0, grain}, {grain, grain}}
	for _, c := range []struct {
		name string
		data []byte
		want errs.Kind
	}{
		{"right", content[:grain], 0},
		{"other bytes", make([]byte, grain), errs.Corrupt},
		{"too short", content[:100], errs.Corrupt},
	} {
		client := serveOnce(t, func(xid uint32) []byte {
			return reply(xid, new(words).u32(0, 0, uint32(len(c.data)), 0).opaque(c.data))
		})
		r, err := client.read(work, 2)
		if err == nil {
			err = r.verify(work, name)
		}
		if c.want == 0 && err != nil || c.want != 0 && !errs.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestClientRefusesWhatIsNoReply(t *testing.T) {
	for name, answer := range map[string]func(xid uint32) []byte{
		"another call":   func(xid uint32) []byte { return reply(xid+100, new(words).u32(0, 0, 0, 0)) },
		"an error":       func(xid uint32) []byte { return reply(xid, new(words).u32(5, 0)) },
		"a denial":       func(xid uint32) []byte { return new(words).u32(12|1<<31, xid, 1, 1).b },
		"a huge record":  func(uint32) []byte { return new(words).u32(1<<31 | 1<<30).b },
		"a huge opaque":  func(xid uint32) []byte { return reply(xid, new(words).u32(0, 0, grain, 0, 1<<31)) },
		"a short record": func(uint32) []byte { return new(words).u32(0 | 1<<31).b },
	} {
		c := serveOnce(t, answer)
		if _, err := c.read([]byteRange{{0, grain}, {0, grain}}, 2); err == nil {
			t.Errorf("%s was taken for an answer", name)
		}
	}
}
