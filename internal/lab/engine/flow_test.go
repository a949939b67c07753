package engine

import (
	"strings"
	"testing"
	"testing/synctest"
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
		c.wait("locks gone", func() bool { v, _ := c.e.state.vms.get(vmID); return !v.locked })
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
	if len(c.host.tickets) != 0 {
		c.t.Fatal(c.host.tickets)
	}
}
