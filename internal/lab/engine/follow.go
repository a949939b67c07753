package engine

import (
	"strings"
)

// followers are the links that follow= can put in place, by entity and name. Anything else makes the engine fall over,
// as the real one does.
var followers = map[string]map[string]func(*call, *object) (value any, rel string){
	"vm": {
		"disk_attachments": func(c *call, o *object) (any, string) {
			v, _ := c.e.state.vms.get(o.id)
			all := &list{item: "disk_attachment", shown: true}
			for _, a := range v.attachments {
				all.items = append(all.items, c.e.showAttachment(v, a))
			}
			return newObject("").set("", all), ""
		},
		"nics": func(c *call, o *object) (any, string) {
			v, _ := c.e.state.vms.get(o.id)
			all := &list{item: "nic"}
			for _, n := range v.nics {
				all.items = append(all.items, showNIC(v, n))
			}
			return newObject("").set("", all), "nics"
		},
		"tags": func(c *call, o *object) (any, string) {
			v, _ := c.e.state.vms.get(o.id)
			all := &list{item: "tag"}
			for _, id := range v.tags {
				t, _ := c.e.state.tags.get(id)
				all.items = append(all.items, showVMTag(v, t))
			}
			return newObject("").set("", all), "tags"
		},
		"snapshots": func(c *call, o *object) (any, string) {
			v, _ := c.e.state.vms.get(o.id)
			all := &list{item: "snapshot"}
			for _, s := range v.snapshots {
				all.items = append(all.items, c.e.showSnapshot(v, s))
			}
			return newObject("").set("", all), "snapshots"
		},
	},
	"disk_attachment": {
		"disk": func(c *call, o *object) (any, string) {
			d, _ := c.e.state.disks.get(o.id)
			return c.e.showDisk(d), ""
		},
	},
	"backup": {
		"disks": func(c *call, o *object) (any, string) {
			b, _ := c.e.state.backups.get(o.id)
			return newObject("").set("", c.e.backupDisks(b)), "" // the link stays, for once
		},
	},
	"job": {
		"steps": func(c *call, o *object) (any, string) {
			j, _ := c.e.state.jobs.get(o.id)
			return newObject("").set("", steps(j)), "steps"
		},
	},
}

// follow puts in place what the query asks for: "disk_attachments.disk,nics".
func (c *call) follow(o *object) error {
	for path := range strings.SplitSeq(c.param("follow"), ",") {
		if path = strings.TrimSpace(path); path == "" {
			continue
		}
		if err := c.followPath(o, strings.Split(path, ".")); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) followPath(o *object, path []string) error {
	if len(path) == 0 {
		return nil
	}
	if all, ok := o.get("").(*list); ok { // a list: follow in each entity
		for _, item := range all.items {
			if inner, ok := item.(*object); ok {
				if err := c.followPath(inner, path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	put, ok := followers[o.name][path[0]]
	if !ok {
		return crash("java.lang.IllegalArgumentException: " + o.name + "." + path[0])
	}
	inner, done := o.get(path[0]).(*object)
	if _, isList := inner.lists(); !done || !isList && len(inner.members) == 0 {
		value, rel := put(c, o)
		o.set(path[0], value)
		if rel != "" {
			o.unlink(rel)
		}
		if o.get("link") == nil {
			o.set("link", links{})
		}
		inner, _ = value.(*object)
	}
	return c.followPath(inner, path[1:])
}

func (o *object) lists() (*list, bool) {
	if o == nil {
		return nil, false
	}
	all, ok := o.get("").(*list)
	return all, ok
}
