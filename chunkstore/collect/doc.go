// Package collect gives back the space of what no restore point needs any more, while backups and reads go on.
//
// Terms. What points need is what can be reached from their roots: pages, and chunks at places. A pack has chunks that
// are reached and others that are spare. A collection chooses packs that are worth it, and gives back a pack with
// nothing but spare chunks as a whole, and of another one the blocks of spare chunks (a hole in the file).
//
// The danger is a backup that finds a spare chunk and builds on it, at the same time. These steps make it impossible,
// without stopping anybody and without a look at the clock:
//
//  1. Reach. List the packs, but for those that a running session may have written: until it commits, all they hold would
//     look spare. Then list the points, and walk their manifests.
//  2. Forget. Of each chosen pack, take the spare chunks out of the index, durably. From now on nobody finds them.
//  3. Drain. Wait for the sessions that run: one of them may have found a spare chunk before step 2.
//  4. Reach again. List the points once more and walk what is new. What these sessions have built on is not spare any
//     more, and goes back into the index. Nobody else can have built on a spare chunk: sessions that began after step 2
//     found none in the index, and what they copied from their parents is reached, because a parent is listed, or has
//     a lease and is listed for that.
//  5. Give back. Packs without a chunk that is reached are removed; of others, first a rest is written that names only
//     what is reached, and then holes are made. Last the index is told that it knows the pack completely.
//
// Invariants:
//
//  1. No place that was reached in either walk is given back, whatever directories say: where a place is reached that
//     the directory of its pack does not know, the pack is left alone.
//  2. A manifest or a record that cannot be read ends the collection before anything was given back: what is below it
//     cannot be known, and must not be lost because of a damage that can be mended.
//  3. At every moment the index knows only chunks that directories name, and directories name only chunks that are there.
//     So the collection can be cut short anywhere. What it had begun to give back is in the journal (Journal), and is
//     given back by the next one.
//
// What is reached is kept as one bit for each 4 KiB of a data pack, in which block a chunk begins: chunks that begin in
// the same block share their fate, since a block is the least that can be given back. That is 32 MB of memory for a
// store of 1 TB.
//
// The package does no I/O; the store gives it what it needs by small interfaces. Tested by a model in which sessions,
// readers and removals act between any two of its steps (here), and over a real store (chunkstore): in many goroutines,
// on a disk that fails and crashes at every step, and by killing the command.
package collect
