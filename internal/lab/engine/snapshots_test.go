package engine

import (
	"errors"
	"testing"
	"time"
)

const oneDisk = `<snapshot><description>%</description><persist_memorystate>false</persist_memorystate><disk_attachments><disk_attachment>` +
	`<disk id="` + diskRaw + `"/></disk_attachment></disk_attachments></snapshot>`

// TestSnapshotsAreLayers: volumes come and go as an engine names them, and are read one by one.
func TestSnapshotsAreLayers(t *testing.T) {
	bubble(t, func(o *Options) { o.VMs[0].Running = true }, func(c *client) {
		before := c.e.Snapshot()
		image := func() string { return c.get("disks/" + diskRaw).at("image_id") }
		v1 := image()
		snapshots := "vms/" + vmID + "/snapshots"
		take := func() (snapshot, volume string) {
			s := c.must(201, post, snapshots, oneDisk).at("id")
			c.must(409, post, snapshots, oneDisk)
			c.waitFor(snapshots+"/"+s, "snapshot_status", "ok")
			a := c.get(snapshots + "/" + s + "/disks")
			if a.at("disk.0.id") != diskRaw || a.at("disk.1.id") != "" || a.at("disk.0.snapshot.id") != s {
				c.t.Fatal(a.raw)
			}
			return s, a.at("disk.0.image_id")
		}
		s1, a1 := take()
		v2 := image()
		s2, a2 := take()
		v3 := image()
		if a1 != v1 || a2 != v2 || v3 == v2 || v2 == v1 {
			c.t.Fatal(v1, v2, v3, a1, a2)
		}
		chain := c.get("disks/" + diskRaw + "/disksnapshots?include_active=true")
		if chain.at("disk_snapshot.0.format") != "raw" || chain.at("disk_snapshot.1.id") != v2 || chain.at("disk_snapshot.1.parent.id") != v1 ||
			chain.at("disk_snapshot.1.snapshot.id") != s2 || chain.at("disk_snapshot.2.id") != v3 || chain.at("disk_snapshot.2.parent.id") != v2 {
			c.t.Fatal(chain.raw)
		}
		a := c.must(201, post, "imagetransfers", `<image_transfer><snapshot id="`+v2+`"/><direction>download</direction><format>raw</format><shallow>true</shallow>`+
			`<inactivity_timeout>3600</inactivity_timeout><timeout_policy>cancel</timeout_policy></image_transfer>`)
		if a.at("phase") != "transferring" || a.at("image.id") != diskRaw || a.at("shallow") != "true" || c.host.asked("AddVolumeTicket "+v2+" true") != 1 {
			c.t.Fatal(a.raw, c.host.calls)
		}
		c.must(409, del, snapshots+"/"+s1, "")
		c.must(500, post, "imagetransfers", `<image_transfer><snapshot id="`+v3+`"/><direction>download</direction><format>raw</format></image_transfer>`)
		c.must(200, post, "imagetransfers/"+a.at("id")+"/finalize", "<action/>")
		c.waitFor("imagetransfers/"+a.at("id"), "phase", "finished_success")

		// The second snapshot has the first one's volume when that was merged.
		c.must(200, del, snapshots+"/"+s1, "")
		if c.get(snapshots+"/"+s1).at("snapshot_status") != "ok" {
			c.t.Error("a snapshot that is removed shows as ok for a moment")
		}
		c.waitFor(snapshots+"/"+s1, "snapshot_status", "locked")
		c.wait("the merge", func() bool { return c.do(get, snapshots+"/"+s1, "").status == 404 })
		if a := c.get(snapshots + "/" + s2 + "/disks"); a.at("disk.0.image_id") != v1 || c.host.asked("MergeVolume "+vmID+" "+v1+" "+v2+" "+v3) != 1 {
			c.t.Error(a.raw, c.host.calls)
		}
		c.must(200, del, snapshots+"/"+s2, "")
		c.wait("the merge", func() bool { return c.do(get, snapshots+"/"+s2, "").status == 404 })
		if d := c.get("disks/" + diskRaw); d.at("image_id") != v1 || d.at("format") != "raw" {
			c.t.Error(d.raw)
		}
		if left := c.e.Leftovers(before); len(left) > 0 {
			c.t.Error(left)
		}
	})
}

func TestSnapshotsThatFail(t *testing.T) {
	bubble(t, nil, func(c *client) {
		snapshots := "vms/" + vmID + "/snapshots"
		c.must(400, post, snapshots, `<snapshot><disk_attachments><disk_attachment><disk id="`+nobody+`"/></disk_attachment></disk_attachments></snapshot>`)
		before := c.e.Snapshot()
		if err := c.e.Fault(FaultSnapshotFails); err != nil {
			c.t.Fatal(err)
		}
		s := c.must(201, post, snapshots, oneDisk).at("id")
		c.wait("its end", func() bool { return c.do(get, snapshots+"/"+s, "").status == 404 })
		if left := c.e.Leftovers(before); len(left) > 0 || c.host.asked("TakeSnapshot") > 0 {
			c.t.Error(left, c.host.calls)
		}
		s = c.must(201, post, snapshots, oneDisk).at("id")
		c.waitFor(snapshots+"/"+s, "snapshot_status", "ok")
		c.host.setFailure("MergeVolume", errors.New("the merge failed"))
		c.must(200, del, snapshots+"/"+s, "")
		pass(5 * time.Minute)
		if a := c.get(snapshots + "/" + s); a.at("snapshot_status") != "ok" {
			c.t.Error(a.raw)
		}
		c.host.setFailure("MergeVolume", nil)
		c.must(200, del, snapshots+"/"+s, "")
		c.wait("its end", func() bool { return c.do(get, snapshots+"/"+s, "").status == 404 })
	})
}
