package api_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/api/apitest"
	"github.com/holdfast-backup/holdfast/appliance/api/client"
)

// victimSocket tells a test process to serve there until it is killed.
const victimSocket = "HOLDFAST_API_VICTIM_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(victimSocket); socket != "" {
		os.Exit(victim(socket))
	}
	os.Exit(m.Run())
}

func victim(socket string) int {
	s := &apitest.Service{}
	s.Change(appliance.Task{ID: "t", State: appliance.TaskRunning, Notes: []string{"first life"}})
	h, err := api.New(api.Options{Service: s})
	if err == nil {
		err = api.Serve(context.Background(), api.Listeners{Socket: socket, Ready: func(api.Addresses) { fmt.Println("ready") }}, h)
	}
	fmt.Println(err)
	return 1
}

// TestKill: a server is killed in the middle of a stream. The next one replaces its socket, and the watch goes on there.
func TestKill(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	c := exec.Command(os.Args[0])
	c.Env, c.Stderr = append(os.Environ(), victimSocket+"="+socket), os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	defer kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the victim says %q, %v", line, err)
	}
	next := &apitest.Service{}
	next.Change(appliance.Task{ID: "t", State: appliance.TaskSucceeded, Notes: []string{"second life"}})
	h, _ := newHandler(t, next)
	cl, err := client.Dial(client.Options{Node: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var seen []string
	err = cl.WatchTask(t.Context(), "t", func(task appliance.Task) error {
		seen = append(seen, task.Notes...)
		if len(seen) > 1 {
			return nil
		}
		kill()
		if _, err := os.Lstat(socket); err != nil {
			t.Errorf("the killed server left no socket: %v", err)
		}
		_, err := listen(t, api.Listeners{Socket: socket}, h)
		return err
	})
	if err != nil || strings.Join(seen, ", ") != "first life, second life" {
		t.Errorf("saw %q, %v", seen, err)
	}
}
