package engine

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// element is one element of a request, whichever way it was spelled.
type element struct {
	name, id, text string
	children       []*element
}

// child returns the element at a dotted path, nil if it is not there. A nil element has no children.
func (x *element) child(path string) *element {
	if x == nil {
		return nil
	}
	first, rest, nested := strings.Cut(path, ".")
	for _, c := range x.children {
		if c.name == first {
			if nested {
				return c.child(rest)
			}
			return c
		}
	}
	return nil
}

// value returns the text at a dotted path, "" if there is none.
func (x *element) value(path string) string {
	if c := x.child(path); c != nil {
		return c.text
	}
	return ""
}

// valueOr returns the text at a path, or what stands for a missing one.
func (x *element) valueOr(path, missing string) string {
	if v := x.value(path); v != "" {
		return v
	}
	return missing
}

func (x *element) isTrue(path string) bool { return x.value(path) == "true" }

func (x *element) int64(path string) int64 {
	n, _ := strconv.ParseInt(x.value(path), 10, 64) // check has refused what is no number
	return n
}

// all returns the children of the element at path that have a name.
func (x *element) all(path, name string) []*element {
	var found []*element
	if c := x.child(path); c != nil {
		for _, e := range c.children {
			if e.name == name {
				found = append(found, e)
			}
		}
	}
	return found
}

// idOrName returns how a request names another object.
func (x *element) idOrName(path string) (id, name string) {
	c := x.child(path)
	if c == nil {
		return "", ""
	}
	return c.id, c.value("name")
}

// What can be wrong with a body. The engine answers each in its own way.
var (
	errSyntax    = errors.New("syntactically incorrect")
	errWrongRoot = errors.New("argument type mismatch")
)

// unknownField is what the engine's JSON reader says about a member it does not know.
type unknownField struct{ field, class string }

func (u *unknownField) Error() string {
	return fmt.Sprintf("Unrecognized field &quot;%s&quot; (class org.ovirt.engine.api.model.%s), not marked as ignorable", u.field, u.class)
}

// badEnum is a value that is none of an enumerated type's.
type badEnum struct{ value, kind, valid string }

func (b *badEnum) Error() string {
	return fmt.Sprintf("The string '%s' isn't a valid value for the '%s' enumerated type. Valid values are: %s.", b.value, b.kind, b.valid)
}

// decodeXML reads a request and holds it to the model: root is the element the method wants.
func decodeXML(body []byte, root string) (*element, error) {
	dec := xml.NewDecoder(bytes.NewReader(body))
	for {
		token, err := dec.Token()
		if err != nil {
			return nil, errSyntax
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		x, err := xmlElement(dec, start)
		if err != nil {
			return nil, errSyntax
		}
		if x.name != root {
			return nil, errWrongRoot
		}
		return x, check(x, false)
	}
}

func xmlElement(dec *xml.Decoder, start xml.StartElement) (*element, error) {
	x := &element{name: start.Name.Local}
	for _, a := range start.Attr {
		if a.Name.Local == "id" {
			x.id = a.Value
		}
	}
	var text strings.Builder
	for {
		token, err := dec.Token()
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			c, err := xmlElement(dec, t)
			if err != nil {
				return nil, err
			}
			x.children = append(x.children, c)
		case xml.CharData:
			text.Write(t)
		case xml.EndElement:
			x.text = text.String()
			if len(x.children) > 0 {
				x.text = ""
			} else if x.name != "data" { // an OVF is kept as it is
				x.text = strings.TrimSpace(x.text)
			}
			return x, nil
		}
	}
}

func decodeJSON(body []byte, root string) (*element, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		return nil, errSyntax
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errSyntax
	}
	x := jsonElement(root, v)
	return x, check(x, true)
}

func jsonElement(name string, v any) *element {
	x := &element{name: name}
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			switch k {
			case "id":
				x.id = fmt.Sprint(inner)
			case "href", "rel":
			default:
				if items, ok := inner.([]any); ok {
					for _, item := range items {
						x.children = append(x.children, jsonElement(k, item))
					}
					continue
				}
				x.children = append(x.children, jsonElement(k, inner))
			}
		}
	case nil:
	default:
		x.text = fmt.Sprint(v)
	}
	return x
}

// check holds a request to the model. Elements that the table does not know are let through unseen: it is a subset.
func check(x *element, inJSON bool) error {
	known, listed := model[x.name]
	if len(x.children) == 0 {
		known, listed = nil, false
	}
	for _, c := range x.children {
		if !inJSON && (c.name == "id" || c.name == "href") {
			return errSyntax // both are attributes
		}
		if listed && !known[c.name] {
			if inJSON {
				return &unknownField{field: c.name, class: modelClass(x.name)}
			}
			return errSyntax
		}
		if numbers[c.name] && len(c.children) == 0 {
			if _, err := strconv.ParseInt(c.text, 10, 64); err != nil {
				return errSyntax
			}
		}
		if e, ok := enums[x.name+"."+c.name]; ok && !strings.Contains(e.valid, "'"+c.text+"'") {
			return &badEnum{value: c.text, kind: e.kind, valid: e.valid}
		}
		if err := check(c, inJSON); err != nil {
			return err
		}
	}
	return nil
}

// modelClass is the name of an element's class in the engine's model: image_transfer → ImageTransfer.
func modelClass(name string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(name, "_") {
		b.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return b.String()
}
