package engine

import (
	"fmt"
	"html"
	"net/http"
	"strings"
)

// apiFault is an answer that is not what the client asked for. The texts are the engine's: a client that reads them must
// find here what it would find there.
type apiFault struct {
	status         int
	reason, detail string
	html           string // the body is this page instead of a fault
	plain          bool   // an empty body
}

func (f *apiFault) Error() string { return f.reason + " " + f.detail }

// failed is a command that was refused: the detail comes as a list of messages.
func failed(status int, format string, args ...any) *apiFault {
	return &apiFault{status: status, reason: "Operation Failed", detail: "[" + fmt.Sprintf(format, args...) + "]"}
}

func conflict(format string, args ...any) *apiFault {
	return failed(http.StatusConflict, format, args...)
}

func badRequest(format string, args ...any) *apiFault {
	return failed(http.StatusBadRequest, format, args...)
}

// locked is what the engine answers when its own lock is taken: no reason at all.
func locked() *apiFault { return failed(http.StatusBadRequest, "") }

// generalFailure is how the engine answers to a command that fell over its own validation.
func generalFailure() *apiFault {
	return failed(http.StatusInternalServerError, "General command validation failure.")
}

func incomplete(format string, args ...any) *apiFault {
	return &apiFault{status: http.StatusBadRequest, reason: "Incomplete parameters", detail: fmt.Sprintf(format, args...)}
}

func mandatory(path string) *apiFault {
	return &apiFault{status: http.StatusBadRequest, reason: "Input validation failed.",
		detail: "Parameter '" + path + "' is mandatory but was not provided."}
}

// notFound is the empty 404 of an entity that is asked for by its address.
func notFound() *apiFault { return &apiFault{status: http.StatusNotFound, plain: true} }

// noEntity is the 404 of an entity that a request names.
func noEntity(what string) *apiFault {
	return &apiFault{status: http.StatusNotFound, reason: "Operation Failed", detail: "Entity not found: " + what}
}

func syntaxError(host, service, method string) *apiFault {
	return &apiFault{status: http.StatusBadRequest, reason: "Request syntactically incorrect.",
		detail: fmt.Sprintf("For correct usage, see: https://%s/ovirt-engine/apidoc#services/%s/methods/%s", host, service, method)}
}

// page is a body as the servlet container writes it.
func page(status int, text string) *apiFault {
	return &apiFault{status: status, html: "<html><head><title>Error</title></head><body>" + text + "</body></html>"}
}

// crash is what the container shows for an exception that nobody caught.
func crash(text string) *apiFault {
	return &apiFault{status: http.StatusInternalServerError, html: "<html><head><title>ERROR</title></head><body><h1>Error processing request</h1><p>" +
		html.EscapeString(text) + "</p></body></html>"}
}

// lockedDisk says why work on a disk is refused now; prefix is "Cannot remove Virtual Disk".
func lockedDisk(prefix string, d *disk) *apiFault {
	switch {
	case d.hold == holdTransfer:
		return conflict("%s. Disk %s is being transferred.", prefix, d.alias)
	case d.hold == holdMove:
		return conflict("%s. Disk %s is being moved or copied.", prefix, d.alias)
	case d.hold == holdBackup:
		return conflict("%s: Disk is locked. Please try again later.", prefix)
	case d.hold == holdWork && strings.HasPrefix(prefix, "Cannot remove"):
		return conflict("%s. Related operation is currently in progress. Please try again later.", prefix)
	}
	return conflict("%s: The following disks are locked: %s. Please try again in a few minutes.", prefix, d.alias)
}

func (d *disk) busy() bool { return d.hold != "" || d.status == "locked" }

func asFault(err error) *apiFault {
	if f, ok := err.(*apiFault); ok {
		return f
	}
	return badRequest("%s", err)
}
