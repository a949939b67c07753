// Package engine simulates an oVirt engine's REST API: logins, entities, states, delays and faults as they were recorded
// from a real engine 4.5. What needs bytes it leaves to a Host. It is for the lab and for tests, and is no oracle: what
// only it has shown is labelled so.
//
// An Engine keeps its whole state in memory under one mutex. A request is answered under that mutex; whatever asks the
// Host lets go of it meanwhile, and has marked what it works on before (a disk's hold, a VM's status), so that others are
// refused as the real engine refuses them. Work that outlasts a request runs in goroutines that Close waits for. Times
// are the recorded ones, multiplied by Options.Scale; they come from the time package, so testing/synctest can own them.
//
// What is recorded (docs/lab.md says from where): the texts and codes of faults, the members of every entity that a test
// in this package replays, the phases and their order. What is our reading of the engine's source and never recorded is
// marked "unrecorded" where it is written.
//
// Layout: server.go takes requests in and sends answers out, by the table in routes.go; decode.go and tree.go spell XML
// and JSON, model.go and constants.go say what an entity may and does contain; search.go and follow.go are the two
// query languages; sso.go and ca.go are the door; the rest is one file for each kind of entity, and inject.go makes
// things go wrong. More files and names than a package of ours should have, because the engine's API is one state: a disk
// is held by a backup, which hangs on a VM, whose domain is being moved.
package engine
