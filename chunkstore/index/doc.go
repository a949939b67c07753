// Package index answers one question of the chunk store: at which place does the chunk with this ID lie? It also
// remembers which packs it knows completely. It keeps both in badger.
//
// Everything in here is derived from the directories of the packs. The folder may be deleted at any time while nobody
// has it open; the only cost is the time to read the directories again. That is why Open never fails because of damage:
// it moves a folder that it does not trust aside, begins an empty one and says so (Fresh, Reason), and the store
// re-indexes the packs that carry no mark.
//
// Terms: an entry is an ID with its Place. A mark says that every entry of a pack is in the index. A transaction is
// what becomes durable at once; it has a number, the sequence, which only grows. The ring is a fixed set of keys in
// which every transaction leaves its number. The state file holds the store's UUID and the last sequence that was
// acknowledged. docs/format/index.md has the layout.
//
// Invariants:
//
//  1. What Put, Delete, MarkPack and UnmarkPack have done is durable when they return nil.
//  2. A place that Get returns was put for that ID, and no acknowledged later Put or Delete of the ID is forgotten:
//     every block read from disk is checked, and an index that misses a transaction is not used.
//  3. A mark is written by its own, later transaction than the entries it vouches for, so it is never there without
//     them.
//  4. After a failed write nothing more is written; the state of the folder is judged by the next Open.
//  5. A folder that another process holds is never touched.
//  6. Killing the process, at whatever moment, does not cost the index: the next Open goes on with it. An index that
//     was still being made is begun again in its place.
//
// What badger does not do for us, and where it is made up for. Its reads take a block whose checksum is wrong for one
// that does not hold the key, its compactions drop such a block, and its parser ends the process when a file is shorter
// than it thinks: so Open reads all tables and checks every block before badger sees them, and Verify does the same
// while the index is in use. Its log replay stops silently at the first damaged record, and a log that is gone is not
// noticed: so the ring is compared with the state file. It makes a log's file before it gives it a size, removes it in
// the opposite order, and refuses a folder in which a kill left such an empty file: so Open removes these. Its writes
// go through memory maps, where a full disk is a signal that kills the process: so writes are refused while little
// space is left. Its Sync is no barrier over logs that were rotated away: so every transaction is synced by itself and
// Sync is never called. Its own transaction numbers make each read wait for the sync of a concurrent write: so the
// numbers are ours ("managed mode") and reads take the newest version.
//
// Concurrency: all methods may be called at the same time. Writers queue for one lock, which costs nothing since badger
// syncs them one after the other anyway; readers do not wait for writers. Lock order: life, then writing.
//
// Tests: tables; a map as the model; kill -9 in the middle of Put, and before every system call that changes a file;
// every file of the folder flipped, cut and removed in turn; a second process; foreign and older folders.
package index
