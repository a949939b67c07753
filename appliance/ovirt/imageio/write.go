package imageio

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast/internal/errs"
)

// WriteAt writes all of p. It is durable only after Flush. A connection that broke is tried again: writing the same bytes
// twice changes nothing. What the daemon itself says no to is not: after its own failures everything since the last Flush
// is in doubt.
func (m *Image) WriteAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	return errs.Wrap("write disk", fmt.Sprintf("at byte %d", off), m.again(ctx, func(ctx context.Context) error {
		return m.send(ctx, http.MethodPut, "flush=n", fmt.Sprintf("bytes %d-*/*", off), p)
	}))
}

// Zero makes n bytes read as zeros; where the image can it keeps no space for them.
func (m *Image) Zero(ctx context.Context, off, n int64) error {
	return errs.Wrap("write zeros to disk", fmt.Sprintf("at byte %d", off), m.patch(ctx, patch{Op: "zero", Offset: &off, Size: n}))
}

// Flush returns when all that was written is durable.
func (m *Image) Flush(ctx context.Context) error {
	return errs.Wrap("flush disk", "", m.patch(ctx, patch{Op: "flush"}))
}

// patch is a request that changes an image without bringing bytes.
type patch struct {
	Op     string `json:"op"`
	Offset *int64 `json:"offset,omitempty"`
	Size   int64  `json:"size,omitempty"`
	Flush  bool   `json:"flush"`
}

func (m *Image) patch(ctx context.Context, p patch) error {
	body, err := json.Marshal(p)
	if err != nil {
		return errs.New("write request", "", errs.Bug, err)
	}
	return m.again(ctx, func(ctx context.Context) error { return m.send(ctx, http.MethodPatch, "", "", body) })
}

// lost is the error of a request that got no answer, so that nobody knows whether it was carried out.
type lost struct{ error }

func (l lost) Unwrap() error { return l.error }

// again does what may be repeated until there is an answer.
func (m *Image) again(ctx context.Context, do func(context.Context) error) error {
	pause := firstPause
	for try := 1; ; try++ {
		err := do(ctx)
		var unanswered lost
		if err == nil || try == readTries || !errors.As(err, &unanswered) || !errs.KindOf(err).Retryable() {
			return err
		}
		select {
		case <-time.After(pause):
			pause *= 4
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// send sends a request with a body, which must be small enough for memory, and sees that it was carried out.
func (m *Image) send(ctx context.Context, method, query, contentRange string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	u, err := url.Parse(m.url)
	if err != nil {
		return errs.Text("read transfer URL", "", errs.Invalid, "the engine's transfer URL cannot be understood")
	}
	u.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body)) // with its length: the daemon takes no chunks
	if err != nil {
		return errs.Text("read transfer URL", "", errs.Invalid, "the engine's transfer URL cannot be understood")
	}
	if contentRange != "" {
		req.Header.Set("Content-Range", contentRange)
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return lost{m.broken(ctx, err)}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 500)) // to its end: the connection is then used again
	switch {
	case resp.StatusCode != http.StatusOK:
		return refused(resp.StatusCode, strings.TrimSpace(string(text)))
	case err != nil:
		return lost{m.broken(ctx, err)}
	}
	return nil
}
