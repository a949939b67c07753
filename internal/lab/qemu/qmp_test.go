package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// fakeQEMU answers every command by a function; a nil answer leaves the command unanswered.
type fakeQEMU struct {
	conn   net.Conn
	answer func(command string, id uint64) []string
}

// openFake connects a client to a fake qemu. The fake ends with the test.
func openFake(t *testing.T, answer func(command string, id uint64) []string) (*QMP, *fakeQEMU) {
	t.Helper()
	ours, theirs := net.Pipe()
	f := &fakeQEMU{conn: theirs, answer: answer}
	ended := make(chan struct{})
	go func() { defer close(ended); f.serve() }()
	q, err := NewQMP(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close(); _ = theirs.Close(); <-ended })
	return q, f
}

func (f *fakeQEMU) serve() {
	f.say(`{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`)
	lines := bufio.NewScanner(f.conn)
	for lines.Scan() {
		var r request
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			return
		}
		if r.Execute == "qmp_capabilities" {
			f.say(fmt.Sprintf(`{"return": {}, "id": %d}`, r.ID))
			continue
		}
		for _, line := range f.answer(r.Execute, r.ID) {
			f.say(line)
		}
	}
}

func (f *fakeQEMU) say(line string) { _, _ = f.conn.Write([]byte(line + "\r\n")) }

func TestExecuteReturnsValuesAndTypedErrors(t *testing.T) {
	q, _ := openFake(t, func(command string, id uint64) []string {
		switch command {
		case "query-name":
			return []string{`{"event": "RESUME", "data": {}}`, fmt.Sprintf(`{"return": {"name": "web1"}, "id": %d}`, id)}
		case "blockdev-del":
			return []string{fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "Node x is in use"}, "id": %d}`, id)}
		}
		return []string{fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "no %s"}, "id": %d}`, command, id)}
	})
	var name struct{ Name string }
	if err := q.Execute(t.Context(), "query-name", nil, &name); err != nil || name.Name != "web1" {
		t.Errorf("name %q, error %v", name.Name, err)
	}
	err := q.Execute(t.Context(), "blockdev-del", Node{"node-name": "x"}, nil)
	var refused *QMPError
	if !errors.As(err, &refused) || refused.Class != "GenericError" || !errs.Is(err, errs.Invalid) {
		t.Errorf("error %v", err)
	}
	if err := q.Execute(t.Context(), "fly", nil, nil); !errs.Is(err, errs.Unsupported) {
		t.Errorf("error %v for an unknown command", err)
	}
}

func TestManyExecuteAtOnceAndEachGetsItsOwnAnswer(t *testing.T) {
	var mu sync.Mutex
	var held []string
	q, _ := openFake(t, func(command string, id uint64) []string {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, fmt.Sprintf(`{"return": %q, "id": %d}`, command, id))
		if len(held) < 8 {
			return nil
		}
		for i, j := 0, len(held)-1; i < j; i, j = i+1, j-1 { // the last question is answered first
			held[i], held[j] = held[j], held[i]
		}
		return held
	})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			var got string
			want := fmt.Sprint("command-", i)
			if err := q.Execute(t.Context(), want, nil, &got); err != nil || got != want {
				t.Errorf("%s got %q, error %v", want, got, err)
			}
		})
	}
	all.Wait()
}

func TestEventsAreKeptFromTheMomentTheyAreAskedFor(t *testing.T) {
	q, _ := openFake(t, func(_ string, id uint64) []string {
		return []string{
			`{"event": "BLOCK_JOB_READY", "data": {"device": "other"}}`,
			`{"event": "STOP", "data": {}}`,
			`{"event": "BLOCK_JOB_READY", "data": {"device": "move-1"}}`,
			fmt.Sprintf(`{"return": {}, "id": %d}`, id),
		}
	})
	events := q.Events("BLOCK_JOB_READY")
	defer events.Close()
	if err := q.Execute(t.Context(), "blockdev-mirror", nil, nil); err != nil {
		t.Fatal(err)
	}
	e, err := events.Next(t.Context(), func(e Event) bool { return e.Field("device") == "move-1" })
	if err != nil || e.Field("device") != "move-1" {
		t.Errorf("event %v, error %v", e, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := events.Next(ctx, nil); !errs.Is(err, errs.Canceled) {
		t.Errorf("error %v where there is no further event", err)
	}
}

func TestTheEndOfQEMUReachesEverybodyWhoWaits(t *testing.T) {
	asked := make(chan struct{})
	q, f := openFake(t, func(string, uint64) []string { close(asked); return nil })
	events := q.Events("SHUTDOWN")
	go func() { <-asked; _ = f.conn.Close() }()
	if err := q.Execute(t.Context(), "query-status", nil, nil); !errs.Is(err, errs.Stale) {
		t.Errorf("error %v, want stale", err)
	}
	if _, err := events.Next(t.Context(), nil); !errs.Is(err, errs.Stale) {
		t.Errorf("error %v, want stale", err)
	}
	if err := q.Execute(t.Context(), "query-status", nil, nil); !errs.Is(err, errs.Stale) {
		t.Errorf("error %v, want stale", err)
	}
}

func TestAStrangerIsNotTakenForQEMU(t *testing.T) {
	for _, line := range []string{"SSH-2.0-x\n", "{}\n", ""} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Write([]byte(line))
			_ = theirs.Close()
		}()
		if _, err := NewQMP(t.Context(), ours); err == nil {
			t.Errorf("%q passed for a greeting", line)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if _, err := NewQMP(ctx, ours); !errs.Is(err, errs.Canceled) {
		t.Errorf("error %v for a cancelled context", err)
	}
}

func TestNodesAsQEMUTakesThem(t *testing.T) {
	nfs, err := NFSNode("nfs://127.0.0.1/points/web1/disk0.qcow2?nfsport=2049&mountport=2049&version=3")
	if err != nil {
		t.Fatal(err)
	}
	n := FormatNode("disk", "qcow2", nfs)
	want := `{"discard":"unmap","driver":"qcow2","file":{"driver":"nfs","path":"/points/web1/disk0.qcow2",` +
		`"server":{"host":"127.0.0.1","type":"inet"}},"node-name":"disk"}`
	if got := n.json(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := n.Image(); strings.Contains(got, "node-name") || strings.Contains(got, "discard") || !strings.HasPrefix(got, "json:{") {
		t.Errorf("qemu-img would get %s", got)
	}
	if n.Name() != "disk" || n.Format() != "qcow2" || nfs.Name() != "" {
		t.Error("name or format are wrong, or Image changed the node itself")
	}
	if got := FormatNode("d", "raw", FileNode("/x")).Image(); got != `json:{"driver":"raw","file":{"driver":"file","filename":"/x"}}` {
		t.Errorf("qemu-img would get %s", got)
	}
	for _, bad := range []string{"", "http://h/x", "nfs://h/", "nfs:///x", "://"} {
		if _, err := NFSNode(bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}

func TestPercentages(t *testing.T) {
	var got []float64
	p := percentages{report: func(v float64) { got = append(got, v) }}
	for _, piece := range []string{"    (0.00/100%)\r  ", "  (12.", "50/100%)\r    (100.00/100%)\r\n", "(x)"} {
		if n, err := p.Write([]byte(piece)); n != len(piece) || err != nil {
			t.Error(n, err)
		}
	}
	if fmt.Sprint(got) != "[0 12.5 100]" {
		t.Errorf("got %v", got)
	}
}
