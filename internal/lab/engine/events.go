package engine

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Codes of events, as the engine numbers them.
const (
	evVMStarted          = 32
	evVMDown             = 61
	evRunFailed          = 54
	evSnapshotBegun      = 45
	evSnapshotDone       = 68
	evSnapshotFailed     = 69
	evSnapshotNotRemoved = 357
	evTagAdded           = 432
	evBackupBegun        = 10790
	evFullBackupNeeded   = 10791
	evBackupFailed       = 10792
	evBackupSucceeded    = 10793
	evBackupFinalized    = 10796
	evBackupUnmonitored  = 10814
	evTransferBegun      = 1031
	evTransferFinished   = 1032
	evTransferCancelled  = 1033
	evTransferFailed     = 1034
	evMoveBegun          = 2008
	evMoved              = 2010
	evMoveFailed         = 2011
	evDomainAttached     = 962
	evDomainAttachFailed = 963
)

// event adds to the log. The caller holds the mutex, or is New.
func (e *Engine) event(code int, severity string, of func(*event), format string, args ...any) {
	ev := &event{index: len(e.state.events) + 1, code: code, customID: -1, severity: severity, origin: "oVirt",
		description: fmt.Sprintf(format, args...), time: now()}
	if of != nil {
		of(ev)
	}
	e.state.events = append(e.state.events, ev)
	e.log.Debug("event", "code", code, "text", ev.description)
}

// about ties an event to a request and a VM.
func about(correlation string, v *vm) func(*event) {
	return func(ev *event) {
		ev.correlation, ev.userName = correlation, "admin@internal-authz"
		if v != nil {
			ev.vm, ev.vmName = v.id, v.name
		}
	}
}

func (e *Engine) showEvent(ev *event) *object {
	id := strconv.Itoa(ev.index)
	o := newObject("event").at(apiPath+"events/"+id, id).set("code", strconv.Itoa(ev.code)).setIf("correlation_id", ev.correlation)
	o.set("custom_id", strconv.Itoa(ev.customID))
	flood := "0"
	if ev.origin != "oVirt" {
		flood = "30"
	}
	o.set("flood_rate", flood).set("index", id).set("origin", ev.origin).set("severity", ev.severity).set("time", ev.time)
	if ev.vm != "" {
		o.set("cluster", named("clusters", e.state.cluster, "Default"))
		if ev.origin == "oVirt" {
			o.set("data_center", named("datacenters", e.state.center, "Default"))
		}
		if v, ok := e.state.vms.get(ev.vm); ok && v.running() {
			o.set("host", named("hosts", e.state.host, e.opts.HostName))
		}
		o.set("template", named("templates", nilID, "Blank"))
	}
	if ev.domain != "" {
		o.set("storage_domain", ref("storagedomains", ev.domain))
	}
	if ev.userName != "" {
		o.set("user", named("users", adminID, ev.userName))
	}
	if ev.vm != "" {
		o.set("vm", named("vms", ev.vm, ev.vmName))
	}
	return o.set("description", ev.description)
}

func named(collection, id, name string) *object { return ref(collection, id).setIf("name", name) }

func (c *call) listEvents() (*reply, error) {
	from := 0
	if n, err := strconv.Atoi(c.param("from")); err == nil {
		from = n
	}
	var rows []row
	for _, ev := range slices.Backward(c.e.state.events) {
		if ev.index <= from {
			break
		}
		rows = append(rows, row{map[string][]string{
			"correlation_id": {ev.correlation}, "type": {strconv.Itoa(ev.code)}, "origin": {ev.origin},
			"message": {ev.description}, "severity": {ev.severity}, "time": {number(ev.time.UnixMilli())},
			"event_vm": {ev.vmName}, "custom_event_id": {strconv.Itoa(ev.customID)},
		}, func() *object { return c.e.showEvent(ev) }})
	}
	return c.collection("events", "event", rows)
}

func (c *call) getEvent() (*reply, error) {
	n, err := strconv.Atoi(c.vars["event"])
	if err != nil || n < 1 || n > len(c.e.state.events) {
		return nil, notFound()
	}
	return ok(c.e.showEvent(c.e.state.events[n-1]))
}

// severities and the codes under which a stranger's events are filed.
var severities = map[string]int{"normal": 9801, "warning": 9802, "error": 9803, "alert": 9804}

// longestEvent is where a message is cut.
const longestEvent = 10000

func (c *call) addEvent() (*reply, error) {
	for _, need := range []string{"custom_id", "description", "origin", "severity"} {
		if c.body.value(need) == "" {
			return nil, mandatory("event." + need)
		}
	}
	origin, custom := c.body.value("origin"), int(c.body.int64("custom_id"))
	if strings.EqualFold(origin, "oVirt") {
		return nil, badRequest("Cannot add External Event. Illegal Origin for External Event : %s", origin)
	}
	for _, ev := range c.e.state.events {
		if ev.origin == origin && ev.customID == custom {
			return nil, badRequest("=Cannot add External Event. External Event with this custom id already exists.")
		}
	}
	var v *vm
	if id, name := c.body.idOrName("vm"); id != "" || name != "" {
		if v = c.e.findVM(id, name); v == nil {
			return nil, noEntity(id + name)
		}
	}
	text := c.body.value("description")
	if len(text) > longestEvent {
		text = text[:longestEvent]
	}
	severity := c.body.value("severity")
	c.e.event(severities[severity], severity, func(ev *event) {
		ev.origin, ev.customID, ev.correlation = origin, custom, c.body.value("correlation_id")
		if v != nil {
			ev.vm, ev.vmName = v.id, v.name
		}
	}, "%s", text)
	return created(c.e.showEvent(c.e.state.events[len(c.e.state.events)-1]))
}

func (e *Engine) findVM(id, name string) *vm {
	if id != "" {
		v, _ := e.state.vms.get(id)
		return v
	}
	return e.state.vmByName(name)
}
