package engine

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs a test on a clock of its own.
func bubble(t *testing.T, change func(*Options), f func(c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newClient(t, change)) })
}

func TestBackupsOfAllKinds(t *testing.T) {
	for name, k := range map[string]struct {
		level, query string
		up, snapshot bool
	}{
		"live": {"4.6", "", true, false}, "cold": {"4.6", "", false, false}, "hybrid": {"4.7", "", true, true},
		"hybrid, cold": {"4.8", "", false, true}, "legacy": {"4.8", "?legacy=true", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(o *Options) { o.ClusterLevel = k.level; o.VMs[0].Running = k.up }, func(c *client) { backUp(c, k.query, k.snapshot) })
		})
	}
}

// backUp makes a full backup, an incremental one, and drops the first checkpoint.
func backUp(c *client, query string, snapshot bool) {
	before := c.e.Snapshot()
	backups := "vms/" + vmID + "/backups"
	from, id := "", "0d0d0d0d-1111-4222-8333-444444444401"
	for _, mode := range []string{"full", "incremental"} {
		a := c.must(201, post, backups+query, `<backup id="`+id+`"><from_checkpoint_id>`+from+`</from_checkpoint_id><disks><disk id="`+diskInc+`"/><disk id="`+
			diskRaw+`"/></disks></backup>`)
		if a.at("id") != id || a.at("to_checkpoint_id") != "" || (a.at("snapshot.id") != "") != snapshot {
			c.t.Fatal(a.raw)
		}
		a = c.waitFor(backups+"/"+id, "phase", "ready")
		to := a.at("to_checkpoint_id")
		if to == "" || c.host.lastTo != to {
			c.t.Fatal(a.raw)
		}
		disks := c.get(backups + "/" + id + "/disks")
		if disks.at("disk.0.backup_mode") != mode || disks.at("disk.1.backup_mode") != "full" {
			c.t.Fatal(disks.raw)
		}
		transferAll(c, id)
		c.must(200, post, backups+"/"+id+"/finalize", "<action/>")
		c.must(400, post, backups+"/"+id+"/finalize", "<action/>")
		c.waitFor(backups+"/"+id, "phase", "succeeded")
		c.wait("locks gone", func() bool {
			c.e.mu.Lock()
			defer c.e.mu.Unlock()
			v, _ := c.e.state.vms.get(vmID)
			return !v.locked
		})
		from, id = to, "0d0d0d0d-1111-4222-8333-444444444402"
	}
	a := c.get("vms/" + vmID + "/checkpoints")
	if a.at("checkpoint.1.parent_id") != a.at("checkpoint.0.id") || a.at("checkpoint.1.id") != from {
		c.t.Fatal(a.raw)
	}
	for _, n := range []string{"0", "1"} {
		c.must(200, del, "vms/"+vmID+"/checkpoints/"+a.at("checkpoint."+n+".id"), "")
	}
	if left := c.e.Leftovers(before); len(left) > 0 {
		c.t.Fatal(left)
	}
	if c.host.asked("StartBackup") != 2 || c.host.asked("StopBackup") != 2 || c.host.asked("RemoveCheckpoint") != 2 {
		c.t.Fatal(c.host.calls)
	}
	for _, id := range []string{diskInc, diskRaw} {
		if d := c.get("disks/" + id); d.at("status") != "ok" {
			c.t.Fatal(d.raw)
		}
	}
}

func transferAll(c *client, backup string) {
	for _, disk := range []string{diskInc, diskRaw} {
		a := c.must(201, post, "imagetransfers", `<image_transfer><disk id="`+disk+`"/><backup id="`+backup+`"/><direction>download</direction>`+
			`<format>raw</format><inactivity_timeout>3600</inactivity_timeout><timeout_policy>cancel</timeout_policy></image_transfer>`)
		if a.at("phase") != "transferring" || !strings.HasPrefix(a.at("transfer_url"), "https://localhost:54322/images/") {
			c.t.Fatal(a.raw)
		}
		refused := c.must(409, post, "vms/"+vmID+"/backups/"+backup+"/finalize", "<action/>")
		if refused.detail() != "[Cannot stop VM backup. There is an active image transfer for VM backup]" {
			c.t.Fatal(refused.raw)
		}
		c.must(200, post, "imagetransfers/"+a.at("id")+"/finalize", "<action/>")
		c.waitFor("imagetransfers/"+a.at("id"), "phase", "finished_success")
	}
	if len(c.host.open()) != 0 {
		c.t.Fatal(c.host.open())
	}
}

// instant imports a domain with one image, boots a VM from it, moves the disk away and releases all.
func TestInstantRestore(t *testing.T) {
	bubble(t, func(o *Options) { o.VMs = nil; o.Domains = []DomainSeed{{Name: "local"}} }, instant)
}

func instant(c *client) {
	const domain, image = "0f0f0f0f-1111-4222-8333-4444444444d1", "0f0f0f0f-2222-4222-8333-444444444401"
	c.host.put("10.0.0.5:/ir/1", domain)
	c.host.found = []FoundDisk{{Disk: image, Image: "0f0f0f0f-2222-4222-8333-444444444402", Format: "cow", Size: gib, Used: mib, Alias: "restored", Volumes: 1},
		{Disk: nobody, Volumes: 2}}
	before := c.e.Snapshot()
	center := "datacenters/" + c.e.IDs().DataCenter + "/storagedomains"
	conn := c.must(201, post, "storageconnections", `{"address":"10.0.0.5","path":"/ir/1","type":"nfs","nfs_version":"v3","mount_options":"nolock"}`).at("id")
	a := c.must(201, post, "storagedomains", `{"name":"ir","type":"data","host":{"name":"host1"},"storage":{"id":"`+conn+`"}}`)
	if a.at("id") != domain || c.host.asked("ProbeDomain 10.0.0.5:/ir/1 nfsvers=3,nolock") != 1 {
		c.t.Fatal(a.raw, c.host.calls)
	}
	c.must(201, post, center, `{"id":"`+domain+`"}`)
	if a = c.get("storagedomains/" + domain); a.at("status") != "" {
		c.t.Fatal(a.raw)
	}
	if a = c.get("storagedomains/" + domain + "/disks?unregistered"); a.at("disk.0.id") != image || a.at("disk.1") != "" {
		c.t.Fatal(a.raw)
	}
	c.must(404, post, "storagedomains/"+domain+"/disks;unregistered", `<disk id="`+nobody+`"/>`)
	c.must(200, post, center+"/"+domain+"/disks/"+image+"/register", `<action/>`)
	c.must(409, post, "storagedomains/"+domain+"/disks;unregistered", `<disk id="`+image+`"/>`)
	c.must(200, put, "disks/"+image, `<disk><backup>incremental</backup></disk>`)
	c.waitFor("disks/"+image, "status", "ok")
	vm := c.must(201, post, "vms", `{"name":"again","cluster":{"name":"Default"},"template":{"name":"Blank"},"memory":268435456}`).at("id")
	c.must(201, post, "vms/"+vm+"/diskattachments", `<disk_attachment><bootable>true</bootable><interface>virtio_scsi</interface><active>true</active><disk id="`+
		image+`"/></disk_attachment>`)
	c.must(200, post, "vms/"+vm+"/start", "<action/>")
	c.waitFor("vms/"+vm, "status", "up")
	if s := c.host.lastSpec; s.MiB != 256 || len(s.Disks) != 1 || s.Disks[0].Domain != domain || s.Ifaces[0] != "virtio_scsi" {
		c.t.Fatal(s)
	}
	c.must(409, post, center+"/"+domain+"/deactivate", "<action/>")
	migrate(c, vm, image)
	c.must(200, post, center+"/"+domain+"/deactivate", "<action><force>false</force></action>")
	c.waitFor(center+"/"+domain, "status", "maintenance")
	c.must(200, del, center+"/"+domain, "")
	c.must(200, del, "storagedomains/"+domain+"?host=host1&format=false", "")
	c.must(404, get, "storageconnections/"+conn, "")
	c.must(200, post, "vms/"+vm+"/stop", "<action/>")
	c.waitFor("vms/"+vm, "status", "down")
	c.must(200, del, "vms/"+vm, "")
	c.wait("VM gone", func() bool { return c.get("vms/"+vm).status == 404 })
	if left := c.e.Leftovers(before); len(left) > 0 {
		c.t.Fatal(left)
	}
}

// migrate moves a disk of a running VM: its place changes before the work is over.
func migrate(c *client, vm, image string) {
	c.header = map[string]string{"Correlation-Id": "move-1"}
	c.must(200, post, "disks/"+image+"/move", `<action><storage_domain><name>local</name></storage_domain></action>`)
	c.must(409, post, "disks/"+image+"/move", `<action><storage_domain><name>local</name></storage_domain></action>`)
	a := c.waitFor("vms/"+vm+"/snapshots", "snapshot.1.snapshot_status", "ok")
	if a.at("snapshot.1.description") != "restored Auto-generated for Live Storage Migration" {
		c.t.Fatal(a.raw)
	}
	if a = c.get("jobs?search=correlation_id=move-1"); a.at("job.0.status") != "started" {
		c.t.Fatal(a.raw)
	}
	local := c.get("storagedomains?search=name=local").at("storage_domain.0.id")
	a = c.waitFor("disks/"+image, "storage_domains.storage_domain.0.id", local)
	if a.at("status") != "locked" {
		c.t.Fatal(a.raw)
	}
	c.waitFor("disks/"+image, "status", "ok")
	if a = c.get("jobs?search=correlation_id=move-1"); a.at("job.0.status") != "finished" {
		c.t.Fatal(a.raw)
	}
	if a = c.get("vms/" + vm + "/snapshots"); a.at("snapshot.1") != "" {
		c.t.Fatal(a.raw)
	}
	if a = c.get("events?search=correlation_id=move-1"); a.at("event.0.code") != "2010" {
		c.t.Fatal(a.raw)
	}
}

// An export without a domain makes a new one, whatever the request says: clients look at the id.
func TestImportOfNothing(t *testing.T) {
	bubble(t, nil, func(c *client) {
		a := c.must(201, post, "storagedomains", `<storage_domain id="`+nobody+`"><import>true</import><name>x</name><type>data</type><host><name>host1</name></host>`+
			`<storage><type>nfs</type><address>a</address><path>/b</path></storage></storage_domain>`)
		if a.at("id") == nobody || a.at("name") != "x" {
			c.t.Fatal(a.raw)
		}
	})
}

// A guest that powers itself off is noticed, but only if the host has shown it running.
func TestGuestEndsByItself(t *testing.T) {
	bubble(t, nil, func(c *client) {
		c.must(200, post, "vms/"+vmID+"/start", "<action/>")
		c.waitFor("vms/"+vmID, "status", "up")
		pass(2 * watchInterval)
		_ = c.host.end("power off", vmID)
		c.waitFor("vms/"+vmID, "status", "down")
	})
}

func TestHostFailures(t *testing.T) {
	bubble(t, nil, func(c *client) {
		c.host.setFailure("StartVM", badRequest("no room"))
		c.must(200, post, "vms/"+vmID+"/start", "<action/>")
		c.waitFor("vms/"+vmID, "status", "down")
		c.host.setFailure("StartBackup", badRequest("no such thing"))
		id := c.must(201, post, "vms/"+vmID+"/backups", `<backup><disks><disk id="`+diskInc+`"/></disks></backup>`).at("id")
		c.waitFor("vms/"+vmID+"/backups/"+id, "phase", "failed")
		if a := c.get("events?search=type=10792"); !strings.Contains(a.at("event.0.description"), "no such thing") {
			c.t.Fatal(a.raw)
		}
		if a := c.get("disks/" + diskInc); a.at("status") != "ok" {
			c.t.Fatal(a.raw)
		}
		c.host.setFailure("CreateDisk", badRequest("no space"))
		d := c.must(201, post, "disks", `{"name":"n","format":"cow","provisioned_size":1,"storage_domains":{"storage_domain":[{"name":"local"}]}}`).at("id")
		c.wait("disk gone", func() bool { return c.get("disks/"+d).status == 404 })
		if left := c.e.Leftovers(nil); len(left) != len(c.e.Snapshot()) {
			c.t.Fatal(left)
		}
	})
}

// Ended backups and transfers are forgotten after a time, failed ones later.
func TestEndedWorkIsForgotten(t *testing.T) {
	bubble(t, nil, func(c *client) {
		backups := "vms/" + vmID + "/backups"
		id := c.must(201, post, backups, `<backup><disks><disk id="`+diskInc+`"/></disks></backup>`).at("id")
		c.waitFor(backups+"/"+id, "phase", "ready")
		c.must(200, post, backups+"/"+id+"/finalize", "<action/>")
		c.waitFor(backups+"/"+id, "phase", "succeeded")
		pass(c.e.opts.Keep + time.Second) // both timers end at one instant otherwise, in any order
		c.must(404, get, backups+"/"+id, "")
		c.must(200, get, "vms/"+vmID+"/checkpoints", "")
	})
}
