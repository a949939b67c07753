package engine

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"strconv"
	"strings"
	"time"
)

// object is one element of an answer. The engine's API is one tree in two spellings: what is an attribute or a repeated
// element in XML is a member or an array in JSON. An object is that tree; marshal spells it.
type object struct {
	name          string // the element's name when it stands alone: "vm", "vms", "fault"
	href, id, rel string
	members       []member
}

type member struct {
	name  string
	value any // string, bare, time.Time, *object, *list or links
}

// bare is one of the few numbers that JSON shows without quotes; all others are strings there.
type bare int64

// list is a wrapped collection: <tags><tag/></tags>, {"tag":[]}. shown tells that JSON shows an empty array, where most
// empty lists have no key at all.
type list struct {
	item  string
	items []any // *object or string
	shown bool
}

// links repeat in XML without a wrapper.
type links []*object

func newObject(name string) *object { return &object{name: name} }

// at gives the object its address and identity.
func (o *object) at(href, id string) *object {
	o.href, o.id = href, id
	return o
}

// set puts a value at a dotted path, making the objects on the way, and replaces what was there.
func (o *object) set(path string, value any) *object {
	first, rest, nested := strings.Cut(path, ".")
	for i := range o.members {
		if o.members[i].name != first {
			continue
		}
		if !nested {
			o.members[i].value = value
		} else if inner, ok := o.members[i].value.(*object); ok {
			inner.set(rest, value)
		}
		return o
	}
	if nested {
		value = newObject(first).set(rest, value)
	}
	o.members = append(o.members, member{first, value})
	return o
}

// setIf sets a text that may be missing.
func (o *object) setIf(path, value string) *object {
	if value != "" {
		o.set(path, value)
	}
	return o
}

// link adds a link of the object's own, below its address.
func (o *object) link(rels ...string) *object {
	var all links
	for _, rel := range rels {
		all = append(all, &object{href: o.href + "/" + rel, rel: rel})
	}
	return o.set("link", all)
}

func (o *object) unlink(rel string) {
	for i, m := range o.members {
		all, ok := m.value.(links)
		if !ok || m.name != "link" {
			continue
		}
		kept := links{}
		for _, l := range all {
			if l.rel != rel {
				kept = append(kept, l)
			}
		}
		o.members[i].value = kept
	}
}

func (o *object) actions(rels ...string) *object {
	var all links
	for _, rel := range rels {
		all = append(all, &object{href: o.href + "/" + rel, rel: rel})
	}
	return o.set("actions", newObject("actions").set("link", all))
}

// get returns the value at a dotted path, nil if there is none.
func (o *object) get(path string) any {
	first, rest, nested := strings.Cut(path, ".")
	for _, m := range o.members {
		if m.name != first {
			continue
		}
		if !nested {
			return m.value
		}
		if inner, ok := m.value.(*object); ok {
			return inner.get(rest)
		}
	}
	return nil
}

// ref is a reference to another object: an empty element with address and identity.
func ref(collection, id string) *object {
	return &object{href: apiPath + collection + "/" + id, id: id}
}

func flag(b bool) string { return strconv.FormatBool(b) }

func number(n int64) string { return strconv.FormatInt(n, 10) }

// marshalJSON writes the engine's JSON: numbers and booleans are strings, times are milliseconds, an empty list is an
// empty object.
func marshalJSON(o *object) []byte {
	var raw, out bytes.Buffer
	jsonObject(&raw, o)
	if err := json.Indent(&out, raw.Bytes(), "", "  "); err != nil {
		return raw.Bytes()
	}
	return out.Bytes()
}

func jsonObject(b *bytes.Buffer, o *object) {
	b.WriteByte('{')
	first := true
	key := func(name string) {
		if !first {
			b.WriteByte(',')
		}
		first = false
		jsonText(b, name)
		b.WriteByte(':')
	}
	for _, m := range o.members {
		if all, ok := m.value.(*list); ok && m.name == "" { // the object is the list itself
			if len(all.items) > 0 || all.shown {
				key(all.item)
				jsonArray(b, all.items)
			}
			continue
		}
		key(m.name)
		jsonValue(b, m.value)
	}
	for _, a := range []struct{ name, value string }{{"href", o.href}, {"id", o.id}, {"rel", o.rel}} {
		if a.value != "" {
			key(a.name)
			jsonText(b, a.value)
		}
	}
	b.WriteByte('}')
}

func jsonValue(b *bytes.Buffer, value any) {
	switch v := value.(type) {
	case string:
		jsonText(b, v)
	case bare:
		b.WriteString(number(int64(v)))
	case time.Time:
		b.WriteString(number(v.UnixMilli()))
	case *object:
		jsonObject(b, v)
	case *list:
		jsonObject(b, &object{members: []member{{"", v}}})
	case links:
		items := make([]any, len(v))
		for i, l := range v {
			items[i] = l
		}
		jsonArray(b, items)
	}
}

func jsonArray(b *bytes.Buffer, items []any) {
	b.WriteByte('[')
	for i, item := range items {
		if i > 0 {
			b.WriteByte(',')
		}
		jsonValue(b, item)
	}
	b.WriteByte(']')
}

func jsonText(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)       // a string always encodes
	b.Truncate(b.Len() - 1) // the encoder's newline
}

// marshalXML writes the engine's XML.
func marshalXML(o *object) []byte {
	var b bytes.Buffer
	b.WriteString("<?xml version=\"1.0\" ?>\n")
	xmlObject(&b, o.name, o, "")
	return b.Bytes()
}

// xmlFirst is what stands before an entity's own members, in this order.
var xmlFirst = [...]string{"actions", "name", "description", "comment", "link"}

func xmlObject(b *bytes.Buffer, name string, o *object, indent string) {
	b.WriteString(indent + "<" + name)
	for _, a := range []struct{ name, value string }{{"href", o.href}, {"id", o.id}, {"rel", o.rel}} {
		if a.value != "" {
			b.WriteString(" " + a.name + "=\"")
			xmlText(b, a.value)
			b.WriteByte('"')
		}
	}
	var inner bytes.Buffer
	early := map[string]bool{}
	for _, want := range xmlFirst {
		early[want] = true
		for _, m := range o.members {
			if m.name == want {
				xmlMember(&inner, m, indent+"  ")
			}
		}
	}
	for _, m := range o.members {
		if !early[m.name] {
			xmlMember(&inner, m, indent+"  ")
		}
	}
	if inner.Len() == 0 {
		b.WriteString("/>\n")
		return
	}
	b.WriteString(">\n")
	b.Write(inner.Bytes())
	b.WriteString(indent + "</" + name + ">\n")
}

func xmlMember(b *bytes.Buffer, m member, indent string) {
	switch v := m.value.(type) {
	case string:
		xmlLeaf(b, m.name, v, indent)
	case bare:
		xmlLeaf(b, m.name, number(int64(v)), indent)
	case time.Time:
		xmlLeaf(b, m.name, v.UTC().Format("2006-01-02T15:04:05.000Z"), indent)
	case *object:
		xmlObject(b, m.name, v, indent)
	case *list:
		if m.name != "" {
			xmlObject(b, m.name, &object{members: []member{{"", v}}}, indent)
			return
		}
		for _, item := range v.items {
			xmlMember(b, member{v.item, item}, indent)
		}
	case links:
		for _, l := range v {
			xmlObject(b, m.name, l, indent)
		}
	}
}

func xmlLeaf(b *bytes.Buffer, name, text, indent string) {
	if text == "" {
		b.WriteString(indent + "<" + name + "/>\n")
		return
	}
	b.WriteString(indent + "<" + name + ">")
	xmlText(b, text)
	b.WriteString("</" + name + ">\n")
}

func xmlText(b *bytes.Buffer, s string) {
	_ = xml.EscapeText(b, []byte(s)) // a bytes.Buffer takes everything
}
