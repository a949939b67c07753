package engine

import (
	"context"
	"strconv"
	"strings"
	"time"
)

// Succeeded jobs are forgotten after ten minutes, failed ones after an hour.
const (
	keepFinishedJob = 10 * time.Minute
	keepFailedJob   = time.Hour
)

// newJob starts a job of the request's.
func (c *call) newJob(description string) *job {
	j := &job{id: newID(), description: description, status: "started", correlation: c.correlation, started: now(), updated: now()}
	c.e.state.jobs.put(j.id, j)
	return j
}

// endJob closes a job and lets it be forgotten in time.
func (e *Engine) endJob(j *job, err error) {
	if j == nil || j.status != "started" {
		return
	}
	keep := keepFinishedJob
	j.status, j.ended, j.updated = "finished", now(), now()
	if err != nil {
		j.status, keep = "failed", keepFailedJob
	}
	e.forget(keep, func() { e.state.jobs.remove(j.id) })
}

// forget runs f after a time that is not scaled.
func (e *Engine) forget(keep time.Duration, f func()) {
	e.background(func(ctx context.Context) {
		t := time.NewTimer(keep)
		defer t.Stop()
		select {
		case <-t.C:
			e.locked(f)
		case <-ctx.Done():
		}
	})
}

func (e *Engine) jobRef(j *job) member { return member{"job", ref("jobs", j.id)} }

func showJob(j *job) *object {
	o := newObject("job").at(apiPath+"jobs/"+j.id, j.id)
	o.set("auto_cleared", "true")
	if !j.ended.IsZero() {
		o.set("end_time", j.ended)
	}
	o.set("external", "false").set("last_updated", j.updated).set("start_time", j.started).set("status", j.status)
	return o.set("owner", ref("users", adminID)).actions("clear", "end").set("description", j.description).link("steps")
}

// steps are the three that every command has; what the real engine shows below them is its own business.
func steps(j *job) *list {
	all := &list{item: "step"}
	for i, kind := range []string{"validating", "executing", "finalizing"} {
		status := j.status
		if i == 0 && status == "started" {
			status = "finished"
		}
		if i == 2 && j.status == "started" {
			break
		}
		id := j.id[:len(j.id)-1] + strconv.Itoa(i) // stable, and as unique as the job
		o := newObject("step").at(apiPath+"jobs/"+j.id+"/steps/"+id, id)
		if status != "started" {
			o.set("end_time", j.updated)
		}
		o.set("external", "false").set("number", strconv.Itoa(i)).set("start_time", j.started).set("status", status)
		o.set("type", kind).set("job", ref("jobs", j.id)).actions("end")
		all.items = append(all.items, o.set("description", strings.ToUpper(kind[:1])+kind[1:]).link("statistics"))
	}
	return all
}

func (c *call) listJobs() (*reply, error) {
	all := c.e.state.jobs.all()
	rows := make([]row, 0, len(all))
	for i := len(all) - 1; i >= 0; i-- { // newest first
		j := all[i]
		rows = append(rows, row{map[string][]string{
			"correlation_id": {j.correlation}, "status": {j.status}, "description": {j.description},
		}, func() *object { return showJob(j) }})
	}
	return c.collection("jobs", "job", rows)
}

func (c *call) getJob() (*reply, error) {
	j, found := c.e.state.jobs.get(c.vars["job"])
	if !found {
		return nil, notFound()
	}
	return ok(showJob(j))
}

func (c *call) listSteps() (*reply, error) {
	j, found := c.e.state.jobs.get(c.vars["job"])
	if !found {
		return ok(newObject("steps"))
	}
	return ok(newObject("steps").set("", steps(j)))
}
