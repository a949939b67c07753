package debian

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestSourcesAreDebianTwelveOnly(t *testing.T) {
	for in, want := range map[string]string{
		"Debian|Packages|http://m.example/debian/|bookworm|main|":                               "deb http://m.example/debian/ bookworm main",
		"Debian|Packages|http://m.example/debian/|bookworm-security|main|/usr/share/keys/k.gpg": "deb [signed-by=/usr/share/keys/k.gpg] http://m.example/debian/ bookworm-security main",
		"Debian|Packages|http://m.example/debian/|bookworm|main|$(SIGNED_BY)":                   "deb http://m.example/debian/ bookworm main",
		"Debian|Translations|http://m.example/debian/|bookworm|main|":                           "",
		"Other|Packages|http://m.example/x/|bookworm|main|":                                     "",
		"Debian|Packages|http://m.example/debian/|trixie|main|":                                 "",
		"": "",
	} {
		got, ok := aptLine(in)
		if got != want || ok != (want != "") {
			t.Errorf("%q gives %q, %v; want %q", in, got, ok, want)
		}
	}
}

func TestMasterBootRecordHoldsCodeAndOnePartition(t *testing.T) {
	code := bytes.Repeat([]byte{0x90}, sector)
	mbr := masterBootRecord(code, 2048)
	if !bytes.Equal(mbr[:tableStart], code[:tableStart]) || mbr[510] != 0x55 || mbr[511] != 0xaa {
		t.Error("GRUB's code or the signature is not where a BIOS looks")
	}
	start, length := binary.LittleEndian.Uint32(mbr[454:]), binary.LittleEndian.Uint32(mbr[458:])
	if start != 2048 || length != 2047*2048 || mbr[446] != 0x80 || mbr[450] != typeLinux {
		t.Errorf("partition at %d, %d sectors, flag %#x, type %#x", start, length, mbr[446], mbr[450])
	}
	if !bytes.Equal(mbr[462:510], make([]byte, 48)) {
		t.Error("there is more than one partition")
	}
}

func TestRecipeHashIsStable(t *testing.T) {
	web := &Server{Name: "web", Packages: []string{"nginx"}}
	for _, server := range []*Server{nil, web} {
		first := recipeHash(server)
		for range 10 {
			if recipeHash(server) != first {
				t.Fatal("the hash depends on the order of a map")
			}
		}
	}
	known := map[string]*Server{}
	for _, server := range []*Server{nil, web, {Name: "mail", Packages: web.Packages}, {Name: "web", Packages: []string{"apache2"}}} {
		h := recipeHash(server)
		if same, taken := known[h]; taken {
			t.Errorf("%v and %v have one hash", server, same)
		}
		known[h] = server
	}
}
