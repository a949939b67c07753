package ovirt

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/xml"
	"fmt"
	"regexp"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// DataCenters lists the data centers.
func (c *Client) DataCenters(ctx context.Context) ([]DataCenter, error) {
	return readMany(ctx, c, get("list data centers", "", "/datacenters"), "data_centers", ovirtsdk.XMLDataCenterReadMany, dataCenterWord)
}

// Clusters lists the clusters.
func (c *Client) Clusters(ctx context.Context) ([]Cluster, error) {
	return readMany(ctx, c, get("list clusters", "", "/clusters"), "clusters", ovirtsdk.XMLClusterReadMany, clusterWord)
}

// Hosts lists the hosts.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	return readMany(ctx, c, get("list hosts", "", "/hosts"), "hosts", ovirtsdk.XMLHostReadMany, hostWord)
}

// Jobs lists the tasks that requests with a correlation ID began. Those that ended are forgotten by the engine after ten
// minutes (failed: an hour); one that is not known gives an empty list.
func (c *Client) Jobs(ctx context.Context, id string) ([]Job, error) {
	id = correlation(id)
	if id == "" {
		return nil, errs.Text("list jobs", id, errs.Invalid, "a correlation ID is needed")
	}
	return readMany(ctx, c, get("list jobs", id, "/jobs", "search", "correlation_id="+id), "jobs", ovirtsdk.XMLJobReadMany, jobWord)
}

// searchable is what can be put into the engine's search language as it is. An unknown word there gives an empty list
// instead of an error, so that anything else is searched for by us.
var searchable = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// byName returns a search for a name, or nothing for names that the search language might misread.
func byName(name string) (key, value string) {
	switch name {
	case "and", "or", "AND", "OR", "page", "sortby", "asc", "desc":
		return "", ""
	}
	if !searchable.MatchString(name) {
		return "", ""
	}
	return "search", "name=" + name
}

const (
	origin     = "Holdfast" // with an event's number it is unique for ever
	maxText    = 10000      // bytes of an event that the engine keeps
	eventTries = 4
)

type xmlEvent struct {
	XMLName     xml.Name `xml:"event"`
	Description string   `xml:"description"`
	Severity    string   `xml:"severity"`
	Origin      string   `xml:"origin"`
	CustomID    uint32   `xml:"custom_id"`
	VM          *xmlRef  `xml:"vm,omitempty"`
}

// xmlRef is a reference to an entity by its ID.
type xmlRef struct {
	ID ID `xml:"id,attr"`
}

// ref returns a reference, or nil for no ID.
func ref(id ID) *xmlRef {
	if id == "" {
		return nil
	}
	return &xmlRef{id}
}

// PostEvent writes into the engine's event log. Its number is ours, so that an event whose answer was lost can be sent
// again and appears once.
func (c *Client) PostEvent(ctx context.Context, e Event) error {
	text := e.Text
	if len(text) > maxText {
		text = text[:maxText]
	}
	x := xmlEvent{Description: text, Severity: string(e.Severity), Origin: origin, CustomID: randomNumber(), VM: ref(e.VM)}
	if x.Severity == "" {
		x.Severity = string(EventNormal)
	}
	pause, lost := c.pause, false
	for n := 1; ; n++ {
		_, err := c.do(ctx, post("post event", "", "/events", x))
		switch {
		case err == nil || errs.Is(err, errs.Exists) && lost:
			return nil
		case n >= eventTries:
			return err
		case errs.Is(err, errs.Exists):
			x.CustomID = randomNumber()
		case errs.Is(err, errs.Transient):
			lost = true
			if serr := sleep(ctx, pause); serr != nil {
				return err
			}
			pause *= 2
		default:
			return err
		}
	}
}

// randomNumber returns a number from 1 to 2^31 - 1, which is what the engine takes.
func randomNumber() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint32(b[:])&0x7fffffff | 1
}

// checkID keeps IDs from becoming paths.
func checkID(op string, ids ...ID) error {
	for _, id := range ids {
		if !searchable.MatchString(string(id)) || id == "." || id == ".." {
			return errs.New(op, string(id), errs.Invalid, fmt.Errorf("%q is not the ID of anything", id))
		}
	}
	return nil
}
