package engine

import (
	"slices"
)

func showTag(t *tag) *object {
	o := newObject("tag").at(apiPath+"tags/"+t.id, t.id)
	if t.parent != "" {
		o.set("parent", ref("tags", t.parent))
	}
	o.set("name", t.name)
	if t.description != "" || t.id == nilID {
		o.set("description", t.description)
	}
	return o
}

// showVMTag is a tag as one VM has it.
func showVMTag(v *vm, t *tag) *object {
	o := newObject("tag").at(apiPath+"vms/"+v.id+"/tags/"+t.id, t.id)
	return o.set("parent", ref("tags", t.parent)).set("vm", ref("vms", v.id)).set("name", t.name)
}

func (c *call) listTags() (*reply, error) {
	var rows []row
	all := c.e.state.tags.all()
	for _, t := range append(all[1:], all[0]) { // the root comes last
		rows = append(rows, row{map[string][]string{"name": {t.name}}, func() *object { return showTag(t) }})
	}
	return c.collection("tags", "tag", rows)
}

func (c *call) getTag() (*reply, error) {
	t, found := c.e.state.tags.get(c.vars["tag"])
	if !found {
		return nil, notFound()
	}
	return ok(showTag(t))
}

func (e *Engine) tagByName(name string) *tag {
	for _, t := range e.state.tags.all() {
		if t.name == name {
			return t
		}
	}
	return nil
}

func (c *call) addTag() (*reply, error) {
	name := c.body.value("name")
	if name == "" {
		return nil, mandatory("tag.name")
	}
	if c.e.tagByName(name) != nil {
		return nil, conflict("The specified Tag name already exists.")
	}
	parent := nilID
	if id, n := c.body.idOrName("parent"); id != "" || n != "" {
		t, _ := c.e.state.tags.get(id)
		if id == "" {
			t = c.e.tagByName(n)
		}
		if t == nil {
			return nil, noEntity(id + n)
		}
		parent = t.id
	}
	t := &tag{id: newID(), name: name, description: c.body.value("description"), parent: parent}
	c.e.state.tags.put(t.id, t)
	c.e.event(evTagAdded, "normal", about(c.correlation, nil), "New Tag %s was created by admin@internal-authz.", name)
	return created(showTag(t))
}

func (c *call) removeTag() (*reply, error) {
	t, found := c.e.state.tags.get(c.vars["tag"])
	if !found || t.id == nilID {
		return nil, notFound()
	}
	c.e.state.tags.remove(t.id)
	for _, v := range c.e.state.vms.all() {
		v.tags = slices.DeleteFunc(v.tags, func(id string) bool { return id == t.id })
	}
	return complete()
}

func (c *call) listVMTags() (*reply, error) {
	all := &list{item: "tag"}
	if v, found := c.e.state.vms.get(c.vars["vm"]); found {
		for _, id := range v.tags {
			t, _ := c.e.state.tags.get(id)
			// Unlike everywhere else, an empty description is shown here.
			all.items = append(all.items, showVMTag(v, t).set("description", t.description))
		}
	}
	return ok(newObject("tags").set("", all))
}

func (c *call) assignTag() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found {
		return nil, noEntity(c.vars["vm"])
	}
	t, _ := c.e.state.tags.get(c.body.id)
	if c.body.id == "" {
		t = c.e.tagByName(c.body.value("name"))
	}
	if t == nil {
		return nil, noEntity(c.body.id + c.body.value("name"))
	}
	if !slices.Contains(v.tags, t.id) {
		v.tags = append(v.tags, t.id)
	}
	return created(showVMTag(v, t))
}

func (c *call) unassignTag() (*reply, error) {
	v, found := c.e.state.vms.get(c.vars["vm"])
	if !found || !slices.Contains(v.tags, c.vars["tag"]) {
		return nil, notFound()
	}
	v.tags = slices.DeleteFunc(v.tags, func(id string) bool { return id == c.vars["tag"] })
	return complete()
}
