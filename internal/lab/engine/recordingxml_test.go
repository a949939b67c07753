package engine

import (
	"encoding/xml"
	"strings"
)

// anyXML is any element, with its attributes.
type anyXML struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Text     string     `xml:",chardata"`
	Children []anyXML   `xml:",any"`
}

func parseAny(body string) (anyXML, error) {
	var x anyXML
	err := xml.Unmarshal([]byte(body), &x)
	return x, err
}

func flattenXML(path string, x anyXML, put func(string, string)) {
	path = strings.TrimPrefix(path+"."+x.XMLName.Local, ".")
	for _, a := range x.Attrs {
		put(path+"@"+a.Name.Local, a.Value)
	}
	if len(x.Children) == 0 {
		put(path, strings.TrimSpace(x.Text))
	}
	for _, c := range x.Children {
		flattenXML(path, c, put)
	}
}
