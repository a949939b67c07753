package engine

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

// aborted tells whether a request ended without an answer.
func (c *client) aborted(method, path, body string) (gone bool) {
	defer func() {
		if r := recover(); r != nil {
			gone = errors.Is(r.(error), http.ErrAbortHandler)
		}
	}()
	c.do(method, path, body)
	return false
}

func TestUnknownFault(t *testing.T) {
	bubble(t, nil, func(c *client) {
		if c.e.Fault("no such") == nil {
			t.Fatal("it was taken")
		}
		for _, f := range Faults {
			if f.Text == "" {
				t.Fatal(f.Name)
			}
		}
	})
}

// inject arms a fault.
func (c *client) inject(name string) {
	c.t.Helper()
	if err := c.e.Fault(name); err != nil {
		c.t.Fatal(err)
	}
}

func TestFaultsOfTheConnection(t *testing.T) {
	bubble(t, nil, func(c *client) {
		c.inject(FaultUnreachable)
		if !c.aborted(get, "vms", "") || !c.aborted(get, "tags", "") {
			t.Fatal("an answer")
		}
		c.e.Heal(FaultUnreachable)
		c.inject(FaultServerError)
		if a := c.do(post, "tags", `<tag><name>a</name></tag>`); a.status != 500 || !strings.HasPrefix(a.raw, "<html>") {
			t.Fatal(a.raw)
		}
		c.inject(FaultLostAnswer)
		c.must(200, get, "tags", "") // only changes lose their answers
		if !c.aborted(post, "tags", `<tag><name>a</name></tag>`) {
			t.Fatal("an answer")
		}
		c.must(409, post, "tags", `<tag><name>a</name></tag>`) // it had been done, and the fault is over
		c.inject(FaultSlow)
		began := time.Now()
		c.must(200, get, "tags", "")
		if time.Since(began) != slowness {
			t.Fatal(time.Since(began))
		}
		c.e.Heal(FaultSlow)
		c.inject(FaultExpiredToken)
		c.must(401, get, "tags", "")
		c.login()
		pass(idleLife - time.Second)
		c.must(200, get, "tags", "")
		pass(idleLife)
		c.must(401, get, "tags", "")
	})
}

func TestLockedVM(t *testing.T) {
	bubble(t, nil, func(c *client) {
		c.inject(FaultVMLocked)
		for _, want := range []int{400, 409, 400} {
			if a := c.must(want, post, "vms/"+vmID+"/start", "<action/>"); want == 400 && a.detail() != "[]" {
				t.Fatal(a.raw)
			}
		}
		c.must(409, post, "vms/"+vmID+"/backups", `<backup><disks><disk id="`+diskInc+`"/></disks></backup>`)
		c.e.Heal(FaultVMLocked)
		c.must(200, post, "vms/"+vmID+"/start", "<action/>")
	})
}

// ready makes a backup and waits for it.
func (c *client) ready(from string) string {
	c.t.Helper()
	id := c.must(201, post, "vms/"+vmID+"/backups", `<backup><from_checkpoint_id>`+from+`</from_checkpoint_id><disks><disk id="`+diskInc+`"/></disks></backup>`).at("id")
	c.waitFor("vms/"+vmID+"/backups/"+id, "phase", "ready")
	return id
}

// finish ends a backup and waits until its locks are gone too.
func (c *client) finish(id string) {
	c.t.Helper()
	c.must(200, post, "vms/"+vmID+"/backups/"+id+"/finalize", "<action/>")
	c.waitFor("vms/"+vmID+"/backups/"+id, "phase", "succeeded")
	pass(2 * lockedAfterwards)
}

func TestLostCheckpoint(t *testing.T) {
	for level, left := range map[string]string{"4.6": "", "4.7": "invalid"} {
		t.Run(level, func(t *testing.T) {
			bubble(t, func(o *Options) { o.ClusterLevel = level; o.VMs[0].Running = true }, func(c *client) {
				c.finish(c.ready(""))
				from := c.get("vms/" + vmID + "/checkpoints").at("checkpoint.0.id")
				c.inject(FaultLostCheckpoint)
				body := `<backup><from_checkpoint_id>` + from + `</from_checkpoint_id><disks><disk id="` + diskInc + `"/></disks></backup>`
				id := c.must(201, post, "vms/"+vmID+"/backups", body).at("id")
				c.waitFor("vms/"+vmID+"/backups/"+id, "phase", "failed")
				if a := c.get("events?search=type=10791"); !strings.Contains(a.at("event.0.description"), id) {
					t.Fatal(a.raw)
				}
				if a := c.get("vms/" + vmID + "/checkpoints"); a.at("checkpoint.0.state") != left {
					t.Fatal(a.raw)
				}
				c.must(400, post, "vms/"+vmID+"/backups", body)
				c.finish(c.ready("")) // a full one is possible at once
			})
		})
	}
}

func TestInvalidCheckpoint(t *testing.T) {
	bubble(t, nil, func(c *client) {
		c.finish(c.ready(""))
		c.inject(FaultInvalidCheckpoint)
		a := c.get("vms/" + vmID + "/checkpoints")
		if a.at("checkpoint.0.state") != "invalid" {
			t.Fatal(a.raw)
		}
		id := a.at("checkpoint.0.id")
		c.must(400, post, "vms/"+vmID+"/backups", `<backup><from_checkpoint_id>`+id+`</from_checkpoint_id><disks><disk id="`+diskInc+`"/></disks></backup>`)
		c.must(200, del, "vms/"+vmID+"/checkpoints/"+id, "")
	})
}

func TestFaultsOfTransfers(t *testing.T) {
	bubble(t, nil, func(c *client) {
		b := c.ready("")
		begin := func() string {
			return c.must(201, post, "imagetransfers", `<image_transfer><disk id="`+diskInc+`"/><backup id="`+b+
				`"/><direction>download</direction><format>raw</format></image_transfer>`).at("id")
		}
		first := begin()
		c.inject(FaultTransferPaused)
		c.waitFor("imagetransfers/"+first, "phase", "paused_system")
		c.must(200, post, "imagetransfers/"+first+"/resume", "<action/>")
		c.waitFor("imagetransfers/"+first, "phase", "transferring")
		c.must(200, post, "imagetransfers/"+first+"/cancel", "<action/>")
		c.waitFor("imagetransfers/"+first, "phase", "finished_cleanup")
		second := begin()
		c.inject(FaultTicketExpired)
		c.wait("ticket gone", func() bool { return len(c.host.open()) == 0 })
		c.waitFor("imagetransfers/"+second, "phase", "transferring")
		c.must(200, post, "imagetransfers/"+second+"/finalize", "<action/>")
		c.waitFor("imagetransfers/"+second, "phase", "finished_success")
		third := begin()
		c.host.transferred(gib, 3) // the engine ends by itself what has been read whole and is silent
		c.waitFor("imagetransfers/"+third, "phase", "finished_success")
		c.must(200, post, "imagetransfers/"+third+"/finalize", "<action/>")
		c.finish(b)
	})
}

func TestFaultsOfStorage(t *testing.T) {
	bubble(t, func(o *Options) { o.Domains = []DomainSeed{{Name: "local"}, {Name: "other"}} }, func(c *client) {
		add := `<storage_domain><name>x</name><type>data</type><host><name>host1</name></host><storage><type>nfs</type><address>a</address><path>/b</path></storage></storage_domain>`
		before := c.e.Snapshot()
		c.inject(FaultDomainRefused)
		c.must(400, post, "storagedomains", add)
		if left := c.e.Leftovers(before); len(left) > 0 {
			t.Fatal(left)
		}
		id := c.must(201, post, "storagedomains", add).at("id")
		c.inject(FaultAttachFails)
		center := "datacenters/" + c.e.IDs().DataCenter + "/storagedomains"
		c.must(400, post, center, `<storage_domain id="`+id+`"/>`)
		if a := c.get("storagedomains/" + id); a.at("status") != "unattached" {
			t.Fatal(a.raw)
		}
		c.must(201, post, center, `<storage_domain id="`+id+`"/>`)
		move := `<action><storage_domain><name>other</name></storage_domain></action>`
		c.inject(FaultMoveBusy)
		if a := c.must(409, post, "disks/"+diskInc+"/move", move); !strings.Contains(a.detail(), "performing an operation on a Snapshot") {
			t.Fatal(a.raw)
		}
		c.inject(FaultMoveFails)
		c.must(200, post, "disks/"+diskInc+"/move", move)
		a := c.waitFor("disks/"+diskInc, "status", "ok")
		if where := c.get("storagedomains/" + a.at("storage_domains.storage_domain.0.id")); where.at("name") != "local" {
			t.Fatal(a.raw)
		}
		if a := c.get("events?search=type=2011"); a.at("event.0.code") != "2011" {
			t.Fatal(a.raw)
		}
	})
}

// A restart costs the tokens and the live backups, not the hybrid ones.
func TestRestart(t *testing.T) {
	for level, phase := range map[string]string{"4.6": "failed", "4.7": "ready"} {
		t.Run(level, func(t *testing.T) {
			bubble(t, func(o *Options) { o.ClusterLevel = level; o.VMs[0].Running = true }, func(c *client) {
				id := c.ready("")
				c.inject(FaultRestart)
				if !c.aborted(get, "tags", "") {
					t.Fatal("an answer")
				}
				pass(restartTime + time.Second)
				c.must(401, get, "tags", "")
				c.login()
				c.waitFor("vms/"+vmID+"/backups/"+id, "phase", phase)
				if phase == "ready" {
					c.finish(id)
				} else if c.host.asked("StopBackup") != 1 {
					t.Fatal(c.host.calls)
				}
			})
		})
	}
}

// A backup that is told to end before it is ready fails.
func TestEndBeforeReady(t *testing.T) {
	bubble(t, nil, func(c *client) {
		before := c.e.Snapshot()
		id := c.must(201, post, "vms/"+vmID+"/backups", `<backup><disks><disk id="`+diskInc+`"/></disks></backup>`).at("id")
		c.must(200, post, "vms/"+vmID+"/backups/"+id+"/finalize", "<action/>")
		c.waitFor("vms/"+vmID+"/backups/"+id, "phase", "failed")
		if c.host.asked("StopBackup") != 1 {
			t.Fatal(c.host.calls)
		}
		if left := c.e.Leftovers(before); len(left) > 0 {
			t.Fatal(left)
		}
	})
}
