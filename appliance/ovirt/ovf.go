package ovirt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// diskResource is the ResourceType of a disk's hardware item in an OVF.
const diskResource = "17"

// StripOVF takes disks, references to images and snapshots out of a VM's OVF and keeps everything else, so that the
// engine makes the VM from it with new IDs and without disks. With them it would attach disks of the same ID by itself,
// or leave them out without a word.
func StripOVF(ovf string) (string, error) {
	const op = "read OVF"
	var out bytes.Buffer
	s := stripper{in: xml.NewDecoder(strings.NewReader(ovf)), out: xml.NewEncoder(&out)}
	err := s.copy()
	if err == nil {
		err = s.out.Close() // complains about what is still open
	}
	if err == nil && !s.content {
		err = errors.New("it describes no VM")
	}
	if err != nil {
		return "", errs.New(op, "", errs.Invalid, err).WithNext("The VM's configuration is not one that the engine wrote.")
	}
	return out.String(), nil
}

// stripper copies a document token by token. Names are copied as they are written, prefix and all: resolving name spaces
// would have the encoder invent prefixes of its own.
type stripper struct {
	in      *xml.Decoder
	out     *xml.Encoder
	path    []string // names of the open elements; for a section, its type
	content bool     // a VM was seen
}

func (s *stripper) copy() error {
	for {
		t, err := s.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.StartElement:
			switch s.place(t) {
			case "References/File", "DiskSection_Type/Disk", "SnapshotsSection_Type/Snapshot":
				_, err = s.element(t)
			case "VirtualHardwareSection_Type/Item":
				err = s.item(t)
			default:
				s.path = append(s.path, kindOf(t))
				s.content = s.content || kindOf(t) == "VirtualSystem_Type"
				err = s.out.EncodeToken(t)
			}
		case xml.EndElement:
			if len(s.path) == 0 {
				return errors.New("an element ends that did not begin")
			}
			s.path = s.path[:len(s.path)-1]
			err = s.out.EncodeToken(t)
		default:
			err = s.out.EncodeToken(t)
		}
		if err != nil {
			return err
		}
	}
}

// next returns the next token with its names as they are written.
func (s *stripper) next() (xml.Token, error) {
	t, err := s.in.RawToken()
	if err != nil {
		return nil, err
	}
	switch t := xml.CopyToken(t).(type) {
	case xml.StartElement:
		t.Name = written(t.Name)
		for i := range t.Attr {
			t.Attr[i].Name = written(t.Attr[i].Name)
		}
		return t, nil
	case xml.EndElement:
		t.Name = written(t.Name)
		return t, nil
	default:
		return t, nil
	}
}

func written(n xml.Name) xml.Name {
	if n.Space == "" {
		return n
	}
	return xml.Name{Local: n.Space + ":" + n.Local}
}

// place is an element with the one around it.
func (s *stripper) place(t xml.StartElement) string {
	if len(s.path) == 0 {
		return t.Name.Local
	}
	return s.path[len(s.path)-1] + "/" + t.Name.Local
}

// kindOf returns the type of an element that has one, without its prefix, else its name.
func kindOf(t xml.StartElement) string {
	for _, a := range t.Attr {
		if a.Name.Local == "xsi:type" {
			_, kind, ok := strings.Cut(a.Value, ":")
			if !ok {
				kind = a.Value
			}
			return kind
		}
	}
	return t.Name.Local
}

// element reads an element to its end.
func (s *stripper) element(start xml.StartElement) ([]xml.Token, error) {
	all := []xml.Token{start}
	for depth := 1; depth > 0; {
		t, err := s.next()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		switch t.(type) {
		case xml.StartElement:
			depth++
		case xml.EndElement:
			depth--
		}
		all = append(all, t)
	}
	return all, nil
}

// item copies an item of the VM's hardware, unless it is a disk.
func (s *stripper) item(start xml.StartElement) error {
	all, err := s.element(start)
	if err != nil {
		return err
	}
	for i, t := range all[:len(all)-1] {
		e, ok := t.(xml.StartElement)
		text, isText := all[i+1].(xml.CharData)
		if ok && isText && e.Name.Local == "rasd:ResourceType" && strings.TrimSpace(string(text)) == diskResource {
			return nil
		}
	}
	for _, t := range all {
		if err := s.out.EncodeToken(t); err != nil {
			return err
		}
	}
	return nil
}
