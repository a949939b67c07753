// Package node puts Holdfast together: it is the only package that sees the store, the tree and the servers at once, and
// turns them into what a person asks for: import, export, verify, serve, mount.
//
// It decides nothing about formats and speaks to nobody: the command line (appliance/cli) and the daemon call it, and
// print. Functions take a context and return when it ends; those that serve take its end as a clean end. What a person
// should know while something runs comes through the Note and Progress functions of the options.
//
// Tested through the command line against real disks, and here for what has rules of its own (names of points).
package node
