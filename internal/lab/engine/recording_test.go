package engine

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// exchange is one recorded request with its answer. The files in testdata are named after the recordings they were cut
// from; the numbers are those of the recordings.
type exchange struct {
	number         int
	title          string
	method, path   string
	header         http.Header
	body           string
	status         int
	answerHeader   http.Header
	answer         string
	bodyIsNotThere bool // it was too long to keep, or is different in every installation
}

// readRecording parses a file of "=== number title", request, "--- status", answer.
func readRecording(t *testing.T, name string) []exchange {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name + ".http")
	if err != nil {
		t.Fatal(err)
	}
	var all []exchange
	for part := range strings.SplitSeq("\n"+string(raw), "\n=== ") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		title, rest, _ := strings.Cut(part, "\n")
		request, answer, found := strings.Cut(rest, "\n--- ")
		x := exchange{bodyIsNotThere: strings.HasSuffix(title, ")") && regexp.MustCompile(`\((body|certificate|page) [a-z ]*\)$`).MatchString(title)}
		if _, err := fmt.Sscanf(title, "%d", &x.number); err != nil || !found {
			t.Fatalf("%s: %q is no exchange", name, title)
		}
		_, x.title, _ = strings.Cut(title, " ")
		line, head, body := cutMessage(request)
		x.method, x.path, _ = strings.Cut(line, " ")
		x.header, x.body = head, body
		line, x.answerHeader, x.answer = cutMessage(answer)
		if _, err := fmt.Sscanf(line, "%d", &x.status); err != nil {
			t.Fatalf("%s: %q is no status", name, line)
		}
		all = append(all, x)
	}
	if len(all) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return all
}

func cutMessage(s string) (line string, head http.Header, body string) {
	top, body, _ := strings.Cut(s, "\n\n")
	lines := strings.Split(strings.TrimSpace(top), "\n")
	head = http.Header{}
	for _, l := range lines[1:] {
		k, v, _ := strings.Cut(l, ": ")
		head.Set(k, v)
	}
	return lines[0], head, strings.TrimSpace(body)
}

// replay sends recorded requests to the simulator, in their order, and holds the answers to the recorded ones.
type replay struct {
	*client
	file   string
	ids    map[string]string // recorded identity → ours; grows with what is made
	before map[int]func()    // what happens, or passes, before an exchange
	skip   map[int]string    // exchanges that are not replayed, and why
	loose  map[int][]string  // paths that are not compared in an exchange
}

func (r *replay) run() {
	r.t.Helper()
	ids := r.e.IDs()
	for recorded, ours := range map[string]string{
		"485724c0-e714-11f1-9b31-02fc00000001": ids.DataCenter, "486acb42-e714-11f1-a2cc-02fc00000001": ids.Cluster,
		"a0466d43-15a3-4790-9d0a-c20ed18385b4": ids.Host,
	} {
		r.ids[recorded] = ours
	}
	for _, x := range readRecording(r.t, r.file) {
		if before := r.before[x.number]; before != nil {
			before()
		}
		if _, skipped := r.skip[x.number]; skipped {
			continue
		}
		r.one(x)
	}
}

func (r *replay) ours(s string) string {
	for recorded, ours := range r.ids {
		s = strings.ReplaceAll(s, recorded, ours)
	}
	return s
}

func (r *replay) one(x exchange) {
	r.t.Helper()
	body := strings.NewReplacer("<PASSWORD>", "holdfast", "<TOKEN>", r.token).Replace(r.ours(x.body))
	target := strings.ReplaceAll(r.ours(x.path), "<PASSWORD>", "holdfast")
	q := httptest.NewRequest(x.method, "https://localhost:8443"+target, strings.NewReader(body))
	for k, v := range x.header {
		q.Header[k] = slices.Clone(v)
	}
	switch a := q.Header.Get("Authorization"); {
	case strings.Contains(a, "user:password"):
		q.SetBasicAuth("admin@internal", "holdfast")
	case strings.Contains(a, "user:wrong"):
		q.SetBasicAuth("admin@internal", "wrong")
	case strings.HasPrefix(a, "Bearer"):
		q.Header.Set("Authorization", "Bearer "+r.token)
	}
	w := httptest.NewRecorder()
	r.e.Handler().ServeHTTP(w, q)
	where := fmt.Sprintf("%s %d (%s)", r.file, x.number, x.title)
	if w.Code != x.status {
		r.t.Errorf("%s: status %d, recorded %d\n%s", where, w.Code, x.status, w.Body)
		return
	}
	for _, name := range []string{"Content-Type", "Www-Authenticate", "Allow", "Correlation-Id"} {
		if want := x.answerHeader.Get(name); want != "" && w.Header().Get(name) != want {
			r.t.Errorf("%s: %s: %q, recorded %q", where, name, w.Header().Get(name), want)
		}
	}
	r.learn(x, w)
	if !x.bodyIsNotThere {
		r.compare(where, x, w.Body.String())
	}
}

// learn pairs the identities of what was made.
func (r *replay) learn(x exchange, w *httptest.ResponseRecorder) {
	if x.status != http.StatusCreated {
		return
	}
	recorded, ours := x.answerHeader.Get("Location"), w.Header().Get("Location")
	was, is := anyID.FindAllString(recorded, -1), anyID.FindAllString(ours, -1)
	if anyID.ReplaceAllString(recorded, "<id>") != anyID.ReplaceAllString(ours, "<id>") {
		r.t.Errorf("%s %d: Location: %q, recorded %q", r.file, x.number, ours, recorded)
	} else if len(was) > 0 {
		r.ids[was[len(was)-1]] = is[len(is)-1]
	}
}

func (r *replay) compare(where string, x exchange, got string) {
	r.t.Helper()
	want, have := shape(r.ours(x.answer)), shape(got)
	for _, path := range r.loose[x.number] {
		drop := regexp.MustCompile(path)
		want, have = dropPaths(want, drop), dropPaths(have, drop)
	}
	var missing, extra []string
	for _, line := range want {
		if !slices.Contains(have, line) {
			missing = append(missing, line)
		}
	}
	for _, line := range have {
		if !slices.Contains(want, line) {
			extra = append(extra, line)
		}
	}
	if len(missing)+len(extra) > 0 {
		r.t.Errorf("%s:\n recorded, not ours: %s\n ours, not recorded: %s", where, strings.Join(missing, "\n   "), strings.Join(extra, "\n   "))
	}
}

func dropPaths(lines []string, drop *regexp.Regexp) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return drop.MatchString(l) })
}

var (
	anyID    = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	anyTime  = regexp.MustCompile(`^[0-9]{12,13}$|^[0-9-]{10}T[0-9:.]{12}Z$`)
	anyToken = regexp.MustCompile(`("access_token": ?")[^"]*"`)
	anyMAC   = regexp.MustCompile(`56:6f:7a:1a:[0-9a-f:]{5}`)
)

// shape is a body as a set of lines "path=value": identities, times and addresses are only said to be there.
func shape(body string) []string {
	body = anyToken.ReplaceAllString(strings.TrimSpace(body), `$1<TOKEN>"`)
	set := map[string]bool{}
	put := func(path, value string) {
		switch {
		case sized.MatchString(path):
			value = "<number>"
		case anyTime.MatchString(value):
			value = "<time>"
		}
		value = anyMAC.ReplaceAllString(anyID.ReplaceAllString(value, "<id>"), "<mac>")
		set[path+"="+value] = true
	}
	var v any
	switch {
	case strings.HasPrefix(body, "{") && json.Unmarshal([]byte(body), &v) == nil:
		flatten("", v, put)
	case strings.HasPrefix(body, "<?xml"):
		x, err := parseAny(body)
		if err != nil {
			put("broken", err.Error())
			break
		}
		flattenXML("", x, put)
	default:
		put("text", body)
	}
	return sortedKeys(set)
}

// sized are numbers that depend on the machine below and not on the engine.
var sized = regexp.MustCompile(`(^|\.)(available|used|committed|actual_size|total_size)$`)

func flatten(path string, v any, put func(string, string)) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			put(path, "{}")
		}
		for k, inner := range v {
			flatten(strings.TrimPrefix(path+"."+k, "."), inner, put)
		}
	case []any:
		if len(v) == 0 {
			put(path, "[]")
		}
		for _, inner := range v {
			flatten(path+"[]", inner, put)
		}
	case float64:
		put(path, fmt.Sprintf("%.0f", v))
	case string:
		put(path, v)
	}
}
