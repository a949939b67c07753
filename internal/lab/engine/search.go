package engine

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// row is an entity in a list: what it may be searched by, and how it is shown. A field that is missing from the map is
// one the engine cannot search by, which makes the whole list empty without a word.
type row struct {
	fields map[string][]string
	show   func() *object
}

// collection answers a list: search, order, page and max as the query says.
func (c *call) collection(root, item string, rows []row) (*reply, error) {
	rows, page, err := c.filter(rows)
	if err != nil {
		return nil, err
	}
	rows, err = c.limit(rows, page)
	if err != nil {
		return nil, err
	}
	all := &list{item: item}
	for _, r := range rows {
		all.items = append(all.items, r.show())
	}
	return ok(newObject(root).set("", all))
}

// limit applies max: negative is refused, nonsense ignored.
func (c *call) limit(rows []row, page int) ([]row, error) {
	if !c.r.URL.Query().Has("max") {
		return rows, nil
	}
	maximum, err := strconv.Atoi(c.param("max"))
	switch {
	case err != nil:
		return rows, nil
	case maximum < 0:
		return nil, &apiFault{status: http.StatusBadRequest, reason: "Operation Failed",
			detail: "illegal max count value for query : " + strconv.Itoa(maximum)}
	}
	first := min((page-1)*maximum, len(rows))
	return rows[first:min(first+maximum, len(rows))], nil
}

// condition is one comparison; field is "" for free text.
type condition struct{ field, op, value string }

// query is a parsed search: any of the alternatives, all of whose conditions hold.
type query struct {
	any    [][]condition
	sortBy string
	desc   bool
	page   int
	broken bool
}

func (c *call) filter(rows []row) ([]row, int, error) {
	text := c.param("search")
	if text == "" {
		return rows, 1, nil
	}
	q := parseSearch(text)
	if q.broken {
		return nil, 1, nil
	}
	var found []row
	for _, r := range rows {
		match, known := q.matches(r)
		if !known {
			return nil, 1, nil
		}
		if match {
			found = append(found, r)
		}
	}
	if q.sortBy != "" {
		if len(found) > 0 && found[0].fields[q.sortBy] == nil {
			return nil, 1, nil // not a field to sort by: as silent as the rest
		}
		slices.SortStableFunc(found, func(a, b row) int {
			order := compareFields(a.fields[q.sortBy], b.fields[q.sortBy])
			if q.desc {
				return -order
			}
			return order
		})
	}
	return found, q.page, nil
}

func compareFields(a, b []string) int {
	x, y := strings.Join(a, " "), strings.Join(b, " ")
	if n, err := strconv.Atoi(x); err == nil {
		if m, err := strconv.Atoi(y); err == nil {
			return n - m
		}
	}
	return strings.Compare(x, y)
}

func (q *query) matches(r row) (match, known bool) {
	if len(q.any) == 0 {
		return true, true
	}
	for _, all := range q.any {
		every := true
		for _, cond := range all {
			values, ok := r.fields[cond.field]
			if cond.field == "" {
				for _, v := range r.fields {
					values = append(values, v...)
				}
			} else if !ok {
				return false, false
			}
			hit := slices.ContainsFunc(values, func(v string) bool { return like(v, cond.value) })
			if hit == (cond.op == "!=") {
				every = false
			}
		}
		match = match || every
	}
	return match, true
}

// like compares without regard to case; a star stands for anything.
func like(value, pattern string) bool {
	value, pattern = strings.ToLower(value), strings.ToLower(pattern)
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return value == pattern
	}
	rest, ok := strings.CutPrefix(value, parts[0])
	if !ok {
		return false
	}
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, p)
		if i < 0 {
			return false
		}
		rest = rest[i+len(p):]
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// parseSearch reads "name=x and tag=y or id=z sortby name desc page 2".
func parseSearch(text string) *query {
	q := &query{page: 1}
	words := searchWords(text)
	var all []condition
	flush := func() {
		if len(all) > 0 {
			q.any = append(q.any, all)
			all = nil
		}
	}
	for i := 0; i < len(words); i++ {
		next := func(n int) string {
			if i+n < len(words) {
				return words[i+n]
			}
			return ""
		}
		switch strings.ToLower(words[i]) {
		case "and":
		case "or":
			flush()
		case "sortby":
			q.sortBy = strings.ToLower(next(1))
			i++
			if d := strings.ToLower(next(1)); d == "asc" || d == "desc" {
				q.desc = d == "desc"
				i++
			}
		case "page":
			if n, err := strconv.Atoi(next(1)); err == nil && n > 0 {
				q.page = n
			}
			i++
		default:
			if op := next(1); op == "=" || op == "!=" {
				if i+2 >= len(words) {
					q.broken = true
				}
				all = append(all, condition{strings.ToLower(words[i]), op, strings.Trim(next(2), `"`)})
				i += 2
				continue
			}
			all = append(all, condition{"", "=", "*" + strings.Trim(words[i], `"`) + "*"})
		}
	}
	flush()
	return q
}

// searchWords cuts at spaces and operators, and keeps quoted text together.
func searchWords(text string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	flush := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
			word.Reset()
		}
	}
	for i := 0; i < len(text); i++ {
		b := text[i]
		switch {
		case b == '"':
			quoted = !quoted
			word.WriteByte(b)
		case quoted:
			word.WriteByte(b)
		case b == ' ' || b == '\t':
			flush()
		case b == '!' && i+1 < len(text) && text[i+1] == '=':
			flush()
			words = append(words, "!=")
			i++
		case b == '=':
			flush()
			words = append(words, "=")
		default:
			word.WriteByte(b)
		}
	}
	flush()
	return words
}
