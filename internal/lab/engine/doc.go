// Package engine simulates an oVirt engine's REST API: logins, entities, states, delays and faults as they were recorded
// from a real engine. What needs bytes it leaves to a Host. It is for the lab and for tests, and is no oracle: what only
// it has shown is labelled so.
package engine
