package engine

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"slices"
	"strings"
	"testing"
)

// paths lists the elements and attributes of an XML document, without values.
func paths(t *testing.T, document string) []string {
	t.Helper()
	var x anyXML
	if err := xml.Unmarshal([]byte(document), &x); err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	flattenXML("", x, func(path, _ string) { set[path] = true })
	return sortedKeys(set)
}

// What the simulator writes is a part of what an engine writes, and has all that a restore needs.
func TestOVFIsShapedLikeARecordedOne(t *testing.T) {
	recorded, err := os.ReadFile("testdata/16-orig.ovf.xml")
	if err != nil {
		t.Fatal(err)
	}
	bubble(t, nil, func(c *client) {
		ours := paths(t, c.get("vms/"+vmID+"?all_content=true").at("initialization.configuration.data"))
		theirs := paths(t, string(recorded))
		for _, p := range ours {
			if !slices.Contains(theirs, p) {
				t.Errorf("%s is in no recorded OVF", p)
			}
		}
		for _, p := range theirs {
			if !slices.Contains(ours, p) && (strings.Contains(p, "Section.Disk") || strings.Contains(p, "References") || strings.Contains(p, "Item.MAC")) {
				t.Errorf("%s is missing", p)
			}
		}
	})
}

// A VM's configuration makes the same VM again, with a name, identities and addresses of its own.
func TestVMFromItsOwnOVF(t *testing.T) {
	bubble(t, func(o *Options) { o.VMs[0].MiB, o.VMs[0].VCPUs, o.VMs[0].Name = 768, 3, "a-b" }, func(c *client) {
		c.must(200, put, "vms/"+vmID, `<vm><description>x &lt;&amp;&gt; "y"</description></vm>`)
		data, err := json.Marshal(c.get("vms/" + vmID + "?all_content=true").at("initialization.configuration.data"))
		if err != nil {
			t.Fatal(err)
		}
		a := c.must(201, post, "vms?follow=nics", `{"name":"again","cluster":{"name":"Default"},"initialization":{"regenerate_ids":"true","configuration":{"type":"ovf","data":`+
			string(data)+`}}}`)
		a = c.get("vms/" + a.at("id") + "?follow=nics,disk_attachments")
		mac := c.get("vms/" + vmID + "/nics").at("nic.0.mac.address")
		if a.at("memory") != "805306368" || a.at("cpu.topology.sockets") != "3" || a.at("description") != `x <&> "y"` || a.at("name") != "again" ||
			a.at("nics.nic.0.mac.address") == mac || a.at("nics.nic.0.vnic_profile.id") != profileID || a.at("disk_attachments.disk_attachment.0") != "" {
			t.Fatal(a.raw, mac)
		}
	})
}
