// Package api is the node towards programs: what it can be asked for (Service), and in which words. New serves a Service
// over HTTP, Serve offers that on a unix socket and over TLS, and appliance/api/client is a Service again, at the other
// end of the wire. The command line knows a node by Service alone.
//
// Terms. A resource is a manager, a VM, a point, a session or a task. What takes long is a task: its request is answered
// at once with 202, the task and its Location, and GET …/events shows how it goes on as server-sent events. A refusal is
// application/problem+json (RFC 9457), with the kind of failure as its code and what to do next as its remedy.
//
// Invariants:
//
//  1. Every answer that is not a success is a problem, whoever gives it: the service, the check of what was sent, the
//     search for the route, the doorkeeper, or a handler that panicked, which ends its request and nothing else.
//  2. An error survives the wire: the client makes of a problem an error of the same kind, text and next step.
//  3. What was sent to us is never sent back and never logged: it may hold a password.
//  4. Nobody gets as far as a handler whom the doorkeeper of the listener did not let in: on the socket, root, our own
//     user and the socket's group; over TLS, whoever shows the token.
//
// The types' JSON, the paths and the codes are promises to scripts: docs/api/openapi.json is compared with the code. The
// whole surface is docs/api.md.
//
// Everything may be called concurrently. Tested through real sockets and real TLS with a service made for the tests.
package api
