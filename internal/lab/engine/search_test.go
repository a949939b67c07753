package engine

import (
	"testing"
)

func TestSearch(t *testing.T) {
	bubble(t, func(o *Options) {
		o.VMs[0].Tags = []string{"gold"}
		o.VMs = append(o.VMs, VMSeed{Name: "web 1"}, VMSeed{Name: "web-2", Tags: []string{"gold", "silver"}}, VMSeed{Name: "db"})
	}, func(c *client) {
		for search, want := range map[string]string{
			"name=db": "db", "NAME=DB": "db", "name=web*": "web 1,web-2", "name=*2": "web-2", "name=w*-*2": "web-2", `name="web 1"`: "web 1",
			"tag=gold": "bk1,web-2", "tag=gold and name=web*": "web-2", "name=db or tag=silver": "db,web-2", "name!=db and status=down": "bk1,web 1,web-2",
			"bk": "bk1", "sortby name desc": "web-2,web 1,db,bk1", "name=*b* sortby name": "bk1,db,web 1,web-2",
			"id=" + vmID: "bk1", "nosuch=1": "", "name=": "", "name=db sortby nosuch": "", "tag=nosuch": "",
			"sortby name asc page 2&max=3": "web-2", "page 3&max=3": "", "sortby name&max=1": "bk1",
		} {
			a := c.must(200, get, "vms?search="+search, "")
			got := ""
			for i := range 4 {
				if name := a.at("vm." + number(int64(i)) + ".name"); name != "" {
					got += "," + name
				}
			}
			if want != "" {
				want = "," + want
			}
			if got != want {
				t.Errorf("%s: %q instead of %q", search, got, want)
			}
		}
	})
}

func TestFollowOfNothing(t *testing.T) {
	bubble(t, nil, func(c *client) {
		for _, path := range []string{"vms?follow=nosuch", "vms/" + vmID + "?follow=disk_attachments.disk.storage_domains", "vms/" + vmID + "/snapshots?follow=disks"} {
			c.must(500, get, path, "")
		}
		a := c.must(200, get, "vms?follow=disk_attachments.disk,nics,tags,snapshots", "")
		if a.at("vm.0.disk_attachments.disk_attachment.0.disk.alias") != "bk1_inc" || a.at("vm.0.nics.nic.0.name") != "nic1" {
			t.Fatal(a.raw)
		}
	})
}
