// Package api is the node towards programs: what it can be asked for (Service), and in which words. The REST server and its
// client, which are to come, know a node by this interface alone; the command line and the web page know the server.
//
// The types' JSON is a promise to scripts.
package api
