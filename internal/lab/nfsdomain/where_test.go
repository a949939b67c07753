package nfsdomain

import (
	"strings"
	"testing"
)

func TestExports(t *testing.T) {
	for _, c := range []struct {
		export, options string
		want            where
		url, qemu       string // what libnfs is told, what qemu is
	}{
		{"10.0.0.5:/ir/1", "", where{host: "10.0.0.5", path: "/ir/1"}, "", "nfs://10.0.0.5/ir/1/x"},
		{"node.example:/ir/1", "nfsvers=3,timeo=100,retrans=3,port=2049,mountport=20048,proto=tcp,nolock",
			where{"node.example", "/ir/1", 2049, 20048},
			"nfs://node.example/ir/1?mountport=20048&nfsport=2049", "nfs://node.example/ir/1/x"},
		{"[fd00::5]:/ir/1", "port=5", where{host: "fd00::5", path: "/ir/1", nfsPort: 5},
			"nfs://[fd00::5]/ir/1?nfsport=5", "nfs://[fd00::5]/ir/1/x"},
	} {
		w, err := parseWhere(c.export, c.options)
		if err != nil || w != c.want {
			t.Errorf("%s with %s: %+v, %v", c.export, c.options, w, err)
		}
		if w.String() != c.export {
			t.Errorf("%s is printed as %s", c.export, w)
		}
		if w.url() != c.url || w.fileURL("x") != c.qemu {
			t.Errorf("%s: libnfs is told %q, qemu %q", c.export, w.url(), w.fileURL("x"))
		}
	}
}

func TestExportsRefused(t *testing.T) {
	for _, c := range []struct{ export, options, words string }{
		{"10.0.0.5", "", "not address:/path"},
		{":/ir", "", "not address:/path"},
		{"10.0.0.5:ir", "", "not address:/path"},
		{"10.0.0.5:/ir x", "", "without blanks"},
		{"fd00::5:/ir", "", "belongs into brackets"},
		{"[10.0.0.x]:/ir", "", "no IPv6 address"},
		{"10.0.0.5:/ir/", "", "where it is /ir"},
		{"10.0.0.5:/ir/../x", "", "where it is /x"},
		{"10.0.0.5:/ir", "port=0", "names no port"},
		{"10.0.0.5:/ir", "port=65536", "names no port"},
		{"10.0.0.5:/ir", "vers=4.1", "Protocol not supported"},
		{"10.0.0.5:/ir", "proto=udp", "another transport"},
	} {
		if w, err := parseWhere(c.export, c.options); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s with %s: %+v, %v; want %q", c.export, c.options, w, err, c.words)
		}
	}
}

func TestOnlyCustomaryPortsAreQemus(t *testing.T) {
	for port, want := range map[int]bool{0: true, 2049: true, 40000: false} {
		if got := (where{nfsPort: port}).qemu(); got != want {
			t.Errorf("port %d: %t", port, got)
		}
	}
}
