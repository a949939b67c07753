// Package chunkstore keeps disks: content-addressed, deduplicated, compressed, encrypted, every version of a disk at
// once a full image. It knows no virtual machine, no oVirt and no network.
//
// Terms. A chunk is a piece of a disk, named by its Digest (chunkstore/chunk) and stored once (chunkstore/pack). A
// manifest (chunkstore/manifest) lists the chunks of one disk at one time. A Point is what is kept of one machine at
// one time: labels and a configuration the store gives no meaning to, and one manifest for each disk. A Reader lists
// and reads; a Store, of which one process holds one at a time, also writes, through Sessions. An Image is a disk of a
// point read as a file.
//
// Invariants:
//
//  1. A point's record appears only when everything it refers to is durable: packs sealed and indexed; then the
//     manifest's pages; then the record. That is the only commit point. What a killed session left is garbage, or is
//     found and used by the next one; it is never part of a point.
//  2. Nothing that is referred to is changed. Packs are append-once, records are never rewritten.
//  3. The index (chunkstore/index) is derived. Losing it costs a rebuild from the packs' directories; reads never need
//     it, because manifests say where their chunks lie.
//  4. Zeros are neither read, where the source knows them, nor stored.
//  5. Every byte that is read was authenticated on the way (AES-256-GCM, with the chunk's name in the additional data).
//  6. What was found damaged is written down (quarantine.go) before anybody relies on it. No new point is built on it; the
//     next backup that brings its content heals it, for all points at once, because reads that fail go by that record.
//  7. Space is given back (chunkstore/collect) only of what no point needs, nobody reads (leases.go) and no session that
//     runs has found.
//
// On disk a store is a folder: superblock, keys/, data/ and meta/ (packs), points/, quarantine/, index/, lock.
// docs/format/store.md draws all of it.
//
// Concurrency: a Reader, a Store and an Image may be used by any number of goroutines, a Session by one. Lock order:
// collection.running, then Store.retain, then damageLog.changing, under which I/O is done. Session.mu, Store.mu, leases.mu,
// packCache.mu, damageLog.mu and those of wanted and healing are leaves; none is held while another is taken or while I/O is done.
//
// Tests: a model of points over seeded histories; crash clones at every sync and the n-th operation failing for every
// n (internal/disk); kills of a real process at chosen places; damage to every kind of file; a crowd of backups, removals
// and readers around collections.
package chunkstore
