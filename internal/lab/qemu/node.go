package qemu

import (
	"encoding/json"
	"maps"
	"net/url"
	"strings"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// Node is a block node as qemu's -blockdev and blockdev-add take it: a tree of drivers. Children are Nodes.
type Node map[string]any

// FileNode returns the protocol node of a local file. Guests bypass the host's page cache, as oVirt has it.
func FileNode(path string) Node {
	return Node{"driver": "file", "filename": path, "cache": Node{"direct": true}}
}

// NFSNode returns the protocol node of a file that qemu's own NFS client reads. The address is one that Holdfast
// prints; the ports in it are left out, since the driver takes none and asks the server's portmapper.
func NFSNode(address string) (Node, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "nfs" || u.Hostname() == "" || strings.Trim(u.Path, "/") == "" {
		return nil, errs.Text("read the address", address, errs.Invalid, "it is not nfs://SERVER/PATH")
	}
	return Node{
		"driver": "nfs", "path": u.Path,
		"server": Node{"type": "inet", "host": u.Hostname()},
	}, nil
}

// FormatNode returns a named node that reads below as format: "raw" or "qcow2". Discards reach the file.
func FormatNode(name, format string, below Node) Node {
	return Node{"driver": format, "node-name": name, "file": below, "discard": "unmap"}
}

// Name returns the node's name, or "".
func (n Node) Name() string {
	s, _ := n["node-name"].(string)
	return s
}

// Format returns the node's driver.
func (n Node) Format() string {
	s, _ := n["driver"].(string)
	return s
}

// Image returns the node as a file name that qemu-img takes. Names and what only a guest needs are left out.
func (n Node) Image() string {
	return "json:" + n.bare().json()
}

func (n Node) bare() Node {
	b := maps.Clone(n)
	delete(b, "node-name")
	delete(b, "discard")
	for k, v := range b {
		if child, ok := v.(Node); ok {
			b[k] = child.bare()
		}
	}
	delete(b, "cache") // qemu-img has options of its own for that
	return b
}

// json never fails: a node is made of texts, numbers and nodes.
func (n Node) json() string {
	b, err := json.Marshal(n)
	if err != nil {
		panic("qemu: a block node that is no JSON: " + err.Error())
	}
	return string(b)
}
