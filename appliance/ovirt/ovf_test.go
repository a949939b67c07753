package ovirt

import (
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// ovfs are the recorded documents.
func ovfs(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.ovf.xml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	all := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(f)] = string(text)
	}
	return all
}

// leaves returns each text and attribute of a document with the path to it, in order. What is within an element that
// skip names, or within a hardware item of a disk, is left out.
func leaves(t *testing.T, text string, skip ...string) (all []string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	var path []string
	var item []string // of the item that is open: it counts only if it is no disk
	inItem := false
	put := func(s string) {
		if inItem {
			item = append(item, s)
		} else {
			all = append(all, s)
		}
	}
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			skipped := false
			for _, s := range skip {
				skipped = skipped || tok.Name.Local == s
			}
			if skipped {
				if err := d.Skip(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			path = append(path, tok.Name.Local)
			if tok.Name.Local == "Item" {
				inItem, item = true, nil
			}
			put(strings.Join(path, "/"))
			for _, a := range tok.Attr {
				put(strings.Join(path, "/") + " @" + a.Name.Space + " " + a.Name.Local + "=" + a.Value)
			}
		case xml.EndElement:
			if tok.Name.Local == "Item" {
				inItem = false
				if !strings.Contains(strings.Join(item, "\n"), "ResourceType =17") {
					all = append(all, item...)
				}
			}
			path = path[:len(path)-1]
		case xml.CharData:
			put(strings.Join(path, "/") + " =" + string(tok))
		}
	}
}

func TestStripOVF(t *testing.T) {
	for name, text := range ovfs(t) {
		got, err := StripOVF(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		// Everything but files, disks, snapshots and disk items is there, in order, with its name spaces.
		want := leaves(t, text, "File", "Disk", "Snapshot")
		have := leaves(t, got)
		if strings.Join(have, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s: what is left is not what should be:\n%s", name, got)
		}
		for _, gone := range []string{"<File", "<Disk ", "<Snapshot ", "ResourceType>17<", "StorageId", "diskId"} {
			if strings.Contains(got, gone) || !strings.Contains(text, gone) {
				t.Errorf("%s: %s is still there, or was not", name, gone)
			}
		}
		for _, kept := range []string{`xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/"`, "<References>", "SnapshotsSection_Type", "<rasd:ResourceType>15<", "<BiosType>", `ovf:version=`} {
			if !strings.Contains(got, kept) {
				t.Errorf("%s: %s is gone", name, kept)
			}
		}
		again, err := StripOVF(got)
		if err != nil || again != got {
			t.Errorf("%s: stripping twice changes it: %v", name, err)
		}
	}
}

func TestStripOVFKeepsOtherText(t *testing.T) {
	const text = `<?xml version="1.0"?><ovf:Envelope xmlns:ovf="o" xmlns:xsi="x"><!-- c --><References><File ovf:id="1"/></References>` +
		`<Content xsi:type="ovf:VirtualSystem_Type"><Name>a &amp; &lt;b&gt; é</Name><Disk>no disk section</Disk>` +
		`<Section xsi:type="ovf:VirtualHardwareSection_Type"><Item><rasd:ResourceType>170</rasd:ResourceType></Item>` +
		`<Item><Inner><rasd:ResourceType> 17 </rasd:ResourceType></Inner></Item></Section></Content></ovf:Envelope>`
	got, err := StripOVF(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<Name>a &amp; &lt;b&gt; é</Name>", "<Disk>no disk section</Disk>", ">170<", "<!-- c -->", `<Content xsi:type="ovf:VirtualSystem_Type">`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	if strings.Contains(got, "File") || strings.Contains(got, " 17 ") {
		t.Error(got)
	}
}

func TestStripOVFRefuses(t *testing.T) {
	whole := ovfs(t)["08-vm1.ovf.xml"]
	for _, text := range []string{"", "no xml", "<a/>", "<a></b>", "</a>", whole[:len(whole)-5], whole[:4000], whole + "<b>", `<Content xsi:type="ovf:VirtualSystem_Type">`} {
		if got, err := StripOVF(text); !errs.Is(err, errs.Invalid) || got != "" {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}

func FuzzStripOVF(f *testing.F) {
	for _, text := range ovfs(f) {
		f.Add(text)
	}
	f.Add("<a><b></a>")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := StripOVF(text)
		if err != nil {
			return
		}
		if again, err := StripOVF(got); err != nil || again != got {
			t.Errorf("not the same again: %v", err)
		}
	})
}
