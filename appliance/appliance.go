// Package appliance holds the product's own words, those that the store, the tree and the servers below must not know:
// what a restore point is labelled with, and how points and disks are named towards people. It holds types and
// constants only and imports nothing of ours.
package appliance

import (
	"fmt"
	"time"
)

// The labels that a restore point carries in the store. They never change.
const (
	LabelVM       = "vm"       // the machine's name
	LabelStrategy = "strategy" // how it was read: StrategyImport, StrategyKeep, …
	LabelSource   = "source"   // what was read, for people
	LabelParent   = "parent"   // the point it was compared with
)

// StrategyImport is the label of a point made from an image file.
const StrategyImport = "import"

// StrategyKeep is the label of a point made of another one and what was written over it.
const StrategyKeep = "keep"

// timeLayout is how a point's time is written in paths: no colons, so that it is a file name everywhere.
const timeLayout = "2006-01-02T15-04-05Z"

// PathTime writes a point's time as it stands in paths, in UTC.
func PathTime(t time.Time) string { return t.UTC().Format(timeLayout) }

// DiskFileName is the name under which a disk is published.
func DiskFileName(number int, format string) string { return fmt.Sprintf("disk%d.%s", number, format) }

// More labels and strategies, of points that come from an engine.
const (
	LabelManager     = "manager"     // the manager's name
	LabelVMID        = "vm_id"       // the VM's ID on its engine
	LabelRun         = "run"         // the run that made the point
	LabelCheckpoint  = "checkpoint"  // the engine's checkpoint that stands for the point's moment
	LabelConsistency = "consistency" // ConsistencyCrash or ConsistencyFrozen
	LabelMode        = "mode"        // "full" or "incremental"
	LabelSnapshot    = "snapshot"    // the engine's snapshot that was kept for the next backup
	LabelModeReason  = "mode_reason" // why it is full, for people

	LabelStrategyReason = "strategy_reason" // why the node chose the strategy, for people

	StrategyCBT      = "cbt"
	StrategyTransfer = "transfer"

	ConsistencyCrash  = "crash"
	ConsistencyFrozen = "frozen"
)
