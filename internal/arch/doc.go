// Package arch holds the source tree to its shape: who may import whom, where a foreign module may appear, and the few
// habits that are worth a test. It has no code but tests; a rule that fails prints its reason.
//
// Terms: a rule is a check over the parsed tree, with the reason it exists and a few small trees that break it and
// must be found. An exception is a place where a rule does not hold, with the reason; an exception that is no longer
// needed fails too.
//
// Invariants:
//
//  1. The tests read the sources themselves. The go command remembers test results by the files that a test opened, so
//     asking a child process for the imports would go on answering "ok" after a forbidden import was added.
//  2. Every rule is seen to fail: its broken examples run before the tree is believed.
//  3. All files count, whatever their build tags, but those below testdata and in folders whose names begin with a dot
//     or an underscore.
//
// To add a rule, add it to the list in rules_test.go with a reason a newcomer can act on, and an example that breaks it.
package arch
