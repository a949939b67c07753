package appliance

import "time"

// TaskState says how far a task is.
type TaskState string

// The states. A task that was cut short by the end of the node is failed; what it left was cleaned up or goes on, and
// its Problem says which.
const (
	TaskRunning   TaskState = "running"
	TaskSucceeded TaskState = "succeeded"
	TaskFailed    TaskState = "failed"
	TaskCanceled  TaskState = "canceled"
)

// Ended tells whether nothing changes any more.
func (s TaskState) Ended() bool { return s != TaskRunning }

// TaskKind says what a task does.
type TaskKind string

// The kinds of tasks.
const (
	TaskBackup  TaskKind = "backup"
	TaskInstant TaskKind = "instant-restore"
	TaskRestore TaskKind = "full-restore"
	TaskMigrate TaskKind = "migrate"
	TaskRelease TaskKind = "release"
	TaskKeep    TaskKind = "keep"
	TaskCollect TaskKind = "collection"
	TaskScrub   TaskKind = "scrub" // damage that was found; it has failed from the start
)

// Task is what the administrator sees of a backup, a restore, a session's step or a collection: one row for each thing asked for,
// kept for good.
type Task struct {
	ID       string         `json:"id"`
	Kind     TaskKind       `json:"kind"`
	Subject  string         `json:"subject" doc:"the VM's name; empty if it is about none"`
	Manager  string         `json:"manager,omitempty"`
	Session  string         `json:"session,omitempty" doc:"the instant restore it belongs to"`
	State    TaskState      `json:"state"`
	Started  time.Time      `json:"started"`
	Ended    *time.Time     `json:"ended,omitempty"`
	Steps    []Step         `json:"steps"`
	Progress *Progress      `json:"progress,omitempty" doc:"of the step that runs"`
	Notes    []string       `json:"notes,omitempty" doc:"what a person should know: reasons of automatic choices, warnings"`
	Result   map[string]any `json:"result,omitempty"`
	Problem  *Problem       `json:"problem,omitempty"`
}

// Step is a stage of a task.
type Step struct {
	Name    string     `json:"name"`
	Started time.Time  `json:"started"`
	Ended   *time.Time `json:"ended,omitempty"`
	Detail  string     `json:"detail,omitempty"`
	Failed  bool       `json:"failed,omitempty"`
}

// Progress says how much of what is needed was done, in bytes.
type Progress struct {
	DoneBytes   int64   `json:"done_bytes"`
	TotalBytes  int64   `json:"total_bytes"`
	ReadBytes   int64   `json:"read_bytes,omitempty"`
	NewBytes    int64   `json:"new_bytes,omitempty"`
	SecondsLeft float64 `json:"seconds_left,omitempty" doc:"at the pace so far; absent while nothing can be said"`
}

// Problem is an error as people and programs get it: what failed, why, what was cleaned up, what to do next.
type Problem struct {
	Code    string `json:"code" doc:"the kind of failure: not-found, busy, denied, …"`
	Title   string `json:"title" doc:"what failed"`
	Cause   string `json:"cause"`
	Cleaned string `json:"cleaned,omitempty" doc:"what was cleaned up, or what is left"`
	Remedy  string `json:"remedy,omitempty" doc:"what to do next"`
}
